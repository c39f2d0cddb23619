"""The requests of one call on their way through the library, step by step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phi3_batch.engines.chooser import TokenChooser, TokenRules
from phi3_batch.engines.native.kv_blocks import KVBlocks
from phi3_batch.engines.native.library import BLOCK_TOKENS, Model, Results, Step
from phi3_batch.engines.order import Queue
from phi3_batch.engines.time_limit import seconds_for, time_limit
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, Request
from phi3_batch.words import first_line

# Sequences at a time: products are as fast as they get with so many.
SEQUENCES = 128
# Tokens of a step at most, one of each sequence that generates, the others of prompts.
STEP_TOKENS = 512


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine has loaded.

    Attributes:
        name: of the engine.
        model: in the library.
        blocks: of its KV cache.
        switch: tokens of the longest text that has the first of two rotary embeddings; None where
            there is one.
        rules: by which tokens are chosen.
    """

    name: str
    model: Model
    blocks: KVBlocks
    switch: int | None
    rules: TokenRules

    def kind(self, tokens: int) -> int:
        """Which rotary embedding a text has that gets so long."""
        return int(self.switch is not None and tokens > self.switch)


@dataclass(slots=True)
class RunningSequence:
    """A request while it is answered.

    Attributes:
        index: of the request among all.
        request: what is answered.
        chooser: of the answer's tokens.
        kind: which rotary embedding it has.
        shares: whether it shares blocks with others: not if its rotary embedding may change.
        blocks: with its keys and values.
        tokens: of prompt and answer.
        read: tokens that the model has, or gets in this step.
    """

    index: int
    request: Request
    chooser: TokenChooser
    kind: int
    shares: bool
    blocks: list[int]
    tokens: list[int]
    read: int

    @property
    def unread(self) -> int:
        """Tokens that the model has to read before it tells the next one."""
        return len(self.tokens) - self.read


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of a sequence that a step reads, from ``start`` to ``end``."""

    sequence: RunningSequence
    start: int
    end: int


class Batch:
    """Sound requests that are answered together.

    A request begins when the KV cache holds it to its end, so that none is ever put back.

    Args:
        loaded: the model, which answers no other request meanwhile.
        requests: what is to be answered.

    Attributes:
        completions: of the requests, in their order; None for those that have none yet.
    """

    def __init__(self, loaded: LoadedModel, requests: Sequence[Request]) -> None:
        self.completions: list[Completion | None] = [None] * len(requests)
        self._loaded = loaded
        self._requests = requests
        limits = loaded.rules.limits
        self._max_tokens = [limits.max_new_tokens(request) for request in requests]
        self._queue = Queue(requests, self._max_tokens, BLOCK_TOKENS)
        self._running: list[RunningSequence] = []

    def run(self) -> None:
        """Answer the requests.

        Raises:
            LibraryError: a step failed.
        """
        try:
            self._run()
        except BaseException:
            # known blocks may be those of a step that has not been
            self._loaded.blocks.reset()
            raise

    def _run(self) -> None:
        limits = self._loaded.rules.limits
        # a step is one of many for each row, so it takes less than any of them may take in all
        longest = sorted(self._requests, key=lambda request: seconds_for([request], limits))[-1:]
        while self._running or self._queue.peek() is not None:
            pieces = self._share_out()
            if not pieces:  # all that began were over with what they had to begin with
                continue
            with time_limit(longest, limits):
                ended, results = self._step(pieces)
            for sequence, place in ended:
                self._take(sequence, results, place)

    def _share_out(self) -> list[Piece]:
        """The tokens of a step: first of those that generate, then of prompts as they came."""
        room = STEP_TOKENS
        pieces: list[Piece] = []
        for sequence in sorted(self._running, key=lambda sequence: sequence.unread):
            pieces += self._read(sequence, room)
            room = STEP_TOKENS - sum(piece.end - piece.start for piece in pieces)
        while room and len(self._running) < SEQUENCES and (index := self._queue.peek()) is not None:
            request = self._requests[index]
            if len(request.prompt_ids) > self._loaded.blocks.count * BLOCK_TOKENS:
                self.completions[index] = self._failed(request, _no_memory(request.prompt_ids))
                self._queue.pop()
                self._queue.release(index)
                continue
            started = self._start(index)
            if started is None:
                break
            self._queue.pop()
            self._running.append(started)
            if self._begin(started):
                pieces += self._read(started, room)
                room -= pieces[-1].end - pieces[-1].start
        # what has the same blocks is next to each other, and attended to together
        return sorted(pieces, key=lambda piece: piece.sequence.blocks)

    def _read(self, sequence: RunningSequence, room: int) -> list[Piece]:
        """Let a step read what there is room for."""
        start = sequence.read
        sequence.read = end = start + min(sequence.unread, room)
        prompt_ids = sequence.request.prompt_ids
        if start < len(prompt_ids):
            # The library keeps a step's keys and values before it attends: who shares them may
            # come in the same one.
            full = min(end, len(prompt_ids)) // BLOCK_TOKENS
            for place in range(start // BLOCK_TOKENS, full if sequence.shares else 0):
                self._loaded.blocks.fill(sequence.blocks, prompt_ids, place, sequence.kind)
            self._queue.release(sequence.index, end)
        return [Piece(sequence, start, end)] if end > start else []

    def _start(self, index: int) -> RunningSequence | None:
        """Begin with a request; None where others have the blocks that it needs."""
        loaded, request = self._loaded, self._requests[index]
        prompt_ids = request.prompt_ids
        most = len(prompt_ids) + self._max_tokens[index] - 1  # an answer's last token is not read
        kind = loaded.kind(len(prompt_ids))
        shares = kind == loaded.kind(most)
        known = loaded.blocks.find(prompt_ids, kind) if shares else []
        # one that needs more than all of them may still end sooner
        needed = min(math.ceil(most / BLOCK_TOKENS), loaded.blocks.count)
        blocks = loaded.blocks.take(known[:needed], needed)
        if blocks is None:
            return None
        return RunningSequence(
            index=index,
            request=request,
            chooser=loaded.rules.chooser(request),
            kind=kind,
            shares=shares,
            blocks=blocks,
            tokens=list(prompt_ids),
            read=len(known) * BLOCK_TOKENS,
        )

    def _step(self, pieces: Sequence[Piece]) -> tuple[list[tuple[RunningSequence, int]], Results]:
        """Read tokens; returns whose next one is known now, with its place in the results."""
        step = Step([], [], [], [], [], [])
        ended: list[tuple[RunningSequence, int]] = []
        for place, piece in enumerate(pieces):
            sequence = piece.sequence
            step.tokens.extend(sequence.tokens[piece.start : piece.end])
            step.positions.extend(range(piece.start, piece.end))
            step.sequences.extend([place] * (piece.end - piece.start))
            step.block_tables.append(sequence.blocks)
            step.tables.append(sequence.kind)
            if not sequence.unread:
                ended.append((sequence, len(ended)))
                step.wanted.append(len(step.tokens) - 1)
        by_logits = any(sequence.chooser.needs_logits for sequence, _ in ended)
        return ended, self._loaded.model.step(step, logits=by_logits)

    def _begin(self, sequence: RunningSequence) -> bool:
        """Let an answer begin as it has to; returns whether it goes on."""
        return self._append(sequence, sequence.chooser.begin)

    def _take(self, sequence: RunningSequence, results: Results, place: int) -> None:
        """Take a sequence's next token, and what has to come behind it."""

        def choose() -> list[int] | None:
            chooser = sequence.chooser
            if chooser.needs_logits:
                assert results.logits is not None
                return chooser.take(results.logits[place])
            return chooser.take_best(
                int(results.best[place]), float(results.log_probability[place])
            )

        self._append(sequence, choose)

    def _append(self, sequence: RunningSequence, choose: Callable[[], list[int] | None]) -> bool:
        """Append the tokens that are chosen, or end the sequence; returns whether it goes on."""
        try:
            new = choose()
            completion = sequence.chooser.completion() if new is None else None
        except Exception as error:  # what is wrong with one row's tokens is its misfortune
            completion = self._failed(sequence.request, first_line(error))
        else:
            if new is not None:
                sequence.tokens += new
                if len(sequence.tokens) > len(sequence.blocks) * BLOCK_TOKENS:
                    message = _no_memory(sequence.tokens)
                    completion = self._failed(sequence.request, message)
        if completion is None:
            if (kind := self._loaded.kind(len(sequence.tokens))) != sequence.kind:
                sequence.kind, sequence.read = kind, 0  # all keys are others now
            return True
        self.completions[sequence.index] = completion
        self._running.remove(sequence)
        self._loaded.blocks.give_back(sequence.blocks)
        self._queue.release(sequence.index)
        return False

    def _failed(self, request: Request, message: str) -> Completion:
        return Completion.failed(
            RowErrorCode.ENGINE_ERROR,
            f"{self._loaded.name}: {message}",
            prompt_tokens=len(request.prompt_ids),
        )


def _no_memory(tokens: Sequence[int]) -> str:
    return f"there is no memory for the keys and values of {len(tokens)} tokens"
