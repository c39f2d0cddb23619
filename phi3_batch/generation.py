"""What goes into an engine and what comes out: plain frozen data, no behaviour of its own.

Nothing here knows of Spark, MLflow or a runtime; every other layer speaks in these types.
"""

import sys
from dataclasses import dataclass
from typing import Literal, get_args

from phi3_batch.contract import ChoicesBy
from phi3_batch.errors import InvalidParameterError, RowErrorCode

# Each stop string is looked for after every token, which a row with very many would make slow for
# the rows beside it. OpenAI's API takes 4.
MOST_STOP_STRINGS = 64
MOST_STOP_CHARACTERS = 1_000
TOO_MUCH_STOP = (
    f"stop may have {MOST_STOP_STRINGS} strings of {MOST_STOP_CHARACTERS:,} characters at most"
)

FinishReason = Literal["stop", "length"]

# Of an answer that is one of some texts: each of them is read for every row.
MOST_ANSWERS = 10_000
# As by OpenAI's API, where -100 all but bans a token and 100 all but makes it the only one.
LARGEST_BIAS, MOST_BIASES = 100, 300

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
        repetition_penalty: above 1, makes less likely what prompt and completion have already, as
            in https://arxiv.org/abs/1909.05858 and in transformers; above 0.
        min_tokens: no end token is taken before so many tokens, as by transformers' min_new_tokens;
            where there is a constraint, it alone says when an answer ends.
        logit_bias: texts, each a token of the model, and what is added to its logit, from -100 to
            100; 300 at most, as by OpenAI's API.
        choices: texts of which the completion is one; 10,000 at most.
        choices_by: whether the likeliest of them is taken, or the one that is generated.
        json_schema: a JSON schema, as text, that the completion follows.
        regex: that the whole completion matches.
        logprobs: whether the tokens' log-probabilities are wanted.

    Raises:
        InvalidParameterError: a value is of the wrong type or out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    logit_bias: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()
    choices_by: ChoicesBy = "likelihood"
    json_schema: str = ""
    regex: str = ""
    logprobs: bool = False

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
        _require_number("repetition_penalty", self.repetition_penalty)
        if self.repetition_penalty <= 0:
            raise InvalidParameterError(
                f"repetition_penalty must be above 0 (1 is none), not {self.repetition_penalty}"
            )
        _require_int("min_tokens", self.min_tokens, 0, self.max_tokens)
        self._check_bias()
        self._check_answers()

    def _check_bias(self) -> None:
        """Raise for biases that there cannot be."""
        if len(self.logit_bias) > MOST_BIASES:
            raise InvalidParameterError(f"logit_bias may have {MOST_BIASES} texts at most")
        for text, bias in self.logit_bias:
            if not isinstance(text, str) or not text:
                raise InvalidParameterError("logit_bias has a text that is empty or no string")
            _require_number("logit_bias", bias)
            if abs(bias) > LARGEST_BIAS:
                raise InvalidParameterError(
                    f"logit_bias must be from -{LARGEST_BIAS} to {LARGEST_BIAS}, not {bias}"
                )

    def _check_answers(self) -> None:
        """Raise for what an answer cannot be asked to be."""
        if not isinstance(self.choices, tuple) or not all(
            isinstance(text, str) and text.strip() for text in self.choices
        ):
            raise InvalidParameterError("choices must be a list of strings, none of them empty")
        if len(set(self.choices)) < len(self.choices):
            raise InvalidParameterError("choices has a text twice")
        if len(self.choices) > MOST_ANSWERS:
            raise InvalidParameterError(f"choices may have {MOST_ANSWERS:,} texts at most")
        if self.choices_by not in get_args(ChoicesBy):
            raise InvalidParameterError("choices_by must be likelihood or generate")
        for name in ("json_schema", "regex"):
            if not isinstance(getattr(self, name), str):
                raise InvalidParameterError(f"{name} must be a string")
        given = [name for name in ("choices", "json_schema", "regex") if getattr(self, name)]
        if len(given) > 1:
            raise InvalidParameterError(f"give one of {' and '.join(given)}")
        if given and self.stop:
            raise InvalidParameterError(f"stop would cut what {given[0]} asks for: leave it out")

    @property
    def is_constrained(self) -> bool:
        """Whether not every text may be generated."""
        return bool(self.json_schema or self.regex or self.choices)

    @property
    def are_compared(self) -> bool:
        """Whether choices are compared by their likelihoods, and nothing is generated."""
        return bool(self.choices) and self.choices_by == "likelihood"

    @property
    def changes_logits(self) -> bool:
        """Whether a token is chosen by other logits than the model's."""
        return bool(
            self.is_constrained
            or self.repetition_penalty != 1
            or self.min_tokens
            or self.logit_bias
        )

    @property
    def needs_logits(self) -> bool:
        """Whether a token is chosen by all logits, as this package knows to, not each runtime."""
        return self.changes_logits or self.logprobs

    @property
    def has_details(self) -> bool:
        """Whether probabilities come with the completion."""
        return self.logprobs or self.are_compared

    @property
    def greedy(self) -> bool:
        """Whether the likeliest is taken each time, so that equal prompts agree."""
        return self.temperature == 0 or self.are_compared


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
        log_probabilities: of ``token_ids`` and the end token, if there is one, where they were
            asked for; each of the distribution that the token was chosen from.
        probabilities: of the request's choices, in their order, where they were compared.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    error: RowError | None = None
    log_probabilities: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    @classmethod
    def failed(cls, code: RowErrorCode, message: str, prompt_tokens: int = 0) -> "Completion":
        """A completion that says why there is none."""
        return cls(usage=Usage(prompt_tokens=prompt_tokens), error=RowError(code, message))
