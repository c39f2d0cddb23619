"""The rows that everything is measured on: the same chats for every engine, from a seed.

A row's text is made of words that are one token each, so that a workload has the lengths it names,
and the tokenizer gives an engine in Spark the very ids that a bare engine is handed here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from random_phi3 import TOKENIZER

from phi3_batch.generation import GenerationParams, Request
from phi3_batch.text import ChatTemplate, Message, Tokenizer

# prompts of 64 to 191 tokens, outputs of 8 to 127
MEAN_PROMPT, MEAN_OUTPUT = 128, 64
PREFIX_TOKENS, OWN_TOKENS, PREFIX_OUTPUT = 256, 32, 64
LONG_PROMPT, LONG_OUTPUT = 2000, 64
# <|user|>, <|end|>, <|assistant|>; and <|system|>, <|end|>
USER_CONTROLS, SYSTEM_CONTROLS = 3, 2


@dataclass(frozen=True)
class Row:
    """A chat, its token ids, and how many tokens are to be generated."""

    system: str
    question: str
    prompt_ids: tuple[int, ...]
    max_tokens: int

    @property
    def request(self) -> Request:
        """As an engine takes it."""
        return Request(self.prompt_ids, GenerationParams(max_tokens=self.max_tokens))


@dataclass(frozen=True)
class Workload:
    """Rows to answer.

    Attributes:
        name: a letter, as the tables have it.
        what: it is, in a few words.
        rows: in the order in which they are asked.
        warm_up: a row that has nothing in common with them; it brings the weights into memory.
    """

    name: str
    what: str
    rows: tuple[Row, ...]
    warm_up: Row

    def take(self, count: int | None) -> "Workload":
        """So many rows in place of all, short and long ones in the same proportions.

        For the engines whose rate does not depend on how many rows there are, and for machines on
        which all would take too long.
        """
        if count is None or count >= len(self.rows):
            return self
        return replace(self, rows=tuple(spread(self.rows, count)))


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Rows from the middles of so many equal shares, in the order of what they take."""
    # a generated token of the naive loop takes about as long as four of a prompt
    ordered = sorted(rows, key=lambda row: 4 * row.max_tokens + len(row.prompt_ids))
    return [ordered[(2 * share + 1) * len(rows) // (2 * count)] for share in range(count)]


class Texts:
    """Makes chats of exact lengths in tokens."""

    def __init__(self, seed: int, tokenizer: Path = TOKENIZER / "tokenizer.json") -> None:
        self._random = np.random.default_rng(seed)
        self._template = ChatTemplate.of(Tokenizer(tokenizer), None, {})
        vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
        # "▁" begins a word, and no token of this vocabulary has one in its middle
        self._words = [
            token[1:] for token in vocabulary if token[:1] == "▁" and token[1:].isalpha()
        ]

    def words(self, count: int) -> str:
        """A text of so many tokens."""
        return " ".join(self._words[i] for i in self._random.integers(len(self._words), size=count))

    def row(self, prompt_tokens: int, max_tokens: int, system: str = "") -> Row:
        """A chat whose prompt has so many tokens in all."""
        turns = [Message("system", system)] if system else []
        taken = len(self._template.encode(turns)) - 1 if turns else 0
        question = self.words(prompt_tokens - taken - USER_CONTROLS)
        ids = self._template.encode([*turns, Message("user", question)])
        assert len(ids) == prompt_tokens, "a word is one token"
        return Row(system, question, tuple(ids), max_tokens)


def workload(name: str) -> Workload:
    """One of WORKLOADS by its letter."""
    what, rows = WORKLOADS[name]
    texts = Texts(seed=ord(name))
    return Workload(name, what, tuple(rows(texts)), texts.row(MEAN_PROMPT, 4))


def ragged(texts: Texts, count: int) -> Iterator[Row]:
    """Rows of W's distributions."""
    draw = np.random.default_rng(0)
    prompts = []
    for _ in range(count):
        prompts.append(int(draw.integers(MEAN_PROMPT // 2, MEAN_PROMPT * 3 // 2)))
        draw.integers(20, 1999, prompts[-1])  # ids, in the prototype whose lengths these are
    outputs = [int(draw.integers(MEAN_OUTPUT // 8, MEAN_OUTPUT * 2)) for _ in range(count)]
    return map(texts.row, prompts, outputs)


def shared_prefix(texts: Texts, count: int) -> Iterator[Row]:
    """Rows with one system prompt."""
    system = texts.words(PREFIX_TOKENS - SYSTEM_CONTROLS)
    for _ in range(count):
        yield texts.row(PREFIX_TOKENS + OWN_TOKENS, PREFIX_OUTPUT, system)


def even(texts: Texts, count: int, prompt_tokens: int, max_tokens: int) -> Iterator[Row]:
    """Rows of one length."""
    return islice(iter(lambda: texts.row(prompt_tokens, max_tokens), None), count)


WORKLOADS = {
    "W": ("32 rows, 64-191 tokens in, 8-127 out", lambda texts: ragged(texts, 32)),
    "Q": ("a full queue: 320 rows like W's", lambda texts: ragged(texts, 320)),
    "S": (
        f"32 rows, {PREFIX_TOKENS} tokens in common, {OWN_TOKENS} of its own, {PREFIX_OUTPUT} out",
        lambda texts: shared_prefix(texts, 32),
    ),
    "L": (
        f"8 rows, {LONG_PROMPT:,} tokens in, {LONG_OUTPUT} out",
        lambda texts: even(texts, 8, LONG_PROMPT, LONG_OUTPUT),
    ),
    "T": ("ten minutes: 2,100 rows like W's", lambda texts: ragged(texts, 2100)),
}
