"""The model as a job sees it: what it is, what it wants, and whether it can be scored.

The model's URI is the seam. Nothing here knows how a model answers; any MLflow pyfunc with an
input ``prompt`` will do, ours or somebody else's, and our own models of ``messages``.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.types import ParamSpec

from phi3_batch import __version__
from phi3_batch.contract import (
    CHAT_PARAMS,
    CHAT_TASK,
    CHOICES,
    LOGIT_BIAS,
    MESSAGES_INPUT,
    MODEL_PARAMS,
    MORE_CHAT_PARAMS,
    PROMPT_INPUT,
    RESPONSE_FORMAT,
    STREAM,
    USAGE_PARAM,
    PlannableModel,
    find_newer_release,
    is_ours,
)
from phi3_batch.errors import InvalidModelError, InvalidParameterError
from phi3_batch.generation import GenerationParams
from phi3_batch.scoring.said import first_line
from phi3_batch.scratch import temporary_files_here


class ModelKind(Enum):
    """How a model answers, and so how its UDF is called and its result read."""

    CHAT = "chat completions"
    USAGE = "completions with usage"
    BARE = "completions only, logged without params"
    TEXT = "completions only"
    ONE_BY_ONE = "completions only, one row at a time"


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A logged model that was looked up, and not loaded yet.

    Attributes:
        uri: as the user gave it.
        resolved_uri: of the very version, where ``uri`` may come to mean another: what is loaded,
            and written beside each row.
        info: what MLflow knows of it.
    """

    uri: str
    resolved_uri: str
    info: Model

    @property
    def takes_messages(self) -> bool:
        """Whether it wants chats, not prompts."""
        signature = self.info.signature
        return signature is not None and MESSAGES_INPUT in signature.inputs.input_names()

    @property
    def row_params(self) -> tuple[str, ...]:
        """Parameters that a row of chats may give."""
        if not self.takes_messages:
            return ()
        inputs = self.info.signature.inputs.input_names()
        is_wrapped = self.is_plain_pipeline  # by a model of ours
        more = [name for name in MORE_CHAT_PARAMS if is_wrapped or name in inputs]
        return (*CHAT_PARAMS, *more)

    @property
    def is_plain_pipeline(self) -> bool:
        """Whether MLflow's own transformers flavor would answer, which fails under Spark."""
        return _is_plain_pipeline(self.info)


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """A logged model that has shown that it can be scored.

    Attributes:
        uri: as the user gave it.
        resolved_uri: of the very version, where ``uri`` may come to mean another: what is loaded,
            and written beside each row.
        served_uri: what Spark loads; another one where a plain pipeline was wrapped.
        kind: how it answers.
        params: generation parameters that hold for every row.
        defaults: what a row has that gives no parameter.
        plannable: what says how much a job will take; None for models that are not ours.
        row_params: names of the parameters that rows have of their own.
    """

    uri: str
    resolved_uri: str
    served_uri: str
    kind: ModelKind
    params: Mapping[str, Any]
    defaults: Mapping[str, Any]
    plannable: PlannableModel | None
    row_params: frozenset[str] = frozenset()

    @property
    def takes_messages(self) -> bool:
        """Whether it wants chats, not prompts."""
        return self.kind is ModelKind.CHAT

    @property
    def greedy(self) -> bool:
        """Whether rows without a temperature of their own are decoded greedily.

        Then equal requests have equal completions. A model that is not ours may do as it likes.
        """
        ours = self.kind not in (ModelKind.TEXT, ModelKind.ONE_BY_ONE)
        temperature = self.params.get("temperature", self.defaults["temperature"])
        return ours and (temperature == 0 or self.compares_choices)

    def all_greedy(self, *, by_rows: bool) -> bool:
        """Whether all rows are decoded greedily.

        Args:
            by_rows: whether a row may have a temperature of its own.
        """
        return self.compares_choices or (self.greedy and not by_rows)

    @property
    def compares_choices(self) -> bool:
        """Whether the likeliest of some texts is the answer, and nothing is generated."""
        by = self.params.get("choices_by", GenerationParams().choices_by)
        has_choices = CHOICES in self.row_params or bool(self.params.get(CHOICES))
        return has_choices and by == "likelihood"

    @property
    def has_details(self) -> bool:
        """Whether it is asked for probabilities too."""
        return self.compares_choices or bool(self.params.get("logprobs"))

    @property
    def counts_tokens(self) -> bool:
        """Whether token counts come with the completions."""
        return self.kind in (ModelKind.CHAT, ModelKind.USAGE)

    @property
    def most_bytes(self) -> int | None:
        """Bytes of a prompt, white space aside, beyond which no model of ours has room for it."""
        return self.plannable.most_bytes() if self.plannable else None

    @property
    def one_row_at_a_time(self) -> bool:
        """Whether it answers only the first row of a batch."""
        return self.kind is ModelKind.ONE_BY_ONE


def find_model(uri: str) -> FoundModel:
    """Look a model up.

    Args:
        uri: any that MLflow takes, ``models:/name@alias`` or ``runs:/...`` or a path.

    Raises:
        InvalidModelError: it is not there, or takes neither prompts nor chats.
    """
    try:
        resolved_uri = _resolve_version(uri)
        with temporary_files_here():
            # not get_model_info, which wants to find in the store what a folder is a copy of
            info = Model.load(resolved_uri)
    except (MlflowException, OSError) as error:
        raise InvalidModelError(
            f"no model {uri} in {mlflow.get_registry_uri()}: {first_line(error)}"
        ) from error
    except Exception as error:  # of a store's own client, which may be missing; of a damaged file
        raise InvalidModelError(
            f"the model {uri} cannot be looked up ({type(error).__name__}: {first_line(error)})"
        ) from error
    _check_inputs(uri, info)
    if uri.startswith("runs:/") and info.model_id:
        resolved_uri = f"models:/{info.model_id}"  # a run may log another model of that name later
    return FoundModel(uri, resolved_uri, info)


def check_params(found: FoundModel, options: Mapping[str, Any]) -> None:
    """See that a model has the parameters of these options.

    Raises:
        InvalidParameterError: it has not.
    """
    known = _known_params(found)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidParameterError(
            f"{found.uri} has no parameter {unknown[0]!r}, it takes"
            f" {', '.join(known) or 'none at all'}"
        )


def load_model(
    found: FoundModel,
    options: Mapping[str, Any],
    *,
    row_params: Iterable[str] = (),
    wrap_pipeline: Callable[[str], str],
    pilot_prompts: Callable[[], Sequence[str]],
) -> ScoringModel:
    """Load a model on the driver, and find out how it answers.

    Args:
        found: from :func:`find_model`.
        options: the generation parameters that the user gave, which :func:`check_params` has seen;
            the model's own defaults for others.
        row_params: names of those that rows have of their own.
        wrap_pipeline: makes a model that Spark can score of a plain pipeline, by its URI.
        pilot_prompts: gives two prompts of the table; called for models that are not ours, whose
            answers to them show how they take a batch.

    Raises:
        InvalidModelError: the model cannot be loaded, or does not answer every row.
        InvalidParameterError: the model cannot follow a parameter.
    """
    served_uri = found.resolved_uri
    if found.is_plain_pipeline:
        served_uri = wrap_pipeline(served_uri)
    model = _load(found.uri, served_uri)
    kind = _find_kind(found, model, pilot_prompts, options)
    plannable = _plannable(model)
    if plannable is not None:
        _check_params_together(found, plannable, options)
    config = model.model_config or {}
    defaults = asdict(GenerationParams()) | {"n": 1, STREAM: False} | dict(config)
    # null where the model's own holds
    specs = [spec for spec in _param_specs(found) if spec.default is not None]
    defaults |= {spec.name: spec.default for spec in specs}
    return ScoringModel(
        uri=found.uri,
        resolved_uri=found.resolved_uri,
        served_uri=served_uri,
        kind=kind,
        params=options,
        defaults={name: defaults[name] for name in (*(found.row_params or CHAT_PARAMS), STREAM)},
        plannable=plannable,
        row_params=frozenset(row_params),
    )


def _check_params_together(
    found: FoundModel, model: PlannableModel, options: Mapping[str, Any]
) -> None:
    """See that a model can follow what it takes: a schema may say what it cannot.

    Raises:
        InvalidParameterError: it cannot.
    """
    known = MODEL_PARAMS if found.is_plain_pipeline else [spec.name for spec in _param_specs(found)]
    params = {name: value for name, value in options.items() if name in known}
    column = MESSAGES_INPUT if found.takes_messages else PROMPT_INPUT
    model.examine(pd.DataFrame({column: []}), mlflow_params(params))


def _plannable(model: PyFuncModel) -> PlannableModel | None:
    try:
        answers = model.unwrap_python_model()  # type: ignore[no-untyped-call]  # MLflow's
    except MlflowException:  # of another flavor
        return None
    return answers if isinstance(answers, PlannableModel) else None


def _known_params(found: FoundModel) -> list[str]:
    """Names of the generation parameters that a job may set."""
    if found.is_plain_pipeline:  # which is wrapped by a model of ours
        return [*CHAT_PARAMS, *MODEL_PARAMS]
    of_chats = CHAT_PARAMS if found.takes_messages else ()
    specs = [spec.name for spec in _param_specs(found)]
    return [*of_chats, *(name for name in specs if name not in (USAGE_PARAM, RESPONSE_FORMAT))]


def _param_specs(found: FoundModel) -> list[ParamSpec]:
    signature = found.info.signature
    return list(signature.params) if signature and signature.params else []


def _find_kind(
    found: FoundModel,
    model: PyFuncModel,
    pilot_prompts: Callable[[], Sequence[str]],
    options: Mapping[str, Any],
) -> ModelKind:
    if found.takes_messages:
        return ModelKind.CHAT
    if any(spec.name == USAGE_PARAM for spec in _param_specs(found)):
        return ModelKind.USAGE
    if is_ours(found.info.metadata):
        return ModelKind.BARE
    return _pilot(found.uri, model, pilot_prompts(), options)


def _resolve_version(uri: str) -> str:
    """``models:/name@alias``, ``/latest`` or ``/Stage`` → ``models:/name/version``.

    Any other URI as it is; one of another registry (``models://…``) too.
    """
    if not uri.startswith("models:/") or uri.startswith("models://"):
        return uri
    client = mlflow.MlflowClient()
    parts = get_model_name_and_version(client, uri)  # type: ignore[no-untyped-call]  # MLflow's
    return f"models:/{'/'.join(map(str, parts))}"


def _is_plain_pipeline(info: Model) -> bool:
    flavor: Mapping[str, object] = info.flavors.get("transformers", {})
    return flavor.get("inference_task") == CHAT_TASK


def _check_inputs(uri: str, info: Model) -> None:
    if release := find_newer_release(info.metadata):
        raise InvalidModelError(
            f"{uri} was logged by phi3-batch {release}, and this release, {__version__}, is too old"
            " to score it: pip install --upgrade phi3-batch"
        )
    if "python_function" not in info.flavors:
        raise InvalidModelError(f"{uri} is not a pyfunc, its flavors are {', '.join(info.flavors)}")
    if info.signature is None:
        return  # the pilot will show
    inputs = info.signature.inputs
    names = ", ".join(map(str, inputs.input_names()))
    if MESSAGES_INPUT in inputs.input_names():
        if not _is_plain_pipeline(info) and not is_ours(info.metadata):
            raise InvalidModelError(
                f"{uri} takes messages and is neither one of ours nor a transformers pipeline"
                f" logged with task {CHAT_TASK}: log it with phi3-batch log chat or log pipeline"
            )
        return
    if PROMPT_INPUT not in inputs.input_names():
        raise InvalidModelError(
            f"{uri} has no input {PROMPT_INPUT!r} or {MESSAGES_INPUT!r}, its inputs are {names}"
        )
    if inputs.required_input_names() != [PROMPT_INPUT]:
        raise InvalidModelError(f"{uri} needs more inputs than {PROMPT_INPUT!r}: {names}")


def _load(uri: str, served_uri: str) -> PyFuncModel:
    try:
        with quiet_about_local_environment(), temporary_files_here():
            model: PyFuncModel = mlflow.pyfunc.load_model(served_uri)
            return model
    except Exception as error:  # a model's own code may raise anything
        raise InvalidModelError(f"{uri} cannot be loaded: {first_line(error)}") from error


def _pilot(
    uri: str, model: PyFuncModel, prompts: Sequence[str], params: Mapping[str, Any]
) -> ModelKind:
    """Let a model that is not ours answer two rows, and see whether it answers both.

    Tutorials write ``return answer(model_input["prompt"][0])``. In a batch such a model answers
    the first row alone; in batches of one row it is right.
    """
    if not prompts:
        return ModelKind.TEXT
    pair = [prompts[0], prompts[-1]]
    answers = _count_answers(uri, model, pair, params)
    if answers == len(pair):
        return ModelKind.TEXT
    if answers == 1 and _count_answers(uri, model, pair[1:], params) == 1:
        return ModelKind.ONE_BY_ONE
    raise InvalidModelError(
        f"{uri} gave {answers} results for {len(pair)} rows; its predict must return one string"
        " for each row"
    )


def _count_answers(
    uri: str, model: PyFuncModel, prompts: Sequence[str], params: Mapping[str, Any]
) -> int:
    try:
        result = model.predict(pd.DataFrame({PROMPT_INPUT: prompts}), params=mlflow_params(params))
    except Exception as error:  # not its text, nor its cause's: they may quote the prompt
        raise InvalidModelError(
            f"{uri} failed on a row of the table with {type(error).__name__}"
        ) from None
    return 1 if isinstance(result, str) else len(result)


def mlflow_params(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters in the types that MLflow knows: lists, not tuples, and text, not mappings."""
    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in params.items()
    }
    if LOGIT_BIAS in plain:
        plain[LOGIT_BIAS] = json.dumps(dict(plain[LOGIT_BIAS]))
    return plain or None


@contextmanager
def quiet_about_local_environment() -> Iterator[None]:
    """Without MLflow's warning that env_manager="local" uses the environment it runs in.

    It is meant: one environment for the job, checked by ``phi3-batch doctor``.
    """
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
