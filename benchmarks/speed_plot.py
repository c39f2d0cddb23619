"""Tokens a second against rows at a time and against the prompts' length, as a plot.

    python benchmarks/speed_plot.py    # writes docs/images/speed.svg

Output tokens are counted, and the reading of the prompts is in their time. The engines that answer
one row after another are measured on a few rows, for their rate does not depend on how many.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from contenders import CONTENDERS
from engines import NAIVE, ONNX, OPENVINO, machine, run_json
from measure import measure_rows
from random_phi3 import HERE, RANDOM_PHI3, random_phi3
from workloads import MEAN_OUTPUT, MEAN_PROMPT, Row, Texts, even

PLOT = HERE.parent / "docs" / "images" / "speed.svg"
ROWS_AT_A_TIME = (1, 2, 4, 8, 16, 32, 64, 128)
PROMPT_LENGTHS = (64, 128, 256, 512, 1024, 2000)
ROWS_OF_A_LENGTH = 16
ONE_BY_ONE = {NAIVE: "#b0413e", ONNX: "#d99a2b"}
TOGETHER = {OPENVINO: "#2f6f9f"}


def points(engine: str) -> Iterator[tuple[str, int, tuple[Row, ...]]]:
    """What an engine is measured on: which curve, where on it, and the rows."""
    texts = Texts(seed=0)
    for count in ROWS_AT_A_TIME if engine in TOGETHER else (4,):
        yield "rows", count, tuple(even(texts, count, MEAN_PROMPT, MEAN_OUTPUT))
    for length in PROMPT_LENGTHS:
        count = ROWS_OF_A_LENGTH if engine in TOGETHER else 1
        yield "length", length, tuple(even(texts, count, length, MEAN_OUTPUT))


def measure_points(engine: str) -> dict[str, list[list[float]]]:
    """Both curves of an engine, as pairs."""
    loaded = CONTENDERS[engine](RANDOM_PHI3)
    loaded.answer([Texts(seed=1).row(MEAN_PROMPT, 4)])
    curves: dict[str, list[list[float]]] = {"rows": [], "length": []}
    for curve, at, rows in points(engine):
        curves[curve].append([at, measure_rows(loaded, rows).rate])
    return curves


def draw(curves: dict[str, dict[str, list[list[float]]]], target: Path) -> None:
    """Write the plot."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "phi3_batch", "font.size": 10, "axes.grid": True})
    figure, (by_rows, by_length) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for engine, colour in (ONE_BY_ONE | TOGETHER).items():
        found = curves[engine]
        if engine in ONE_BY_ONE:
            by_rows.axhline(found["rows"][0][1], color=colour, label=engine)
        else:
            by_rows.plot(*zip(*found["rows"], strict=True), "o-", color=colour, label=engine)
        by_length.plot(*zip(*found["length"], strict=True), "o-", color=colour, label=engine)
    by_rows.set_xlabel(f"rows in the queue ({MEAN_PROMPT} tokens in, {MEAN_OUTPUT} out)")
    by_length.set_xlabel(f"tokens of a prompt ({ROWS_OF_A_LENGTH} rows, {MEAN_OUTPUT} out)")
    by_rows.set_ylabel("output tokens a second, prompts included")
    for axes, ticks in ((by_rows, ROWS_AT_A_TIME), (by_length, PROMPT_LENGTHS)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    by_rows.legend()
    figure.suptitle(f"Phi-3-mini's shapes, 8 of 32 layers, int4, {machine()}", fontsize=10)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Measure each engine in a process of its own, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure_points(options.engine)))
        return
    random_phi3()
    curves = {}
    for engine in (*ONE_BY_ONE, *TOGETHER):
        curves[engine] = run_json("speed_plot.py", "--engine", engine)
        print(f"{engine}: {curves[engine]}", flush=True)
    draw(curves, PLOT)


if __name__ == "__main__":
    main()
