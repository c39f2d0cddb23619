"""Everything that can go wrong, in one place.

Two kinds, never mixed: a :class:`Phi3BatchError` ends the call (and, from the command line, the
job) with one line for the user; a :class:`RowErrorCode` is data, written beside the row it
belongs to, and costs no other row anything.

No message holds prompt or completion text: those are people's data.
"""

from enum import StrEnum


class Phi3BatchError(Exception):
    """Base of all errors raised on purpose. ``str(error)`` is one line fit to show to a user."""


class InvalidModelError(Phi3BatchError):
    """A model folder or a logged model is not what the caller says it is."""


class InvalidParameterError(Phi3BatchError):
    """A generation parameter is of the wrong type or out of range."""


class EngineError(Phi3BatchError):
    """The runtime could not load the model at all (a failing request is a row error instead)."""


class UnsupportedModelError(EngineError):
    """One runtime cannot run this model; another may."""


class TableError(Phi3BatchError):
    """An input or output table cannot be read or written as asked."""


class EnvironmentProblemError(Phi3BatchError):
    """Java, Delta's jars or another part of the machine's set-up is missing or too old."""


class ScoringError(Phi3BatchError):
    """The Spark job ended before the output was committed."""


class InputGoneError(ScoringError):
    """The version of the input that a run reads has been removed: the run cannot be finished."""


class SupersededError(ScoringError):
    """Another run has taken the output over, and this one may not write into it any more."""


class PromotionError(Phi3BatchError):
    """A model version failed its smoke score; its alias is where it was."""


class RowErrorCode(StrEnum):
    """Why one row has no completion: the ``code`` of the output table's ``error`` column."""

    NULL_PROMPT = "null_prompt"
    EMPTY_PROMPT = "empty_prompt"
    INVALID_TEXT = "invalid_text"
    INVALID_MESSAGES = "invalid_messages"
    INVALID_PARAMETER = "invalid_parameter"
    PROMPT_TOO_LONG = "prompt_too_long"
    ANSWER_CUT = "answer_cut"
    ENGINE_ERROR = "engine_error"
    WORKER_CRASHED = "worker_crashed"
