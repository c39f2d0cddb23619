"""How likely continuations of prompts are: each prompt is read once for all of its own."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from phi3_batch.engines.base import Question
from phi3_batch.engines.native.batch import SEQUENCES, STEP_TOKENS, LoadedModel
from phi3_batch.engines.native.library import BLOCK_TOKENS, Step
from phi3_batch.engines.order import by_prefix
from phi3_batch.engines.sampling import log_softmax
from phi3_batch.engines.time_limit import time_limit
from phi3_batch.generation import Request


@dataclass(eq=False, slots=True)
class _Prompt:
    """A prompt while it is read, and as long as continuations of it are.

    Attributes:
        index: of the question.
        question: what is asked.
        kind: which rotary embedding the texts have.
        blocks: with its keys and values.
        read: tokens that the model has, or gets in this step.
        waiting: places of the continuations that have not begun.
        left: continuations that are not read to their ends.
    """

    index: int
    question: Question
    kind: int
    blocks: list[int]
    read: int
    waiting: deque[int]
    left: int


@dataclass(eq=False, slots=True)
class _Continuation:
    """A continuation while it is read.

    Attributes:
        prompt: that it continues.
        place: among the prompt's continuations.
        blocks: with its keys and values and those of the prompt.
        read: of its own tokens, those that the model has, or gets in this step.
    """

    prompt: _Prompt
    place: int
    blocks: list[int]
    read: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt.question.continuations[self.place]


@dataclass(slots=True)
class _Pieces:
    """What a step reads, and which tokens' log-probabilities its results tell."""

    step: Step = field(default_factory=lambda: Step([], [], [], [], [], []))
    # of each wanted row, the prompt and the place of the one continuation that it is of, or None
    told: list[tuple[_Prompt, int | None, int]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many of a step's at most are left."""
        return STEP_TOKENS - len(self.step.tokens)

    @property
    def wanted(self) -> int:
        """How many of the results at most are left."""
        return SEQUENCES - len(self.told)

    def add(self, tokens: Sequence[int], start: int, blocks: list[int], kind: int) -> None:
        """Read tokens of a text from this position on."""
        self.step.sequences.extend([len(self.step.block_tables)] * len(tokens))
        self.step.tokens.extend(tokens)
        self.step.positions.extend(range(start, start + len(tokens)))
        self.step.block_tables.append(blocks)
        self.step.tables.append(kind)

    def tell(self, row: int, prompt: _Prompt, place: int | None, token: int) -> None:
        """Ask for the logits of one of the last rows."""
        self.step.wanted.append(row)
        self.told.append((prompt, place, token))


class Scoring:
    """Questions that are answered together.

    Args:
        loaded: the model, which answers no other request meanwhile.
        questions: that fit into the context.

    Attributes:
        scores: of each question and continuation, the log-probability of each token, and that of
            the end behind them; None where the KV cache has no room.
    """

    def __init__(self, loaded: LoadedModel, questions: Sequence[Question]) -> None:
        self.scores: list[list[list[float]] | None] = [
            [[math.nan] * (len(tokens) + 1) for tokens in question.continuations]
            for question in questions
        ]
        self._loaded = loaded
        self._questions = questions
        prompts = [Request(question.prompt_ids) for question in questions]
        self._longest = sorted(prompts, key=lambda request: len(request.prompt_ids))[-1:]
        self._queue = deque(by_prefix(prompts))
        self._prompts: list[_Prompt] = []
        self._running: list[_Continuation] = []
        # as many blocks are left free as the largest continuation needs: so one can always go on
        self._reserve = max(map(_most_blocks, questions), default=0)

    def run(self) -> None:
        """Answer the questions.

        Raises:
            LibraryError: a step failed.
        """
        try:
            while self._queue or self._prompts:
                pieces = self._share_out()
                if pieces.step.tokens:
                    self._read(pieces)
        except BaseException:
            # known blocks may be those of a step that has not been
            self._loaded.blocks.reset()
            raise

    def _share_out(self) -> _Pieces:
        """The tokens of a step: first of continuations, then of prompts as they came."""
        pieces = _Pieces()
        for prompt in self._prompts:
            while prompt.read == len(prompt.question.prompt_ids) and prompt.waiting:
                if not self._begin_continuation(prompt):
                    break
        for continuation in self._running:
            self._read_continuation(pieces, continuation)
        for prompt in self._prompts:
            self._read_prompt(pieces, prompt)
        while pieces.rows and pieces.wanted and self._queue:
            begun = self._begin_prompt(self._queue[0])
            if begun is None:
                break
            self._queue.popleft()
            self._prompts.append(begun)
            self._read_prompt(pieces, begun)
        if not pieces.step.tokens and self._queue and not self._prompts:
            # alone, and there is no room for it
            self.scores[self._queue.popleft()] = None
        return pieces

    def _begin_prompt(self, index: int) -> _Prompt | None:
        question, blocks = self._questions[index], self._loaded.blocks
        prompt_ids = question.prompt_ids
        kind = self._loaded.kind(len(prompt_ids) + max(map(len, question.continuations)))
        known = blocks.find(prompt_ids, kind)
        needed = math.ceil(len(prompt_ids) / BLOCK_TOKENS)
        if blocks.room(known) < needed - len(known) + self._reserve:
            return None
        taken = blocks.take(known, needed)
        assert taken is not None
        count = len(question.continuations)
        read = len(known) * BLOCK_TOKENS
        return _Prompt(index, question, kind, taken, read, deque(range(count)), count)

    def _begin_continuation(self, prompt: _Prompt) -> bool:
        """Begin with a prompt's next continuation; returns whether there is room for it."""
        tokens = prompt.question.continuations[prompt.waiting[0]]
        length = len(prompt.question.prompt_ids)
        whole, rest = divmod(length, BLOCK_TOKENS)
        needed = math.ceil((length + len(tokens)) / BLOCK_TOKENS)
        blocks = self._loaded.blocks.take(prompt.blocks[:whole], needed)
        if blocks is None:
            return False
        if rest:
            self._loaded.model.copy_block(prompt.blocks[whole], blocks[whole])
        self._running.append(_Continuation(prompt, prompt.waiting.popleft(), blocks))
        return True

    def _read_prompt(self, pieces: _Pieces, prompt: _Prompt) -> None:
        prompt_ids, start = prompt.question.prompt_ids, prompt.read
        if start == len(prompt_ids) or not pieces.wanted:
            return
        prompt.read = end = start + min(len(prompt_ids) - start, pieces.rows)
        if end == start:
            return
        pieces.add(prompt_ids[start:end], start, prompt.blocks, prompt.kind)
        for place in range(start // BLOCK_TOKENS, end // BLOCK_TOKENS):
            self._loaded.blocks.fill(prompt.blocks, prompt_ids, place, prompt.kind)
        if end == len(prompt_ids):
            pieces.tell(len(pieces.step.tokens) - 1, prompt, None, 0)

    def _read_continuation(self, pieces: _Pieces, continuation: _Continuation) -> None:
        tokens, start = continuation.tokens, continuation.read
        count = min(len(tokens) - start, pieces.rows, pieces.wanted)
        if count == 0:
            return
        prompt = continuation.prompt
        position, row = len(prompt.question.prompt_ids) + start, len(pieces.step.tokens)
        pieces.add(tokens[start : start + count], position, continuation.blocks, prompt.kind)
        for offset in range(count):
            pieces.tell(row + offset, prompt, continuation.place, start + offset + 1)
        continuation.read += count

    def _read(self, pieces: _Pieces) -> None:
        """Let the model read, and write down what that tells."""
        with time_limit(self._longest, self._loaded.rules.limits):
            results = self._loaded.model.step(pieces.step, logits=True)
        assert results.logits is not None
        for (prompt, place, at), logits in zip(pieces.told, results.logits, strict=True):
            self._write_down(prompt, place, at, log_softmax(logits))
        for continuation in [each for each in self._running if each.read == len(each.tokens)]:
            self._running.remove(continuation)
            self._loaded.blocks.give_back(continuation.blocks)
            continuation.prompt.left -= 1
            if not continuation.prompt.left:
                self._prompts.remove(continuation.prompt)
                self._loaded.blocks.give_back(continuation.prompt.blocks)

    def _write_down(
        self, prompt: _Prompt, place: int | None, at: int, known: NDArray[np.float64]
    ) -> None:
        """Keep what the log-probabilities of all tokens say of continuations.

        Args:
            prompt: that was read.
            place: of the continuation; None where it is the prompt's end, behind which all begin.
            at: place of the token in the continuation, or its length, which is the end.
            known: of each token, behind what was read.
        """
        scores, continuations = self.scores[prompt.index], prompt.question.continuations
        assert scores is not None
        if place is None:
            for score, tokens in zip(scores, continuations, strict=True):
                score[0] = float(known[tokens[0]])
        elif at < len(continuations[place]):
            scores[place][at] = float(known[continuations[place][at]])
        else:
            scores[place][at] = self._loaded.rules.end_log_probability(known)


def _most_blocks(question: Question) -> int:
    """What the longest continuation needs beside its prompt's whole blocks."""
    rest = len(question.prompt_ids) % BLOCK_TOKENS
    return math.ceil((rest + max(map(len, question.continuations))) / BLOCK_TOKENS)
