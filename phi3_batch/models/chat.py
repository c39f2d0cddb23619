"""The chat model: ONNX int4, messages in, chat completions out."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from phi3_batch.contract import (
    CHOICES,
    COMPLETION_OBJECT,
    ERROR_OBJECT,
    LOGPROBS,
    PROBABILITIES,
    RESPONSE_FORMAT,
    error_reason,
)
from phi3_batch.engines.choices import answer
from phi3_batch.errors import RowErrorCode
from phi3_batch.generation import Completion, GenerationParams, Request, RowError, Usage
from phi3_batch.model_files import ModelFolder
from phi3_batch.model_files.folder import CheckedFolder
from phi3_batch.models.chats import Chat, parse_chat, parse_params, schema_of
from phi3_batch.models.details import choice_logprobs, probabilities
from phi3_batch.models.examine import examine_rows, most_bytes
from phi3_batch.models.seeds import with_own_seeds
from phi3_batch.models.shape import check_shape
from phi3_batch.models.weights import MODEL_ARTIFACT, LoggedWeights
from phi3_batch.text import RefusedChatError, find_length_error

# Beside the generation parameters in MLflow's model_config: what completions call the model.
MODEL_NAME_CONFIG = "model"
_ALWAYS = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")

_Answer = tuple[str, list[dict[str, Any]], dict[str, int]]


class ChatModel(PythonModel):
    """Answers chats, each row with its own parameters.

    Control tokens come from the chat template alone: content that spells one is text.

    Loading checks the files; the weights are read at the first predict, once in a process.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Check that the model's files are those that were logged.

        Raises:
            InvalidModelError: a file is missing or damaged.
            InvalidParameterError: model_config has a parameter that is out of range, or the
                environment asks for an engine that there is not.
        """
        self._weights = self._open_weights(context)
        self._folder = self._weights.folder
        config = dict(context.model_config or {})
        self._model_name = str(config.pop(MODEL_NAME_CONFIG, ""))
        self._defaults = parse_params(config, GenerationParams())

    def _open_weights(self, context: PythonModelContext) -> LoggedWeights:
        return LoggedWeights.open(context, MODEL_ARTIFACT, ModelFolder.open)

    # MLflow makes a schema of any other type hint on model_input, and warns where there is none
    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Answer every chat, in the order given.

        Sampled choices have seeds of their own, which derive from the model's seed, the chat, and
        how many choices for copies of it (messages, parameters and n alike) come before in the
        call.

        Args:
            context: unused; what it holds was read when the model was loaded.
            model_input: a DataFrame with a column ``messages`` and, where wanted, ``temperature``,
                ``max_tokens``, ``stop``, ``n``, ``stream``, ``choices``, ``repetition_penalty`` and
                ``min_tokens``. MLflow makes one of a dict with these keys; called without MLflow in
                between, a dict or a list of them will do.
            params: of MODEL_PARAMS, for all rows; None is the model's own. The bare form has none.

        Returns:
            A chat completion for each row: ``id``, ``object``, ``created`` (seconds since 1970),
            ``model``, ``choices`` and ``usage``; with ``logprobs``, or where texts of ``choices``
            are compared or may be, also ``probabilities``, a list of a dict of choice and
            probability for each text, and in each choice ``logprobs``. A row that could not be
            answered has the object ``error`` and one choice without content, whose finish_reason
            is the error code and message, as in ``invalid_messages: message 2 has no content``.

        Raises:
            InvalidParameterError: a parameter of all rows is out of range.
            EngineError: the runtime cannot load the model.
        """
        defaults, given = self._params(params), _rows(model_input)
        rows = self._parse(given, defaults)
        needs_logits = any(request.params.needs_logits for _, group in rows for request in group)
        engine = self._weights.engine(chooses_tokens=needs_logits)
        together = with_own_seeds(
            (chat.messages, group) for chat, group in rows if isinstance(chat, Chat)
        )
        completions = iter(answer(engine, together))
        created = int(time.time())
        answered = [list(islice(completions, len(group))) for _, group in rows]
        answers = [_answer(chat, group) for (chat, _), group in zip(rows, answered, strict=True)]
        made: list[dict[str, Any]] = [
            {
                "id": f"chatcmpl-{uuid.uuid4()}",
                "object": kind,
                "created": created,
                "model": self._model_name,
                "choices": choices,
                "usage": usage,
            }
            for kind, choices, usage in answers
        ]
        if defaults.has_details or any(CHOICES in row for row in given):
            for completion, (chat, _), group in zip(made, rows, answered, strict=True):
                self._add_details(completion, chat, group)
        return made

    def examine(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """What every chat would take, without generating and without reading the weights.

        Args:
            model_input: as of :meth:`predict`.
            params: as of :meth:`predict`.

        Returns:
            A row for each chat with prompt_tokens (0 where they are not known), max_tokens (the
            most that may be generated: for all sampled choices, once for greedy ones, 0 for a row
            that fails) and error, a dict of the code and message that predict would give; both
            are empty where nothing is wrong.

        Raises:
            InvalidModelError: the model has no chat template that can be read.
            InvalidParameterError: a parameter is out of range.
        """
        return examine_rows(
            (
                chat if isinstance(chat, RowError) else group
                for chat, group in self._parse(_rows(model_input), self._params(params))
            ),
            self._folder.limits,
        )

    def _add_details(
        self, completion: dict[str, Any], chat: Chat | RowError, answers: Sequence[Completion]
    ) -> None:
        """Add to a chat completion how sure the model is."""
        failed = completion["object"] == ERROR_OBJECT
        for index, choice in enumerate(completion["choices"]):
            # greedy choices are equal, and were asked for once
            answer = Completion() if failed else answers[min(index, len(answers) - 1)]
            choice[LOGPROBS] = choice_logprobs(answer, self._folder.tokenizer)
        texts = () if failed or isinstance(chat, RowError) else chat.params.choices
        completion[PROBABILITIES] = probabilities(answers[0], texts) if texts else []

    def _params(self, given: Mapping[str, Any] | None) -> GenerationParams:
        """What holds for rows that do not say otherwise."""
        # a list has no null in MLflow's schemas
        wanted = {
            name: list(value) if name == CHOICES else value
            for name, value in (given or {}).items()
            if value is not None and not (name == CHOICES and len(value) == 0)
        }
        if schema := schema_of(wanted.pop(RESPONSE_FORMAT, None)):
            wanted["json_schema"] = schema
        params = parse_params(wanted, self._defaults)
        check_shape(params, self._folder.tokenizer)
        return params

    def _parse(
        self, rows: Sequence[Mapping[str, Any]], defaults: GenerationParams
    ) -> list[tuple[Chat | RowError, list[Request]]]:
        return [_parse(row, self._folder, defaults) for row in rows]

    def most_bytes(self) -> int | None:
        """Bytes of a chat's contents, white space aside, beyond which it cannot fit.

        None where the tokenizer does not let that be said.
        """
        return most_bytes(self._folder.tokenizer, self._folder.limits)

    def memory_bytes(self, tokens: int) -> int:
        """About what a process takes at its peak that runs this model; good to a fifth or so.

        Args:
            tokens: of prompt and answer of the longest request, as if it were all prompt.
        """
        return self._weights.memory_bytes(tokens)


def chat_config(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """MLflow's model_config for a chat model.

    Args:
        name: what completions call the model.
        params: of :class:`~phi3_batch.generation.GenerationParams`, for rows that give none.

    Raises:
        InvalidParameterError: a parameter is unknown or out of range.
    """
    checked = asdict(parse_params(params, GenerationParams()))
    # What models always had, given or not, for load_model(model_config=...) overrides what is there
    # alone; what came later only where it is given: an earlier release's driver knows no more.
    kept = {name: value for name, value in checked.items() if name in params or name in _ALWAYS}
    # by way of JSON, for MLflow writes YAML and takes neither tuples nor numpy's numbers
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain | {MODEL_NAME_CONFIG: name}


def _parse(
    row: Mapping[str, Any], folder: CheckedFolder, defaults: GenerationParams
) -> tuple[Chat | RowError, list[Request]]:
    """A row's chat, or what is wrong with it, and the requests that it comes to."""
    chat = parse_chat(row, defaults)
    if isinstance(chat, RowError):
        return chat, []
    contents = (message.content for message in chat.messages)
    if error := find_length_error(contents, folder.tokenizer, folder.limits.context_length):
        return error, []
    try:
        return chat, chat.requests(folder.chat_template.encode(chat.messages))
    except RefusedChatError as error:
        return RowError(RowErrorCode.INVALID_MESSAGES, str(error)), []


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pd.DataFrame):
        return model_input.to_dict("records")  # type: ignore[return-value]  # names are strings
    return [model_input] if isinstance(model_input, Mapping) else list(model_input)


def _answer(chat: Chat | RowError, answers: Sequence[Completion]) -> _Answer:
    """Object, choices and usage of a row's completion."""
    if isinstance(chat, RowError):
        return _failure(chat, Usage())
    for completion in answers:
        if completion.error:
            return _failure(completion.error, completion.usage)
    if chat.params.greedy:
        answers = [*answers] * chat.choices
    generated = sum(completion.usage.completion_tokens for completion in answers)
    choices = [
        _choice(index, completion.finish_reason or "", completion.text)
        for index, completion in enumerate(answers)
    ]
    return COMPLETION_OBJECT, choices, _usage(Usage(answers[0].usage.prompt_tokens, generated))


def _failure(error: RowError, usage: Usage) -> _Answer:
    # A choice all the same: choices[0] of no choices fails a whole Spark job
    choices = [_choice(0, error_reason(error.code.value, error.message), "")]
    return ERROR_OBJECT, choices, _usage(usage)


def _choice(index: int, finish_reason: str, content: str) -> dict[str, Any]:
    # `name` is in the signature, and MLflow's spark_udf fails where a key of it is missing
    message = {"role": "assistant", "content": content, "name": None}
    return {"index": index, "finish_reason": finish_reason, "message": message}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
