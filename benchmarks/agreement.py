"""How far the engines' logits are apart, and how far onnxruntime-genai is from itself.

    python benchmarks/agreement.py

Both engines read the same int4 weights, and neither computes with them exactly: onnxruntime rounds
activations to int8 before each product, and so does our kernel for AVX2; OpenVINO rounds to
bfloat16 where the processor has it, and so does our kernel for AMX. So they differ, and the
question is by how much. The measure is what onnxruntime-genai's own logits differ by when something
changes that nobody calls another model: threads, how the prompt is cut up, the rounding of
activations, the size of the blocks that share a scale.

Prompts are random ids on random weights of Phi-3-mini's shapes, so that nothing is easy: logits lie
close together. All tokens are given (teacher forcing): a difference cannot lead to another text.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contenders import THREADS
from native_model import native_model
from openvino_model import openvino_model
from paged_model import PagedModel, Piece
from random_phi3 import HERE, LAYERS, RANDOM_PHI3, VOCABULARY, random_phi3, save_checkpoint
from rich.console import Console
from rich.table import Table

from phi3_batch.build import build_int4
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.ov.int4 import instructions_for
from phi3_batch.model_files import ModelFolder

PROMPTS, PROMPT_TOKENS = 8, 128
OTHER_BLOCKS = RANDOM_PHI3.with_name("phi3-mini-8-layers-int4-block-128")
EXACT = RANDOM_PHI3.with_name("phi3-mini-8-layers-int4-float-activations")
REFERENCE = f"onnxruntime-genai, {THREADS} threads"


@dataclass(frozen=True)
class Difference:
    """Between the logits of two ways to run a model.

    Attributes:
        largest: between two logits.
        mean: of the absolute differences.
        top_1: share of the places at which both have the same likeliest token.
        divergence: Kullback-Leibler, of the second way's distribution from the first's, in nats;
            the mean over all places.
    """

    largest: float
    mean: float
    top_1: float
    divergence: float


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare logits, shaped (places, vocabulary)."""
    apart = np.abs(first - second)
    p, q = (logits - _log_sum_exp(logits) for logits in (first, second))
    return Difference(
        largest=float(apart.max()),
        mean=float(apart.mean()),
        top_1=float((first.argmax(-1) == second.argmax(-1)).mean()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
    )


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(-1, keepdims=True)
    return largest + np.log(np.exp(logits - largest).sum(-1, keepdims=True))


def onnxruntime_logits(
    model: Path, prompts: np.ndarray, threads: int, piece: int = PROMPT_TOKENS
) -> np.ndarray:
    """Of onnxruntime-genai, which reads the prompts in pieces of so many tokens."""
    import onnxruntime_genai as og

    config = og.Config(str(model))
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    loaded = og.Model(config)
    found = []
    for prompt in prompts:
        params = og.GeneratorParams(loaded)
        params.set_search_options(max_length=PROMPT_TOKENS + 1)
        generator = og.Generator(loaded, params)
        for start in range(0, PROMPT_TOKENS, piece):
            generator.append_tokens(prompt[start : start + piece].astype(np.int32))
            found.append(generator.get_output("logits")[0].copy())
    return np.concatenate(found)


def openvino_logits(
    prompts: np.ndarray, piece: int = PROMPT_TOKENS, **properties: object
) -> np.ndarray:
    """Of the model that the OpenVINO engine runs, by default as it runs it."""
    folder = ModelFolder.open(RANDOM_PHI3)
    converted = openvino_model(folder, instructions_for(folder))
    model = PagedModel(converted, PROMPTS, PROMPT_TOKENS, properties)
    found = []
    for row, prompt in enumerate(prompts):
        for start in range(0, PROMPT_TOKENS, piece):
            ids = prompt[start : start + piece]
            found.append(model.step([Piece(row, ids, start)], all_logits=True))
    return np.concatenate(found)


def native_logits(model: Path, prompts: np.ndarray) -> np.ndarray:
    """Of the native engine: whole or in pieces they are the same bit by bit."""
    folder = ModelFolder.open(model)
    engine = NativeEngine(folder, native_model(folder), memory_bytes=10**8)
    return np.concatenate([engine.read_logits(prompt.tolist()) for prompt in prompts])


def with_float_activations(build: Path, target: Path) -> Path:
    """A build with the same weights and float32 activations: what the weights say, exactly."""
    import onnx

    if not target.exists():
        part = target.with_suffix(".part")
        part.mkdir(exist_ok=True)
        for file in build.iterdir():
            (part / file.name).unlink(missing_ok=True)
            (part / file.name).hardlink_to(file)  # the runtime refuses links that lead out
        model = onnx.load(build / "model.onnx", load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
        (part / "model.onnx").unlink()
        onnx.save(model, part / "model.onnx")
        part.rename(target)
    return target


def other_blocks() -> Path:
    """The build of the same checkpoint with blocks of 128 weights, made at the first call."""
    if not OTHER_BLOCKS.exists():
        with tempfile.TemporaryDirectory(dir=HERE / ".models") as scratch:
            save_checkpoint(Path(scratch, "checkpoint"))
            build_int4(Path(scratch, "checkpoint"), OTHER_BLOCKS, algorithm="rtn", block_size=128)
    return OTHER_BLOCKS


def variants(prompts: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Logits of each way, one after another for they are large."""
    exact_openvino = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    yield "the same again", onnxruntime_logits(RANDOM_PHI3, prompts, THREADS)
    yield "1 thread", onnxruntime_logits(RANDOM_PHI3, prompts, 1)
    yield "in pieces of 32 tokens", onnxruntime_logits(RANDOM_PHI3, prompts, THREADS, 32)
    yield "token by token", onnxruntime_logits(RANDOM_PHI3, prompts, THREADS, 1)
    yield (
        "float32 activations",
        onnxruntime_logits(with_float_activations(RANDOM_PHI3, EXACT), prompts, THREADS),
    )
    yield "blocks of 128 weights", onnxruntime_logits(other_blocks(), prompts, THREADS)
    yield "native", native_logits(RANDOM_PHI3, prompts)
    yield (
        "native, activations in 16 bits",
        native_logits(with_float_activations(RANDOM_PHI3, EXACT), prompts),
    )
    yield "OpenVINO, as the engine runs it", openvino_logits(prompts)
    yield "OpenVINO, in pieces of 32 tokens", openvino_logits(prompts, 32)
    yield "OpenVINO, token by token", openvino_logits(prompts, 1)
    small_cache = {"KV_CACHE_PRECISION": "u8"}
    yield "OpenVINO, token by token, 8-bit KV cache", openvino_logits(prompts, 1, **small_cache)
    yield "OpenVINO in float32, KV cache too", openvino_logits(prompts, **exact_openvino)


def main() -> None:
    """Compare each way with onnxruntime-genai, and with the exact logits."""
    random_phi3()
    # the last id ends a text
    prompts = np.random.default_rng(0).integers(0, VOCABULARY - 1, (PROMPTS, PROMPT_TOKENS))
    reference = onnxruntime_logits(RANDOM_PHI3, prompts, THREADS)
    exact = onnxruntime_logits(with_float_activations(RANDOM_PHI3, EXACT), prompts, THREADS)
    table = Table(title=f"against {REFERENCE}; then against exact arithmetic", title_justify="left")
    table.add_column("", no_wrap=True)
    headings = ("largest", "mean", "top-1", "KL")
    for heading in (*headings, *(f"{heading} exact" for heading in headings)):
        table.add_column(heading, justify="right")
    for name, logits in variants(prompts):
        cells = []
        for other in (reference, exact):
            found = difference(other, logits)
            cells += [f"{found.largest:.3f}", f"{found.mean:.4f}"]
            cells += [f"{100 * found.top_1:.1f} %", f"{found.divergence:.5f}"]
        table.add_row(name, *cells)
    console = Console(width=160)
    console.print(
        f"{len(reference):,} places, {LAYERS} layers; the logits' standard deviation is"
        f" {reference.std():.2f}",
        highlight=False,
    )
    console.print(table)


if __name__ == "__main__":
    main()
