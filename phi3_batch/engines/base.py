"""What every engine is: the contract the rest of the package is written against."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from phi3_batch.errors import EngineError
from phi3_batch.generation import Completion, FinishReason, Request, Usage
from phi3_batch.model_files import Limits
from phi3_batch.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and continuations of it that are to be compared.

    Attributes:
        prompt_ids: of the prompt.
        continuations: token ids of each, one at least.
    """

    prompt_ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


class Engine(ABC):
    """One loaded model.

    Attributes:
        name: the runtime and its version, for logs and tracking.
        tokenizer: of the loaded model.
        limits: what no request gets past; the others are the runtime's.
        chooses_tokens: whether it can follow what needs all logits of a token.
    """

    chooses_tokens = True

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

    def score(self, questions: Sequence[Question]) -> list[list[list[float]] | None]:
        """How likely continuations are.

        Args:
            questions: that fit into the context.

        Returns:
            For each question and continuation the log-probability of each token behind those
            before it, and that of the end behind them all; None where the runtime fails at it, or
            has no memory for it.

        Raises:
            EngineError: the runtime does not give its logits.
        """
        raise EngineError(f"{self.name} cannot compare choices: use another engine")


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

    def finish(self) -> None:
        """End the completion where no token has."""
        self._finish_reason = "stop"

    @property
    def is_cut(self) -> bool:
        """Whether the completion was ended by its length."""
        return self._finish_reason == "length"

    def build(self, log_probabilities: Sequence[float] = ()) -> Completion:
        """The finished completion.

        Args:
            log_probabilities: of its tokens, where they are wanted.
        """
        text = self._tokenizer.decode(self._token_ids) if self._text is None else self._text
        if self._finish_reason == "length":
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the first bytes of a character
        return Completion(
            text=text,
            token_ids=tuple(self._token_ids),
            finish_reason=self._finish_reason,
            usage=Usage(len(self._request.prompt_ids), len(self._token_ids)),
            log_probabilities=tuple(log_probabilities),
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
