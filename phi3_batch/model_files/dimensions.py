"""The sizes of a model: those that requests have to keep to, and those that take memory."""

from dataclasses import dataclass

from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, Request

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes of a model that requests have to keep to.

    Attributes:
        context_length: tokens of prompt and completion together that the model can hold.
        vocab_size: token ids are below it.
    """

    context_length: int
    vocab_size: int

    def find_request_error(self, request: Request) -> Completion | None:
        """The failed completion of a request no runtime should see, or None for a sound one.

        Runtimes answer a prompt beyond the context with garbage, or end the process.
        """
        length = len(request.prompt_ids)
        if length == 0:
            return Completion.failed(RowErrorCode.EMPTY_PROMPT, "the prompt has no tokens")
        if length >= self.context_length:
            return Completion.failed(
                RowErrorCode.PROMPT_TOO_LONG,
                f"{length} tokens leave no room in a context of {self.context_length}",
                prompt_tokens=length,
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self.vocab_size:
            return Completion.failed(
                RowErrorCode.ENGINE_ERROR,
                f"a token id is beyond the vocabulary of {self.vocab_size}:"
                " the tokenizer is another model's",
                prompt_tokens=length,
            )
        return None

    def max_new_tokens(self, request: Request) -> int:
        """How many tokens a sound request may get: its max_tokens, or what the context has left."""
        return min(request.params.max_tokens, self.context_length - len(request.prompt_ids))


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model that decide how much memory it takes while it runs."""

    layers: int
    key_value_heads: int
    head_size: int
    hidden_size: int

    @property
    def cache_values_per_token(self) -> int:
        """Keys and values of a token."""
        return self.layers * self.key_value_heads * self.head_size * 2

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of a token in float32, as onnxruntime-genai and torch keep them."""
        return self.cache_values_per_token * FLOAT32_BYTES
