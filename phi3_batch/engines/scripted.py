"""An engine without a model, for tests of what is around engines."""

from collections.abc import Callable, Sequence

from phi3_batch.engines.base import CompletionBuilder, Engine
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, Request
from phi3_batch.model_files import Limits
from phi3_batch.text import Tokenizer


class ScriptedEngine(Engine):
    """Answers each request with the token ids that a function gives for it.

    Everything else is real: context check, stop strings, end tokens, token counts, and one
    failing request failing alone.

    Args:
        tokenizer: any.
        script: the ids a model would generate for a request, end token included; what it raises
            becomes an engine error.
        end_token_ids: tokens that end a completion.
        context_length: tokens of prompt and completion together.
        vocab_size: token ids are below it.
    """

    name = "scripted"

    def __init__(
        self,
        tokenizer: Tokenizer,
        script: Callable[[Request], Sequence[int]],
        *,
        end_token_ids: frozenset[int] = frozenset(),
        context_length: int = 4096,
        vocab_size: int = 32064,
    ) -> None:
        self.tokenizer = tokenizer
        self.limits = Limits(context_length, vocab_size)
        self._script = script
        self._end_token_ids = end_token_ids

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer by the script."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        if refused := self.limits.find_request_error(request):
            return refused
        max_tokens = self.limits.max_new_tokens(request)
        builder = CompletionBuilder(request, self.tokenizer, self._end_token_ids, max_tokens)
        try:
            for token_id in self._script(request):
                if not builder.add(token_id):
                    return builder.build()
            raise ValueError("the script ended before the completion did")
        except Exception as error:  # as every engine does
            return Completion.failed(
                RowErrorCode.ENGINE_ERROR, str(error), prompt_tokens=len(request.prompt_ids)
            )
