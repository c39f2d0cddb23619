"""What the kept prefix is worth: rows with one system prompt, with and without it.

    python benchmarks/shared_prefix.py

Each row has a system prompt of 512 tokens, the same for all, 32 tokens of its own and 16 tokens of
output, on a model of Phi-3-mini's layer shapes (random_phi3.py builds it at the first run). Both
ways answer the same rows in turn, in one process; the figure to quote is their ratio.
"""

import argparse
import random
import statistics
import time

from random_phi3 import random_phi3

from phi3_batch.engines import ModelFolder
from phi3_batch.engines.onnxruntime_genai import OnnxRuntimeGenAIEngine
from phi3_batch.generation import Completion, GenerationParams, Request

SYSTEM_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 512, 32, 16
# ids of the tokenizer's characters and merges
FIRST_ID, LAST_ID = 259, 999


def make_requests(rows: int) -> list[Request]:
    """Rows that share their first 512 tokens."""
    ids = random.Random(0)  # the same rows in every run
    system = ids.choices(range(FIRST_ID, LAST_ID), k=SYSTEM_TOKENS)
    params = GenerationParams(max_tokens=OUTPUT_TOKENS)
    return [
        Request((*system, *ids.choices(range(FIRST_ID, LAST_ID), k=OWN_TOKENS)), params)
        for _ in range(rows)
    ]


def timed(engine: OnnxRuntimeGenAIEngine, rows: list[Request]) -> tuple[float, list[Completion]]:
    """Seconds and answers."""
    started = time.perf_counter()
    completions = engine.generate(rows)
    return time.perf_counter() - started, completions


def main() -> None:
    """Measure in rounds, both ways in each, and print the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4, help="rows in a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = ModelFolder.open(random_phi3())
    kept = OnnxRuntimeGenAIEngine(folder)
    scratch = OnnxRuntimeGenAIEngine(folder, keep_prefix=False)
    requests = make_requests(1 + options.rows * options.rounds)
    for engine in (kept, scratch):
        engine.generate(requests[:1])  # reads the weights from disk; and the prefix, once

    ratios = []
    for round_number in range(options.rounds):
        rows = requests[1 + round_number * options.rows :][: options.rows]
        seconds_kept, with_prefix = timed(kept, rows)
        seconds_scratch, without = timed(scratch, rows)
        equal = sum(a.token_ids == b.token_ids for a, b in zip(with_prefix, without, strict=True))
        ratios.append(seconds_scratch / seconds_kept)
        print(
            f"round {round_number + 1}: kept {seconds_kept / len(rows):.2f} s a row,"
            f" from scratch {seconds_scratch / len(rows):.2f} s a row,"
            f" ratio {ratios[-1]:.1f}, equal tokens in {equal} of {len(rows)} rows",
            flush=True,
        )
    print(f"the kept prefix is {statistics.median(ratios):.1f} times faster (median)")


if __name__ == "__main__":
    main()
