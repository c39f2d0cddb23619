"""The requests of one call on their way through OpenVINO GenAI, step by step."""

from collections.abc import Collection, Sequence

from phi3_batch.engines.base import CompletionBuilder
from phi3_batch.engines.kv_budget import BLOCK_TOKENS, blocks_for
from phi3_batch.engines.order import Queue, common_prefix_length
from phi3_batch.engines.ov.runtime import ContinuousBatchingPipeline
from phi3_batch.engines.ov.sequence import (
    FEWEST_TOKENS,
    FillerRequests,
    RunningSequence,
    failed,
    reason,
)
from phi3_batch.engines.time_limit import seconds_for, time_limit
from phi3_batch.generation import Completion, Request
from phi3_batch.model_files import Limits
from phi3_batch.text import Tokenizer

# Tokens of a step at most, one of each row that generates, the others of prompts. Multiplications
# with weights in four bits are fastest at whole multiples of 128, seen with AMX and OpenVINO's own
# layers: a step of 257 tokens takes 1.4 times as long as one of 256, and one of 512 takes 2.4
# times. Our own kernel has most of 256 too, whose sums fit into the second cache. So prompts are
# parted where a step is full. Logits differ a little then where a part is one token alone, or
# where less than five rows of the step generate (FillerRequests).
STEP_TOKENS = 256
# Requests in the runtime at a time: more would leave no room for prompts, and gain little.
SEQUENCES = 128


class Batch:
    """Sound requests that are answered together.

    A request enters the runtime when the KV cache holds it to its end, so that none is ever put
    back; and when it can share what others have read.

    Args:
        pipeline: the runtime, with no other request in it.
        requests: what is to be answered.
        limits: of the model.
        tokenizer: of the model.
        end_token_ids: tokens that end a completion.
        blocks: of the KV cache.
        prefix_caching: whether the runtime keeps the beginnings of prompts.

    Attributes:
        completions: of the requests, in their order; None for those that have none yet.
    """

    def __init__(
        self,
        pipeline: ContinuousBatchingPipeline,
        requests: Sequence[Request],
        *,
        limits: Limits,
        tokenizer: Tokenizer,
        end_token_ids: frozenset[int],
        blocks: int,
        prefix_caching: bool,
    ) -> None:
        self.completions: list[Completion | None] = [None] * len(requests)
        self._pipeline = pipeline
        self._requests = requests
        self._limits = limits
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._blocks = self._free_blocks = blocks
        self._prefix_caching = prefix_caching
        self._max_tokens = [limits.max_new_tokens(request) for request in requests]
        self._queue = Queue(requests, self._max_tokens, BLOCK_TOKENS if prefix_caching else None)
        self._running: dict[int, RunningSequence] = {}
        self._fillers = FillerRequests(pipeline)

    def run(self) -> None:
        """Answer the requests.

        Raises:
            RuntimeError: a step failed; the runtime is of no more use, and nobody knows whose
                fault it is.
        """
        # a step is one of many for each row, so it takes less than any of them may take in all
        by_time = sorted(self._requests, key=lambda request: seconds_for([request], self._limits))
        longest = by_time[-1:]
        while self._running or self._queue.peek() is not None:
            self._admit()
            self._fillers.join(self._running.values())
            with time_limit(longest, self._limits):
                self._pipeline.step()
            self._collect()
        self._fillers.leave()

    def _admit(self) -> None:
        reading = [sequence for sequence in self._running.values() if not sequence.tokens]
        new = [
            sequence.request.prompt_ids
            for sequence in self._running.values()
            if sequence.tokens < FEWEST_TOKENS
        ]
        # the runtime takes them in this order: tokens to generate, then prompts as they came
        room = STEP_TOKENS - (len(self._running) - len(reading)) - self._fillers.count
        for sequence in reading:  # of each a token at least, whatever was thought to be left
            room -= max(1, sequence.take(room))
        while len(self._running) < SEQUENCES and (index := self._queue.peek()) is not None:
            request = self._requests[index]
            prefill_tokens = self._queue.prefill_tokens(index)
            # one that would need more than all of them may still end sooner
            needed = blocks_for(len(request.prompt_ids) + self._max_tokens[index])
            blocks = min(needed, self._blocks)
            # a step has room for so much whatever rows there are
            is_whole = not request.params.greedy and prefill_tokens <= STEP_TOKENS - SEQUENCES
            is_full = blocks > self._free_blocks or room < (prefill_tokens if is_whole else 1)
            if self._running and (is_full or self._has_to_wait(index, new)):
                break
            self._queue.pop()
            try:
                sequence = self._start(index, blocks)
            except Exception as error:  # the runtime refuses this request, and no other
                self.completions[index] = failed(request, reason(error))
                self._queue.release(index)
            else:
                self._running[index] = sequence
                self._free_blocks -= blocks
                room -= sequence.take(room)

    def _has_to_wait(self, index: int, new: Collection[tuple[int, ...]]) -> bool:
        """Whether new prompts may be in the prefix cache as a beginning of this one, to no good.

        The runtime enters a prompt's blocks before it has computed them, the last one as far as
        it is filled; and FEWEST_TOKENS says what else is wrong with that.
        """
        if not self._prefix_caching:
            return False
        prompt_ids = self._requests[index].prompt_ids
        known_tokens = len(prompt_ids) - self._queue.prefill_tokens(index)
        shared = ((common_prefix_length(prompt_ids, other), len(other)) for other in new)
        return any(
            tokens == length or tokens >= known_tokens + BLOCK_TOKENS for tokens, length in shared
        )

    def _start(self, index: int, blocks: int) -> RunningSequence:
        request, max_tokens = self._requests[index], self._max_tokens[index]
        return RunningSequence(
            self._pipeline,
            request,
            CompletionBuilder(request, self._tokenizer, self._end_token_ids, max_tokens),
            max_tokens,
            blocks,
            prefill_tokens=self._queue.prefill_tokens(index),
            prefills_twice=self._prefix_caching
            and not request.params.greedy
            and len(request.prompt_ids) % BLOCK_TOKENS in (0, 1),
        )

    def _collect(self) -> None:
        is_alone = len(self._running) == 1
        for index, sequence in list(self._running.items()):
            sequence.read()
            if sequence.tokens or sequence.is_gone:
                self._queue.release(index)
            elif is_alone and self._queue.prefill_tokens(index) == len(sequence.request.prompt_ids):
                # nothing else was read, and it built on nothing: so much is certain
                self._queue.release(index, sequence.prefilled_tokens)
            if sequence.is_gone:
                self.completions[index] = sequence.completion
                self._free_blocks += sequence.blocks
                del self._running[index]
