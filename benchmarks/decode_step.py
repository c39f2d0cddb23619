"""What a step of the OpenVINO engine consists of: milliseconds by kind of operation.

    python benchmarks/decode_step.py

A step reads one token of each row that is being decoded and fills up with prompts, 256 tokens in
all. Steps of several sizes are profiled, by OpenVINO's own counters, over the model that
openvino_genai runs; and each is timed by a clock.
"""

import time
from collections import defaultdict
from dataclasses import dataclass

from engines import machine, run_json
from measured import LAYER_MACS, LM_HEAD_MACS
from openvino_model import openvino_model
from paged_model import PagedModel, Piece
from random_phi3 import LAYERS, random_phi3
from rich.console import Console
from rich.table import Table

from phi3_batch.model_files import ModelFolder

CONTEXT = 192
DECODED_CONTEXT = 128  # tokens in the cache of a row that is being decoded
REPEATS = 9
LINEAR, ATTENTION, OTHER = "linear layers", "attention", "all else"
# names of OpenVINO's nodes; LLMMLP is a fused gate, up and down
KINDS = {
    "FullyConnectedCompressed": LINEAR,
    "FullyConnected": LINEAR,
    "LLMMLP": LINEAR,
    "PagedAttentionExtension": ATTENTION,
}


@dataclass(frozen=True)
class Step:
    """So many rows that are decoded, and so many tokens of prompts."""

    decoded: int
    prompt_tokens: int

    @property
    def macs(self) -> int:
        """Multiplications and additions of the linear layers."""
        sampled = self.decoded + (1 if self.prompt_tokens else 0)
        tokens = self.decoded + self.prompt_tokens
        return tokens * LAYERS * LAYER_MACS + sampled * LM_HEAD_MACS

    @property
    def pieces(self) -> list[Piece]:
        """As the model takes it; prompts are of W's mean length."""
        pieces = [Piece(row, [300], DECODED_CONTEXT) for row in range(self.decoded)]
        for start in range(0, self.prompt_tokens, 128):
            count = min(128, self.prompt_tokens - start)
            pieces.append(Piece(self.decoded + start // 128, [300 + i for i in range(count)], 0))
        return pieces


STEPS = (
    Step(1, 0),
    Step(8, 0),
    Step(32, 0),
    Step(64, 0),
    Step(128, 0),
    Step(32, 224),
    Step(128, 128),
    Step(0, 256),
)


def profile(model: PagedModel, step: Step) -> tuple[dict[str, float], float]:
    """Mean milliseconds of a step: by kind of operation, and by the clock."""
    model.step(step.pieces)  # the first of its size prepares what the others use
    before, started = times(model), time.perf_counter()
    for _ in range(REPEATS):
        model.step(step.pieces)
    by_clock = 1000 * (time.perf_counter() - started) / REPEATS
    kinds = {kind: (all_steps - before[kind]) / REPEATS for kind, all_steps in times(model).items()}
    return kinds, by_clock


def times(model: PagedModel) -> dict[str, float]:
    """Milliseconds by kind of operation, of all steps so far."""
    kinds: dict[str, float] = defaultdict(float)
    for node_type, _, milliseconds in model.node_times():
        kinds[KINDS.get(node_type, OTHER)] += milliseconds
    return kinds


def kernels(model: PagedModel) -> set[str]:
    """What the linear layers were computed by."""
    return {kernel for name, kernel, _ in model.node_times() if KINDS.get(name) == LINEAR}


def main() -> None:
    """Profile int4 weights as they are, and expanded beforehand."""
    console = Console(width=160)
    peak = run_json("peak.py")["bf16"]
    folder = openvino_model(ModelFolder.open(random_phi3()))
    console.print(f"{machine()}; bf16 peak {peak:,.0f} GMAC/s", highlight=False)
    for title, expand in (("int4 weights", False), ("weights expanded to bf16", True)):
        sequences = max(len(step.pieces) for step in STEPS)
        model = PagedModel(folder, sequences, CONTEXT, {"PERF_COUNT": True}, expand_weights=expand)
        table = Table(title=f"{title}: milliseconds of a step", title_justify="left")
        for heading in ("decoded rows", "prompt tokens", LINEAR, ATTENTION, OTHER, "by the clock"):
            table.add_column(heading, justify="right")
        table.add_column("linear layers, of peak", justify="right")
        for step in STEPS:
            kinds, by_clock = profile(model, step)
            linear = step.macs / kinds[LINEAR] / 1e6
            numbers = [f"{kinds[kind]:.0f}" for kind in (LINEAR, ATTENTION, OTHER)]
            table.add_row(
                str(step.decoded),
                str(step.prompt_tokens),
                *numbers,
                f"{by_clock:.0f}",
                f"{100 * linear / peak:.0f} %",
            )
        console.print(table)
        console.print(f"linear layers by {', '.join(sorted(kernels(model)))}", highlight=False)
        del model


if __name__ == "__main__":
    main()
