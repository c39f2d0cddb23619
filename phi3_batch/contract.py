"""What crosses between the driver of a job and the logged model that it scores with.

Spark's workers run the copy of this package that was logged with the model, and the driver runs
another, which may be older or newer. All that the two say to each other has its name here, and
nothing here may change its meaning: what would have to is a new :data:`PROTOCOL`.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd

# In the metadata of the models that we log: the release that logged it, and the number below.
RELEASE_KEY = "phi3_batch"
PROTOCOL_KEY = "phi3_batch_protocol"
# Of models logged before there was a number: 0, which is scored as 1 is, but for the name of the
# engine, which such a model does not tell.
PROTOCOL = 1

# MLflow's name for what a chat model does.
CHAT_TASK = "llm/v1/chat"

# Inputs of the models, and what a row of chats may give beside its messages.
PROMPT_INPUT = "prompt"
MESSAGES_INPUT = "messages"
CHAT_PARAMS = ("temperature", "max_tokens", "stop", "n")
STREAM = "stream"
# And what it may give to models that have params too: not in the signature of the bare form.
CHOICES = "choices"
MORE_CHAT_PARAMS = (CHOICES, "repetition_penalty", "min_tokens")
# Of texts and numbers: a JSON object as text, for MLflow has no type for it.
LOGIT_BIAS = "logit_bias"

# Whether the likeliest of some texts is the answer, or the one that is generated.
ChoicesBy = Literal["likelihood", "generate"]

# A param of the chat models that says of a schema as OpenAI's clients do.
RESPONSE_FORMAT = "response_format"

# Params of the chat models, beside what a row may give; the prompt model has them too. They shape
# an answer, or say how it is chosen.
MODEL_PARAMS = (
    *("top_p", "top_k", "seed", "repetition_penalty", "min_tokens", "logit_bias"),
    *("choices", "choices_by", "json_schema", "regex", "logprobs"),
)

# A param of the prompt model that asks for these columns in place of plain strings. A UDF of
# MLflow's cannot return nulls, so '' and 0 stand for them.
USAGE_PARAM = "usage"
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
USAGE_COLUMNS = ("completion", "finish_reason", *COUNTS, "error")
# What stands beside these where log-probabilities are asked for or choices are compared: of each
# token, and of each choice. Both are lists, empty for an error. A chat completion has the second,
# and the first with each of its choices, as OpenAI's API has it: logprobs.content[].logprob.
DETAILS = LOGPROBS, PROBABILITIES = "logprobs", "probabilities"

# Of a chat completion: its object, and that of a row which could not be answered.
COMPLETION_OBJECT = "chat.completion"
ERROR_OBJECT = "error"
# In the finish_reason of an error's one choice, between its code and its message.
REASON_SEPARATOR = ": "

# Environment variables of the workers. The first is set by the user or by the driver, and says
# which engine runs an ONNX build; the second by the driver, "1" where an answer that hangs is to
# end its process; the third by the model: its process and the engine that it has loaded there.
ENGINE_VARIABLE = "PHI3_BATCH_ENGINE"
TIME_LIMITS_VARIABLE = "PHI3_BATCH_TIME_LIMITS"
LOADED_ENGINE_VARIABLE = "PHI3_BATCH_LOADED_ENGINE"


@runtime_checkable
class PlannableModel(Protocol):
    """A model that can say what a job would take before it is begun."""

    def examine(self, model_input: Any, params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """What every row would take, without generating and without reading the weights.

        Returns:
            A row for each row, with prompt_tokens (0 where they are not known), max_tokens (the
            most that may be generated; 0 for a row that fails) and error, a dict of code and
            message, both empty where nothing is wrong.
        """

    def most_bytes(self) -> int | None:
        """Bytes of a row's text, white space aside, beyond which it cannot fit; None: unknown."""

    def memory_bytes(self, tokens: int) -> int:
        """About what a process takes at its peak whose longest request has so many tokens."""


def error_reason(code: str, message: str) -> str:
    """The finish_reason of a chat that could not be answered."""
    return f"{code}{REASON_SEPARATOR}{message}"


def split_reason(reason: str) -> tuple[str, str]:
    """Code and message of :func:`error_reason`."""
    code, _, message = reason.partition(REASON_SEPARATOR)
    return code, message


def model_metadata(release: str) -> dict[str, Any]:
    """What the metadata of a logged model says of the contract.

    Args:
        release: of this package.
    """
    return {RELEASE_KEY: release, PROTOCOL_KEY: PROTOCOL}


def is_ours(metadata: Mapping[str, Any] | None) -> bool:
    """Whether this package has logged a model, of any release, by its metadata."""
    return RELEASE_KEY in (metadata or {})


def find_newer_release(metadata: Mapping[str, Any] | None) -> str | None:
    """The release that has logged a model, where this one does not know how to talk to it."""
    known = metadata or {}
    protocol = known.get(PROTOCOL_KEY, 0)
    is_known = isinstance(protocol, int) and protocol <= PROTOCOL
    return None if is_known else str(known.get(RELEASE_KEY))


def tell_loaded_engine(name: str) -> None:
    """Say which engine this process has loaded, its name and version; not for its children."""
    os.environ[LOADED_ENGINE_VARIABLE] = f"{os.getpid()} {name}"


def loaded_engine() -> str | None:
    """Name and version of the engine that this process has loaded, if it has."""
    pid, _, name = os.environ.get(LOADED_ENGINE_VARIABLE, "").partition(" ")
    return name if pid == str(os.getpid()) else None
