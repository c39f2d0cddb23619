"""The requests of one call on their way through OpenVINO GenAI, step by step."""

from collections.abc import Sequence

from phi3_batch.engines.base import CompletionBuilder, Limits
from phi3_batch.engines.kv_budget import BLOCK_TOKENS, blocks_for
from phi3_batch.engines.openvino_row import FEWEST_TOKENS, Companions, Row, failed, reason
from phi3_batch.engines.openvino_runtime import ContinuousBatchingPipeline
from phi3_batch.engines.order import Queue
from phi3_batch.engines.time_limit import seconds_for, time_limit
from phi3_batch.generation import Completion, Request
from phi3_batch.text import Tokenizer

# Requests in the runtime at a time, and about how many tokens of new prompts a step reads.
ROWS = 256
PROMPT_TOKENS = 512


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
        self._max_tokens = [limits.max_new_tokens(request) for request in requests]
        self._queue = Queue(requests, self._max_tokens, BLOCK_TOKENS if prefix_caching else None)
        self._rows: dict[int, Row] = {}
        self._companions = Companions(pipeline)

    def run(self) -> None:
        """Answer the requests.

        Raises:
            RuntimeError: a step failed; the runtime is of no more use, and nobody knows whose
                fault it is.
        """
        # a step is one of many for each row, so it takes less than any of them may take in all
        longest = sorted(self._requests, key=lambda one: seconds_for([one], self._limits))[-1:]
        while self._rows or self._queue.peek() is not None:
            self._admit()
            self._companions.join(self._rows.values())
            with time_limit(longest, self._limits):
                self._pipeline.step()
            self._collect()
        self._companions.leave()

    def _admit(self) -> None:
        prompt_tokens = 0
        # for the reason that FEWEST_TOKENS has
        just_read = {
            row.request.prompt_ids for row in self._rows.values() if row.tokens < FEWEST_TOKENS
        }
        while len(self._rows) < ROWS and (index := self._queue.peek()) is not None:
            request = self._requests[index]
            unread_tokens = self._queue.unread_tokens(index)
            # one that would need more than all of them may still end sooner
            needed = blocks_for(len(request.prompt_ids) + self._max_tokens[index])
            blocks = min(needed, self._blocks)
            if self._rows and (blocks > self._free_blocks or request.prompt_ids in just_read):
                break
            if prompt_tokens and prompt_tokens + unread_tokens > PROMPT_TOKENS:
                break
            self._queue.pop()
            try:
                self._rows[index] = self._start(request, self._max_tokens[index], blocks)
            except Exception as error:  # the runtime refuses this request, and no other
                self.completions[index] = failed(request, reason(error))
                self._queue.release(index)
            else:
                self._free_blocks -= blocks
                prompt_tokens += unread_tokens

    def _start(self, request: Request, max_tokens: int, blocks: int) -> Row:
        builder = CompletionBuilder(request, self._tokenizer, self._end_token_ids, max_tokens)
        return Row(self._pipeline, request, builder, max_tokens, blocks)

    def _collect(self) -> None:
        for index, row in list(self._rows.items()):
            row.read()
            if row.tokens or row.is_gone:
                self._queue.release(index)
            if row.is_gone:
                self.completions[index] = row.completion
                self._free_blocks += row.blocks
                del self._rows[index]
