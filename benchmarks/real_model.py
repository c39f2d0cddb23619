"""What rounding costs a real language model, and how exactly each engine computes it.

    make real

Perplexity, and the distance from the checkpoint in float32, of every way to round its weights; of
the default one, of every engine against exact arithmetic on the same weights; and a hundred answers
that are to be the same in any order and in any company. The model is SmolLM2-135M-Instruct.
"""

import argparse
import random
import tempfile
import timeit
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from agreement import difference, with_float_activations
from native_model import native_model
from openvino_model import openvino_model
from paged_model import PagedModel, Piece
from rich.console import Console
from rich.table import Table
from smollm2 import SMOLLM2, smollm2

from phi3_batch.build import ALGORITHMS, build_int4
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.native.library import instruction_sets
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.ov.int4 import instructions_for
from phi3_batch.engines.perplexity import SAMPLE_TEXT, perplexity, read_text
from phi3_batch.engines.torch.engine import TransformersEngine
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import Checkpoint, ModelFolder
from phi3_batch.text import Message

WINDOW = 512
MAX_TOKENS = 64
ASKED = [
    f"{question} {thing}?"
    for question in (
        "What is the capital of",
        "Write one sentence about",
        "What do people eat in",
        "What is the weather like in",
        "Which language do they speak in",
    )
    for thing in (
        *("France", "Japan", "Brazil", "Egypt", "Canada", "India", "Norway", "Kenya", "Peru"),
        *("Italy", "Greece", "Turkey", "Mexico", "Vietnam", "Poland", "Iran", "Cuba", "Nepal"),
        *("Chile", "Iceland"),
    )
]

console = Console(width=140, highlight=False)


def build(algorithm: str) -> ModelFolder:
    """A build of the model, made at the first call; gptq's by the text of Python's own help."""
    folder = SMOLLM2.with_name(f"{SMOLLM2.name}-{algorithm}")
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            text = Path(scratch, "text.txt")
            text.write_text("".join(topics[name] for name in sorted(topics)), encoding="utf-8")
            calibration = text if algorithm.startswith("gptq") else None
            build_int4(smollm2(), folder, algorithm=algorithm, calibration=calibration)
    return ModelFolder.open(folder)


def native(folder: ModelFolder, instructions: str | None = None) -> NativeEngine:
    """The native engine with a build."""
    return NativeEngine(
        folder, native_model(folder), instructions=instructions, memory_bytes=2 * 10**9
    )


class OpenVINOReader:
    """The model that the OpenVINO engine runs, which itself gives no text's logits."""

    def __init__(self, folder: ModelFolder) -> None:
        instructions = instructions_for(folder)
        self.name = f"openvino, {instructions.name if instructions else 'by itself'}"
        self._model = PagedModel(openvino_model(folder, instructions), 1, WINDOW)

    def read_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """As an engine's."""
        return self._model.step([Piece(0, token_ids, 0)], all_logits=True)


Reader = OnnxRuntimeGenAIEngine | NativeEngine | OpenVINOReader | TransformersEngine


@dataclass(frozen=True)
class Reading:
    """What a model makes of a text, read in windows as the perplexity reads it.

    Attributes:
        windows: the logits of each, by its tokens.
    """

    windows: dict[tuple[int, ...], np.ndarray]

    @classmethod
    def of(cls, engine: Reader, ids: Sequence[int]) -> "Reading":
        """Have a text read."""
        parts = [tuple(ids[start : start + WINDOW]) for start in range(0, len(ids), WINDOW)]
        return cls({part: engine.read_logits(part) for part in parts})

    def read_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """As an engine's."""
        return self.windows[tuple(token_ids)]

    @property
    def logits(self) -> np.ndarray:
        """Of all tokens."""
        return np.concatenate([*self.windows.values()])

    @property
    def perplexity(self) -> float:
        """Of the text."""
        ids = [token for window in self.windows for token in window]
        return perplexity(self, ids, WINDOW)


def roundings(algorithms: Sequence[str], ids: Sequence[int], exact: Reading) -> Table:
    """Every way to round: size, speed, and how much of the model is left."""
    table = Table(title="How weights are rounded", title_justify="left")
    table.add_column("algorithm")
    for heading in ("MB", "perplexity", "top-1", "KL", "output tok/s"):
        table.add_column(heading, justify="right")
    for algorithm in algorithms:
        folder = replace(build(algorithm), end_token_ids=())  # so that all answers are as long
        engine = native(folder)
        reading = Reading.of(engine, ids)
        found = difference(exact.logits, reading.logits)
        size = sum((folder.path / name).stat().st_size for name in folder.files)
        requests = requests_of(folder, ASKED[:32])
        tokens = sum(answer.usage.completion_tokens for answer in engine.generate(requests))
        rate = tokens / min(timeit.repeat(partial(engine.generate, requests), number=1, repeat=5))
        table.add_row(
            algorithm,
            f"{size / 1e6:.0f}",
            f"{reading.perplexity:.2f}",
            f"{100 * found.top_1:.1f} %",
            f"{found.divergence:.3f}",
            f"{rate:.0f}",
        )
    return table


def readers(folder: ModelFolder) -> Iterator[Reader]:
    """Every engine, and the native one with every instruction set, one after another."""
    yield OnnxRuntimeGenAIEngine(folder)
    for instructions in instruction_sets()[:-1]:  # the last is the portable one, for hours
        yield native(folder, instructions)
    yield OpenVINOReader(folder)


def exactness(folder: ModelFolder, ids: Sequence[int]) -> Table:
    """Every engine against the same weights in float32."""
    table = Table(title="The default build, against exact arithmetic", title_justify="left")
    table.add_column("engine")
    for heading in ("perplexity", "top-1", "KL", "largest"):
        table.add_column(heading, justify="right")
    target = SMOLLM2.with_name(f"{folder.path.name}-float-activations")
    reference = OnnxRuntimeGenAIEngine(
        ModelFolder.open(with_float_activations(folder.path, target))
    )
    exact = Reading.of(reference, ids)
    table.add_row("onnxruntime-genai in float32", f"{exact.perplexity:.3f}", "", "", "")
    del reference
    for engine in readers(folder):
        reading = Reading.of(engine, ids)
        found = difference(exact.logits, reading.logits)
        table.add_row(
            engine.name,
            f"{reading.perplexity:.3f}",
            f"{100 * found.top_1:.1f} %",
            f"{found.divergence:.5f}",
            f"{found.largest:.2f}",
        )
    return table


def requests_of(folder: ModelFolder, questions: Sequence[str]) -> list[Request]:
    """Greedy requests by the model's own chat template."""
    encode = folder.chat_template.encode
    params = GenerationParams(max_tokens=MAX_TOKENS)
    return [Request(tuple(encode([Message("user", text)])), params) for text in questions]


def answers(folder: ModelFolder) -> Table:
    """A hundred answers: alone, by eights, all together, in another order, on other threads."""
    engine, requests = native(folder), requests_of(folder, ASKED)
    texts = [answer.text for answer in engine.generate(requests)]
    order = random.Random(1).sample(range(len(requests)), len(requests))
    shuffled = engine.generate([requests[place] for place in order])
    one_thread = NativeEngine(folder, native_model(folder), threads=1, memory_bytes=2 * 10**9)
    ways = {
        "alone": [engine.generate([request])[0].text for request in requests],
        "by eights": [
            answer.text
            for start in range(0, len(requests), 8)
            for answer in engine.generate(requests[start : start + 8])
        ],
        "in another order": [
            answer.text
            for _, answer in sorted(zip(order, shuffled, strict=True), key=lambda p: p[0])
        ],
        "together, by 1 thread": [answer.text for answer in one_thread.generate(requests)],
    }
    reference = OnnxRuntimeGenAIEngine(folder)
    ways["by onnxruntime-genai"] = [answer.text for answer in reference.generate(requests)]
    table = Table(
        title=f"{len(requests)} greedy answers of {MAX_TOKENS} tokens at most, against"
        " native, all together",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("the same", justify="right")
    for way, others in ways.items():
        table.add_row(way, str(sum(map(str.__eq__, texts, others))))
    console.print(f"[bold]{ASKED[0]}[/] {texts[0]}")
    return table


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS))
    parser.add_argument("--text", type=Path, default=SAMPLE_TEXT)
    options = parser.parse_args()
    checkpoint = Checkpoint.open(smollm2())
    ids = read_text(options.text, checkpoint.tokenizer)
    reference = TransformersEngine(checkpoint)
    exact = Reading.of(reference, ids)
    console.print(
        f"{checkpoint.path.name}: {len(ids):,} tokens of {options.text.name}, perplexity in"
        f" float32 {exact.perplexity:.2f}"
    )
    del reference
    console.print(answers(build("default")))
    console.print(exactness(build("default"), ids))
    console.print(roundings(options.algorithms, ids, exact))


if __name__ == "__main__":
    main()
