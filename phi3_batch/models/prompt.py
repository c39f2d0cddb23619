"""The prompt model: ONNX int4, raw prompts in, text out."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from phi3_batch.contract import DETAILS, LOGIT_BIAS, PROMPT_INPUT, USAGE_COLUMNS, USAGE_PARAM
from phi3_batch.engines import Engine
from phi3_batch.engines.choices import answer
from phi3_batch.generation import Completion, GenerationParams, Request, RowError
from phi3_batch.model_files import Limits, ModelFolder
from phi3_batch.models.chats import parse_bias
from phi3_batch.models.details import probabilities
from phi3_batch.models.examine import examine_rows, most_bytes
from phi3_batch.models.seeds import with_own_seeds
from phi3_batch.models.shape import check_shape
from phi3_batch.models.weights import MODEL_ARTIFACT, LoggedWeights
from phi3_batch.text import Tokenizer, find_length_error, find_text_error

_logger = logging.getLogger(__name__)


class PromptModel(PythonModel):
    """Completes raw prompts, in which control tokens such as ``<|end|>`` mean what they say.

    Loading checks the files; the weights are read at the first predict, once in a process.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Check that the model's files are those that were logged.

        Raises:
            InvalidModelError: a file is missing or damaged.
            InvalidParameterError: the environment asks for an engine that there is not.
        """
        self._weights = LoggedWeights.open(context, MODEL_ARTIFACT, ModelFolder.open)
        self._folder = self._weights.folder

    # MLflow makes a schema of any other type hint on model_input, and warns where there is none
    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> list[str] | pd.DataFrame:
        """Complete every prompt, in the order given.

        Args:
            context: unused; what it holds was read when the model was loaded.
            model_input: a DataFrame with a column ``prompt``, which MLflow also makes of a dict
                with one prompt or a list of them under ``prompt``. Called without MLflow in
                between, that dict, a list of strings or one string will do.
            params: of :class:`~phi3_batch.generation.GenerationParams`, and ``usage``. Sampled
                prompts have seeds of their own, which derive from ``seed``, the prompt, and how
                many copies of it come before it in the call.

        Returns:
            One string for each prompt, empty where there is no completion. With ``usage``, a
            DataFrame with a row for each prompt and the columns completion, finish_reason,
            prompt_tokens, completion_tokens, total_tokens and error, a dict of code and message.
            Nothing in it is null, because MLflow's spark_udf turns None into 'None' and fails on
            null numbers: an answered row has an empty error code. With ``logprobs``, or where
            ``choices`` are compared, also logprobs, those of the tokens, and probabilities, a list
            of a dict of choice and probability for each choice.

        Raises:
            InvalidParameterError: a parameter is out of range.
            EngineError: the runtime cannot load the model.
        """
        generation_params = _generation_params(params, self._folder.tokenizer)
        engine = self._weights.engine(chooses_tokens=generation_params.needs_logits)
        completions = _complete(engine, _prompts(model_input), generation_params)
        if params and params.get(USAGE_PARAM):
            rows = [_usage_row(completion) for completion in completions]
            columns = list(USAGE_COLUMNS)
            if generation_params.has_details:
                choices = generation_params.choices
                rows = [
                    (*row, list(each.log_probabilities), probabilities(each, choices))
                    for row, each in zip(rows, completions, strict=True)
                ]
                columns += DETAILS
            return pd.DataFrame(rows, columns=columns)
        _warn_of_failures(completions)
        return [completion.text for completion in completions]

    def examine(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """What every prompt would take, without generating and without reading the weights.

        Args:
            model_input: as of :meth:`predict`.
            params: as of :meth:`predict`.

        Returns:
            A row for each prompt with prompt_tokens (0 where they are not known), max_tokens (the
            most that may be generated; 0 for a row that fails) and error, a dict of the code and
            message that predict would give; both are empty where nothing is wrong.

        Raises:
            InvalidParameterError: a parameter is out of range.
        """
        folder = self._folder
        prompts = _prompts(model_input)
        generation_params = _generation_params(params, folder.tokenizer)
        rows = _parse(prompts, folder.tokenizer, folder.limits, generation_params)
        return examine_rows(
            (row if isinstance(row, RowError) else [row] for row in rows), folder.limits
        )

    def most_bytes(self) -> int | None:
        """Bytes of a prompt, white space aside, beyond which it cannot fit, whatever its tokens.

        None where the tokenizer does not let that be said.
        """
        return most_bytes(self._folder.tokenizer, self._folder.limits)

    def memory_bytes(self, tokens: int) -> int:
        """About what a process takes at its peak that runs this model; good to a fifth or so.

        Args:
            tokens: of prompt and answer of the longest request, as if it were all prompt.
        """
        return self._weights.memory_bytes(tokens)


def _generation_params(params: Mapping[str, Any] | None, tokenizer: Tokenizer) -> GenerationParams:
    options = {name: value for name, value in (params or {}).items() if name != USAGE_PARAM}
    for name in ("stop", "choices"):
        if name in options:
            options[name] = tuple(options[name])
    if LOGIT_BIAS in options:
        options[LOGIT_BIAS] = parse_bias(options[LOGIT_BIAS])
    generation_params = GenerationParams(**options)
    check_shape(generation_params, tokenizer)
    return generation_params


def _prompts(model_input: Any) -> list[object]:
    if isinstance(model_input, pd.DataFrame | dict):
        model_input = model_input[PROMPT_INPUT]
    prompts = [model_input] if isinstance(model_input, str) else list(model_input)
    # MLflow makes one row, with the whole list in its cell, of {"prompt": ["a", "b"]}
    return prompts[0] if len(prompts) == 1 and isinstance(prompts[0], list) else prompts


def _complete(
    engine: Engine, prompts: Sequence[object], params: GenerationParams
) -> list[Completion]:
    """Answer the sound prompts in one call of the engine, and put the errors in their places."""
    rows = _parse(prompts, engine.tokenizer, engine.limits, params)
    requests = with_own_seeds(
        (str(prompt), [row])
        for prompt, row in zip(prompts, rows, strict=True)
        if isinstance(row, Request)
    )
    answers = iter(answer(engine, requests))
    return [Completion(error=row) if isinstance(row, RowError) else next(answers) for row in rows]


def _parse(
    prompts: Sequence[object], tokenizer: Tokenizer, limits: Limits, params: GenerationParams
) -> list[Request | RowError]:
    """A request for each prompt, or what is wrong with it."""
    return [
        find_text_error(prompt)
        or find_length_error([str(prompt)], tokenizer, limits.context_length)
        or Request(tuple(tokenizer.encode_prompt(str(prompt))), params)
        for prompt in prompts
    ]


def _usage_row(completion: Completion) -> tuple[object, ...]:
    """One row of USAGE_COLUMNS."""
    error, usage = completion.error, completion.usage
    return (
        completion.text,
        completion.finish_reason or "",
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        {"code": error.code.value if error else "", "message": error.message if error else ""},
    )


def _warn_of_failures(completions: Sequence[Completion]) -> None:
    codes = Counter(completion.error.code.value for completion in completions if completion.error)
    if codes:
        _logger.warning(
            "%d of %d prompts have no completion and give an empty string (%s);"
            " predict with params={'usage': True} says why row by row",
            codes.total(),
            len(completions),
            ", ".join(f"{code}: {count}" for code, count in codes.items()),
        )
