"""What answers of a shape cost: the native engine on W's prompts, each way beside free text.

    python benchmarks/answers.py

Rates of generated tokens, the ways in turn and each at its best; what it takes to compare five
choices beside one generated token of the same prompts; and how much of a step the masks are.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from native_model import native_model
from random_phi3 import RANDOM_PHI3
from rich.console import Console
from rich.table import Table
from workloads import Texts, workload

from phi3_batch.engines.choices import answer
from phi3_batch.engines.chooser import TokenRules
from phi3_batch.engines.native.batch import SEQUENCES
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.generation import Request
from phi3_batch.model_files import ModelFolder

REPEATS, MASKED_STEPS = 3, 20
# about as many as phone, laptop, printer, camera and headphones are in Phi-3's vocabulary
CHOICE_TOKENS = (1, 2, 2, 1, 3)
PRODUCTS = ("phone", "laptop", "printer", "camera", "headphones")
PRODUCT = {"enum": [*PRODUCTS]}
# without an end within any row's max_tokens
LIST = {
    "type": "object",
    "properties": {
        "found": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"product": PRODUCT, "note": {"type": "string", "minLength": 20}},
                "required": ["product", "note"],
            },
            "minItems": 200,
        }
    },
    "required": ["found"],
}
SCHEMA, REGEX = {"json_schema": json.dumps(LIST)}, {"regex": "[a-z .,]{2000}"}
GENERATED = {"free text": {}, "by json_schema": SCHEMA, "by regex": REGEX}

console = Console(width=120, highlight=False)


def seconds_of(engine: NativeEngine, requests: Sequence[Request]) -> float:
    """How long it takes to answer requests of which nothing is known."""
    engine._loaded.blocks.reset()
    started = time.perf_counter()
    answer(engine, requests)
    return time.perf_counter() - started


def best_seconds(
    engine: NativeEngine, requests: Sequence[Request], ways: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """How long the same requests take in each of these ways, the ways in turn."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(REPEATS):
        for name, given in ways.items():
            asked = [shaped(request, **given) for request in requests]
            best[name] = min(best[name], seconds_of(engine, asked))
    return best


def rates(engine: NativeEngine, requests: Sequence[Request]) -> Table:
    """Generated tokens a second."""
    tokens = sum(request.params.max_tokens for request in requests)
    best = best_seconds(engine, requests, GENERATED)
    table = Table(title=f"{len(requests)} rows of W, {tokens:,} tokens", title_justify="left")
    for heading in ("answer", "output tok/s", "of free text"):
        table.add_column(heading, justify="left" if heading == "answer" else "right")
    for name, seconds in best.items():
        table.add_row(name, f"{tokens / seconds:.0f}", f"{best['free text'] / seconds:.2f}")
    return table


def choices(engine: NativeEngine, requests: Sequence[Request]) -> Table:
    """Five choices that are compared, and one token that is generated."""
    words = Texts(seed=1)
    texts = tuple(words.words(count) for count in CHOICE_TOKENS)
    ways = {
        "one generated token": {"max_tokens": 1},
        "one of five, compared": {"choices": texts},
        "one of five, generated": {"choices": texts, "choices_by": "generate"},
    }
    best = best_seconds(engine, requests, ways)
    table = Table(title=f"{len(requests)} prompts of W", title_justify="left")
    for heading in ("answer", "rows/s", "time of one token's"):
        table.add_column(heading, justify="left" if heading == "answer" else "right")
    one = best["one generated token"]
    for name, seconds in best.items():
        table.add_row(name, f"{len(requests) / seconds:.2f}", f"{seconds / one:.2f}")
    return table


def masks(folder: ModelFolder, requests: Sequence[Request], step_seconds: float) -> str:
    """What choosing by a schema takes of a step of so many rows."""
    rules = TokenRules(folder.tokenizer, folder.limits, frozenset(folder.end_token_ids))
    choosers = [rules.chooser(shaped(request, **SCHEMA)) for request in requests]
    for chooser in choosers:
        chooser.begin()
    logits = np.random.default_rng(0).normal(size=(len(choosers), folder.vocab_size))
    rows = logits.astype(np.float32)
    started = time.perf_counter()
    for _ in range(MASKED_STEPS):
        for chooser, row in zip(choosers, rows, strict=True):
            chooser.take(row)
    each = (time.perf_counter() - started) / MASKED_STEPS
    return (
        f"masks and choices of {len(choosers)} rows: {1000 * each:.0f} ms,"
        f" {each / step_seconds:.3f} of a step"
    )


def shaped(request: Request, **given: Any) -> Request:
    """A request for another answer."""
    return replace(request, params=replace(request.params, **given))


def main() -> None:
    """Measure."""
    folder = ModelFolder.open(RANDOM_PHI3)
    engine = NativeEngine(folder, native_model(folder))
    requests = [row.request for row in workload("W").rows]
    engine.generate(requests[:1])
    console.print(choices(engine, requests))
    # a step of as many rows as there may be, which have read their prompts
    full = (requests * SEQUENCES)[:SEQUENCES]
    short, long = (
        seconds_of(engine, [shaped(each, max_tokens=count) for each in full]) for count in (1, 9)
    )
    console.print(masks(folder, full, (long - short) / 8))
    console.print(rates(engine, requests))


if __name__ == "__main__":
    main()
