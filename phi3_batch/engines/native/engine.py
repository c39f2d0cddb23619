"""The fast engine: our own library, many requests at a time, on every core.

A step of the model reads all of its weights, and that is what a step costs: so it serves as many
requests as the KV cache holds, and when one ends the next begins.
"""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phi3_batch.engines.base import Engine, Question
from phi3_batch.engines.chooser import TokenRules
from phi3_batch.engines.kv_budget import cache_blocks, claim_blocks
from phi3_batch.engines.native.batch import SEQUENCES, STEP_TOKENS, Batch, LoadedModel
from phi3_batch.engines.native.continuations import Scoring
from phi3_batch.engines.native.kv_blocks import KVBlocks
from phi3_batch.engines.native.library import (
    BLOCK_TOKENS,
    LibraryError,
    Model,
    Room,
    Step,
    instruction_sets,
)
from phi3_batch.engines.native.packed_model import PackedModel
from phi3_batch.engines.native.spec import KV_VALUE_BYTES, NATIVE
from phi3_batch.engines.threads import thread_count
from phi3_batch.errors import EngineError
from phi3_batch.generation import Completion, Request
from phi3_batch.model_files import ModelFolder


class NativeEngine(Engine):
    """Runs the int4 build of a Phi-3 model.

    A completion is the same bit by bit whatever else is in the batch, in whatever order requests
    come, and with any number of threads. Where a model has two rotary embeddings (LongRoPE), a text
    that becomes too long for the first is read again with the second.

    Args:
        folder: the model.
        packed: its packed weights.
        threads: defaults to :func:`~phi3_batch.engines.threads.thread_count`.
        instructions: a set of them, if it is not to be the fastest that the processor has.
        prefix_caching: whether an equal beginning of prompts is read once; off, every prompt is
            read whole (to measure what it is worth).
        memory_bytes: of the KV cache, if it is not to be found out.

    Raises:
        EngineError: the library cannot load the model.
    """

    def __init__(
        self,
        folder: ModelFolder,
        packed: PackedModel,
        *,
        threads: int | None = None,
        instructions: str | None = None,
        prefix_caching: bool = True,
        memory_bytes: int | None = None,
    ) -> None:
        instructions = instructions or instruction_sets()[0]
        self.name = f"{NATIVE.name} {instructions}"
        self.tokenizer = folder.tokenizer
        self.limits = folder.limits
        self._packed = packed
        if memory_bytes is None:
            blocks = claim_blocks(folder, KV_VALUE_BYTES, weight_copies=1)
        else:
            blocks = cache_blocks(folder, KV_VALUE_BYTES, memory_bytes)
        room = Room(
            threads=threads or thread_count(), rows=STEP_TOKENS, wanted=SEQUENCES, blocks=blocks
        )
        try:
            model = Model(packed.shape, room, instructions)
        except LibraryError as error:
            raise EngineError(f"{self.name} cannot load {folder.path}: {error}") from error
        self._loaded = LoadedModel(
            name=self.name,
            model=model,
            blocks=KVBlocks(blocks, shares_prefixes=prefix_caching),
            switch=packed.switch,
            rules=TokenRules(self.tokenizer, self.limits, frozenset(folder.end_token_ids)),
        )
        # two threads of a serving process would take each other's blocks
        self._lock = threading.Lock()
        if not np.isfinite(self.read_logits([0])).all():
            raise EngineError(
                f"{self.name} cannot load {folder.path}: the model's logits are not finite numbers"
            )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together, as many at a time as the KV cache holds to their ends."""
        completions = [self.limits.find_request_error(request) for request in requests]
        sound = [i for i, refused in enumerate(completions) if refused is None]
        with self._lock:
            batch = Batch(self._loaded, [requests[index] for index in sound])
            batch.run()
        for index, answer in zip(sound, batch.completions, strict=True):
            completions[index] = answer
        return [completion for completion in completions if completion is not None]

    def score(self, questions: Sequence[Question]) -> list[list[list[float]] | None]:
        """How likely continuations are; each prompt is read once for all of its own."""
        with self._lock:
            scoring = Scoring(self._loaded, questions)
            scoring.run()
        return scoring.scores

    def read_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What a text makes of each next token; shape ``(tokens, vocabulary)``."""
        blocks = self._loaded.blocks
        kind = self._loaded.kind(len(token_ids))
        with self._lock:
            taken = blocks.take([], -(-len(token_ids) // BLOCK_TOKENS))
            if taken is None:
                raise EngineError(f"{self.name}: there is no memory for {len(token_ids)} tokens")
            found = []
            for start in range(0, len(token_ids), SEQUENCES):
                part = list(token_ids[start : start + SEQUENCES])
                rows = list(range(len(part)))
                positions = [start + row for row in rows]
                step = Step(part, positions, [0] * len(part), [taken], [kind], rows)
                found.append(self._loaded.model.step(step, logits=True).logits)
            blocks.give_back(taken)
        return np.concatenate([logits for logits in found if logits is not None])
