"""What answers of a shape are worth, on a real language model: tickets that are read and labelled.

    make real

Two hundred support tickets (sample_data/tickets.jsonl) are asked for an order in JSON, freely and
by a schema; and for the product that they are about, in free text, as one of five words that is
generated, and as the likeliest of five. The model is SmolLM2-135M-Instruct.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
from random_phi3 import HERE
from real_model import build, console, native
from rich.table import Table

from phi3_batch.engines.choices import answer
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.generation import Completion, GenerationParams, Request
from phi3_batch.model_files import ModelFolder
from phi3_batch.text import Message

TICKETS = HERE.parent / "sample_data" / "tickets.jsonl"
PRODUCTS = ("phone", "laptop", "printer", "camera", "headphones")
SCHEMA = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "pattern": "^[A-C]-[0-9]{4}$"},
        "days": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["order", "days"],
    "additionalProperties": False,
}
ORDER = (
    "{text}\n\nWhich order is this about, and how many days ago was it? Answer with JSON that has"
    ' the keys "order" and "days".'
)
PRODUCT = f"{{text}}\n\nWhich product is this about: {', '.join(PRODUCTS)}?"


@dataclass(frozen=True)
class Ways:
    """The same rows, asked in several ways.

    Attributes:
        engine: that answers.
        folder: its model.
        rows: the tickets.
    """

    engine: NativeEngine
    folder: ModelFolder
    rows: Sequence[dict[str, Any]]

    def ask(self, question: str, params: GenerationParams) -> tuple[list[Completion], float]:
        """What is answered to a question about each row, and seconds."""
        encode = self.folder.chat_template.encode
        requests = [
            Request(tuple(encode([Message("user", question.format(**row))])), params)
            for row in self.rows
        ]
        started = time.perf_counter()
        return answer(self.engine, requests), time.perf_counter() - started

    def share(self, found: Callable[[dict[str, Any], str], bool], texts: list[Completion]) -> str:
        """Of how many rows something is true."""
        pairs = zip(self.rows, texts, strict=True)
        return f"{100 * sum(found(row, each.text) for row, each in pairs) / len(self.rows):.1f} %"


def read(text: str) -> Any:
    """JSON, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def follows(_: dict[str, Any], text: str) -> bool:
    """Whether a text follows the schema."""
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(read(text))


def extraction(ways: Ways) -> Table:
    """JSON, freely and by the schema."""
    table = Table(title=f"An order in JSON, {len(ways.rows)} tickets", title_justify="left")
    table.add_column("answer")
    for heading in ("JSON", "by the schema", "order right", "days right", "s"):
        table.add_column(heading, justify="right")
    free = GenerationParams(max_tokens=60)
    for name, params in (
        ("free text", free),
        ("by json_schema", replace(free, json_schema=json.dumps(SCHEMA))),
    ):
        texts, seconds = ways.ask(ORDER, params)
        parts = [
            lambda row, text, part=part: follows(row, text) and read(text)[part] == row[part]
            for part in ("order", "days")
        ]
        is_json = ways.share(lambda _, text: read(text) is not None, texts)
        shares = [ways.share(each, texts) for each in (follows, *parts)]
        table.add_row(name, is_json, *shares, f"{seconds:.1f}")
    return table


def labels(ways: Ways) -> Table:
    """One of five products."""
    table = Table(title=f"One of five products, {len(ways.rows)} tickets", title_justify="left")
    table.add_column("answer")
    for heading in ("one of them", "right", "s"):
        table.add_column(heading, justify="right")

    def named(text: str) -> list[str]:
        words = set(re.findall("[a-z]+", text.lower()))
        return [product for product in PRODUCTS if product in words]

    free = GenerationParams(max_tokens=30)
    for name, params in (
        ("free text that names one", free),
        ("generated choice", replace(free, choices=PRODUCTS, choices_by="generate")),
        ("likeliest choice", replace(free, choices=PRODUCTS)),
    ):
        texts, seconds = ways.ask(PRODUCT, params)
        table.add_row(
            name,
            ways.share(lambda _, text: len(named(text)) == 1, texts),
            ways.share(lambda row, text: named(text) == [row["product"]], texts),
            f"{seconds:.1f}",
        )
    return table


def main() -> None:
    """Measure."""
    folder = build("k_quant_mixed")
    rows = [json.loads(line) for line in TICKETS.read_text(encoding="utf-8").splitlines()]
    ways = Ways(native(folder), folder, rows)
    console.print(extraction(ways))
    console.print(labels(ways))


if __name__ == "__main__":
    main()
