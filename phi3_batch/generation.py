"""What goes into an engine and what comes out: plain frozen data, no behaviour of its own.

Nothing here knows of Spark, MLflow or a runtime; every other layer speaks in these types.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from phi3_batch.errors import InvalidParameterError, RowErrorCode

# Each stop string is looked for after every token, which a row with very many would make slow for
# the rows beside it. OpenAI's API takes 4.
MOST_STOP_STRINGS = 64
MOST_STOP_CHARACTERS = 1_000
TOO_MUCH_STOP = (
    f"stop may have {MOST_STOP_STRINGS} strings of {MOST_STOP_CHARACTERS:,} characters at most"
)

FinishReason = Literal["stop", "length"]

# As many as OpenAI's API takes: a row that asks for a million would hold up all others.
MOST_CHOICES = 128
# More than any context or vocabulary has, and in the whole numbers of every runtime.
_MOST_TOKENS = 2**31 - 1
_LARGEST_SEED = 2**63 - 1  # that a model's signature can hold


def check_choices(value: object) -> int:
    """The ``n`` of a chat, if it is one.

    Raises:
        InvalidParameterError: it is not a whole number from 1 to MOST_CHOICES.
    """
    # bool is an int to isinstance, and never what was meant
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_CHOICES:
        raise InvalidParameterError(f"n must be a whole number from 1 to {MOST_CHOICES}")
    return value


def _require_int(name: str, value: object, minimum: int, maximum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidParameterError(f"{name} must be a whole number, not {value!r}")
    if abs(value) > maximum:  # not shown: Python writes no number of thousands of digits
        raise InvalidParameterError(f"{name} must be from {minimum} to {maximum}")
    if value < minimum:
        raise InvalidParameterError(f"{name} must be {minimum} or above, not {value}")


def _require_number(name: str, value: object) -> None:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        # not math.isfinite, which fails on whole numbers beyond any float
        or not abs(value) <= sys.float_info.max
    ):
        raise InvalidParameterError(f"{name} must be a number, not {value!r}")


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How one completion is to be generated.

    The defaults are the defaults of the logged models and of the command line too.

    Attributes:
        max_tokens: the most tokens to generate, from 1 to 2**31 - 1; the context length may end it
            sooner.
        temperature: 0 is greedy decoding; above 0 the logits are divided by it and sampled.
        top_p: sample from the smallest set of tokens that holds this probability mass, in (0, 1].
        top_k: sample from the k likeliest tokens, up to 2**31 - 1; 0 means all of them.
        stop: strings that end the completion; the text is cut before the first one found. 64 at
            most, of 1,000 characters at most.
        seed: of the random numbers that sampling draws, from 0 to 2**63 - 1; an engine follows it
            to the letter, and the logged models derive each row's own from it.

    Raises:
        InvalidParameterError: a value is of the wrong type or out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _require_int("max_tokens", self.max_tokens, 1, _MOST_TOKENS)
        _require_int("top_k", self.top_k, 0, _MOST_TOKENS)
        _require_int("seed", self.seed, 0, _LARGEST_SEED)
        _require_number("temperature", self.temperature)
        if self.temperature < 0:
            raise InvalidParameterError(
                f"temperature must be 0 (greedy) or above, not {self.temperature}"
            )
        _require_number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise InvalidParameterError(
                f"top_p must be above 0 and at most 1 (1 keeps every token), not {self.top_p}"
            )
        if not isinstance(self.stop, tuple) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise InvalidParameterError("stop must be a list of strings, none of them empty")
        if len(self.stop) > MOST_STOP_STRINGS or any(
            len(text) > MOST_STOP_CHARACTERS for text in self.stop
        ):
            raise InvalidParameterError(TOO_MUCH_STOP)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time, so that equal prompts agree."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids, and how to answer it."""

    prompt_ids: tuple[int, ...]
    params: GenerationParams = GenerationParams()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request.

    ``completion_tokens`` counts what was generated without the end token, including the tokens
    of a stop string that ended it.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no completion. The message never quotes the prompt."""

    code: RowErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request, or the error that stands in its place.

    Attributes:
        text: the generated text, cut before a stop string; empty when there is an error.
        token_ids: the generated ids without the end token.
        finish_reason: "stop" (end token or stop string) or "length"; None with an error.
        usage: token counts; what was counted before the error, if there is one.
        error: None for an answered request.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    error: RowError | None = None

    @classmethod
    def failed(cls, code: RowErrorCode, message: str, prompt_tokens: int = 0) -> "Completion":
        """A completion that says why there is none."""
        return cls(usage=Usage(prompt_tokens=prompt_tokens), error=RowError(code, message))
