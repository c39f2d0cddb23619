"""One row of a chat model: from what the caller gave to messages and parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from phi3_batch.contract import LOGIT_BIAS
from phi3_batch.errors import InvalidParameterError, RowErrorCode
from phi3_batch.generation import GenerationParams, Request, RowError, check_choices
from phi3_batch.text import ROLES, Message, find_character_error, is_null

_GENERATION_FIELDS = tuple(field.name for field in fields(GenerationParams))


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat to answer.

    Attributes:
        messages: its turns, the last one not the assistant's.
        params: how to answer; of the row, else the model's defaults.
        choices: how many answers to give, the ``n`` of the row.
    """

    messages: tuple[Message, ...]
    params: GenerationParams
    choices: int = 1

    def requests(self, prompt_ids: Sequence[int]) -> list[Request]:
        """What the engine has to answer: greedy choices are equal and asked for once.

        Sampled ones are equal too, until :func:`~phi3_batch.models.seeds.with_own_seeds` gives
        each its seed.
        """
        request = Request(tuple(prompt_ids), self.params)
        return [request] * (1 if self.params.greedy else self.choices)


def parse_chat(row: Mapping[str, Any], defaults: GenerationParams) -> Chat | RowError:
    """Read a row with ``messages`` and optional parameters, or say what is wrong with it.

    Null, NaN and a missing key all mean "not given", because that is how MLflow, pandas and Spark
    write it in turn. A message's ``name`` is ignored: chat templates have no place for it.
    """
    values = {name: _plain(value) for name, value in row.items()}
    given = {name: value for name, value in values.items() if not is_null(value)}
    messages = _parse_messages(given.get("messages"))
    if isinstance(messages, RowError):
        return messages
    if given.get("stream"):
        return _invalid_parameter("stream has no meaning in a batch: leave it out or give false")
    options = {name: value for name, value in given.items() if name in _GENERATION_FIELDS}
    try:
        choices = check_choices(_whole(given.get("n", 1)))
        return Chat(messages, parse_params(options, defaults), choices)
    except InvalidParameterError as error:
        return _invalid_parameter(str(error))


def parse_params(options: Mapping[str, Any], defaults: GenerationParams) -> GenerationParams:
    """Generation parameters from JSON-like values, and the defaults for what is not given.

    Raises:
        InvalidParameterError: a value is of the wrong type or out of range, or there is no
            parameter of that name.
    """
    values: dict[str, Any] = {}
    for name, given in options.items():
        value = _plain(given)
        if name not in _GENERATION_FIELDS:
            raise InvalidParameterError(
                f"there is no generation parameter {name!r}, but {', '.join(_GENERATION_FIELDS)}"
            )
        if name == LOGIT_BIAS:
            values[name] = parse_bias(value)
        elif name in ("stop", "choices"):
            values[name] = tuple(value) if isinstance(value, list | tuple) else value
        else:
            is_real = name in ("temperature", "top_p", "repetition_penalty")
            values[name] = value if is_real else _whole(value)
    return replace(defaults, **values)


def parse_bias(value: Any) -> tuple[tuple[str, float], ...]:
    """The ``logit_bias`` of a JSON object, as text or as it is, or of a list of pairs.

    Raises:
        InvalidParameterError: it is none of these.
    """
    try:
        given = json.loads(value) if isinstance(value, str) and value else value or {}
        return tuple((text, bias) for text, bias in (dict(given)).items())
    except (ValueError, TypeError):
        raise InvalidParameterError(
            "logit_bias must be a JSON object of texts and numbers"
        ) from None


def schema_of(response_format: Any) -> str:
    """The JSON schema of OpenAI's ``response_format``; empty where any text will do.

    https://platform.openai.com/docs/guides/structured-outputs

    Raises:
        InvalidParameterError: it is of another form.
    """
    given = response_format if isinstance(response_format, Mapping) else {}
    kind = given.get("type")
    if response_format is None or kind == "text":
        return ""
    if kind == "json_object":
        return json.dumps({"type": "object"})
    wrapped = given.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise InvalidParameterError(
            "response_format must have the type text, json_object or json_schema, the last with"
            " json_schema.schema"
        )
    return json.dumps(schema)


def _parse_messages(messages: Any) -> tuple[Message, ...] | RowError:
    if messages is None:
        return RowError(RowErrorCode.NULL_PROMPT, "the messages are null")
    if not isinstance(messages, list | tuple):
        return _invalid_messages(f"messages is a {type(messages).__name__}, not a list")
    if not messages:
        return _invalid_messages("the list of messages is empty")
    parsed = []
    for number, message in enumerate(messages, start=1):
        turn = _parse_message(number, message)
        if isinstance(turn, RowError):
            return turn
        parsed.append(turn)
    if parsed[-1].role == "assistant":
        return _invalid_messages("the last message is the assistant's: there is nothing to answer")
    if not parsed[-1].content.strip():
        return RowError(RowErrorCode.EMPTY_PROMPT, "the last message is empty or only white space")
    return tuple(parsed)


def _parse_message(number: int, message: Any) -> Message | RowError:
    if not isinstance(message, Mapping):
        return _invalid_messages(f"message {number} has no role and content")
    role, content = message.get("role"), _plain(message.get("content"))
    if not isinstance(role, str) or role not in ROLES:  # not quoted: it may be anything
        return _invalid_messages(f"message {number} has a role other than {', '.join(ROLES)}")
    if is_null(content):
        return _invalid_messages(f"message {number} has no content")
    if isinstance(content, list | tuple):
        content = _join_parts(content)
        if content is None:
            return _invalid_messages(f"message {number} has a part that is not text")
    if not isinstance(content, str):
        return _invalid_messages(
            f"the content of message {number} is a {type(content).__name__}, not a string"
        )
    if error := find_character_error(content):
        return RowError(error.code, f"message {number}: {error.message}")
    return Message(role, content)


def _join_parts(parts: Sequence[Any]) -> str | None:
    """The text of a content that is a list of parts; None where one of them is not of text.

    Nothing comes between the parts: what is sent is what was written.
    """
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    ]
    return "".join(texts) if len(texts) == len(parts) else None


def _plain(value: Any) -> Any:
    """A value without numpy, in which Spark's Arrow batches arrive."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _whole(value: Any) -> Any:
    """60.0 as 60: a column of whole numbers with gaps is one of floats in pandas."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _invalid_messages(message: str) -> RowError:
    return RowError(RowErrorCode.INVALID_MESSAGES, message)


def _invalid_parameter(message: str) -> RowError:
    return RowError(RowErrorCode.INVALID_PARAMETER, message)
