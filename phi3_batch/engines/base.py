"""What every engine is: the contract the rest of the package is written against."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from phi3_batch.generation import Completion, FinishReason, Request, Usage
from phi3_batch.model_files import Limits
from phi3_batch.text import Tokenizer


class Engine(ABC):
    """One loaded model.

    Attributes:
        name: the runtime and its version, for logs and tracking.
        tokenizer: of the loaded model.
        limits: what no request gets past; the others are the runtime's.
    """

    name: str
    tokenizer: Tokenizer
    limits: Limits

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests: one completion for each, in the same order.

        A request that cannot be answered gets a completion with an error, and what happens to it
        changes nothing for the others; nor does a greedy result depend on what else is in the
        batch. Engines work in the order that suits them.
        """


class CompletionBuilder:
    """Collects the tokens of one completion and says when it is over.

    Args:
        request: what is being answered.
        tokenizer: turns tokens into text, to find stop strings and for the result.
        end_token_ids: tokens that end a completion and are not part of it.
        max_tokens: the most tokens to take.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        end_token_ids: frozenset[int],
        max_tokens: int,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._max_tokens = max_tokens
        self._token_ids: list[int] = []
        # decoding as the text grows costs time, and only stop strings need it
        self._stream = tokenizer.stream() if request.params.stop else None
        self._text: str | None = None
        self._finish_reason: FinishReason | None = None

    def add(self, token_id: int) -> bool:
        """Take the next token; returns whether the completion goes on."""
        if token_id in self._end_token_ids:
            self._finish_reason = "stop"
            return False
        self._token_ids.append(token_id)
        if self._stream and (end := self._find_stop(self._stream.append(token_id))) is not None:
            self._text = self._stream.text[:end]
            self._finish_reason = "stop"
            return False
        if len(self._token_ids) >= self._max_tokens:
            self._finish_reason = "length"
            return False
        return True

    def build(self) -> Completion:
        """The finished completion."""
        text = self._tokenizer.decode(self._token_ids) if self._text is None else self._text
        if self._finish_reason == "length":
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the first bytes of a character
        return Completion(
            text=text,
            token_ids=tuple(self._token_ids),
            finish_reason=self._finish_reason,
            usage=Usage(len(self._request.prompt_ids), len(self._token_ids)),
        )

    def _find_stop(self, new_text: str) -> int | None:
        """Where the first stop string begins, if the newest characters completed one."""
        assert self._stream is not None
        text = self._stream.text
        found = [
            position
            for stop in self._request.params.stop
            if (position := text.find(stop, max(0, len(text) - len(new_text) - len(stop)))) >= 0
        ]
        return min(found, default=None)
