"""The model as Spark sees it: what it is, whether it can be scored, and its UDF.

The model's URI is the seam. Nothing here knows how a model answers; any MLflow pyfunc with an
input ``prompt`` will do, ours or somebody else's.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from mlflow.pyfunc import PyFuncModel
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from phi3_batch.errors import InvalidModelError, InvalidParameterError
from phi3_batch.scoring import schema
from phi3_batch.scoring.tables import first_line

PROMPT_INPUT = "prompt"
USAGE_PARAM = "usage"

# An error of MLflow's schema enforcement quotes the data, unless this is set.
_NO_DATA_IN_ERRORS = {"MLFLOW_DISABLE_SCHEMA_DETAILS": "true"}


class ModelKind(Enum):
    """How a model answers, and so how its UDF is called and its result read."""

    USAGE = "completions with usage"
    BARE = "completions only, logged without params"
    TEXT = "completions only"
    ONE_BY_ONE = "completions only, one row at a time"


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """A logged model that has shown that it can be scored.

    Attributes:
        uri: as the user gave it.
        resolved_uri: of the very version, where ``uri`` is an alias: written beside each row.
        kind: how it answers.
        params: what its predict is called with.
    """

    uri: str
    resolved_uri: str
    kind: ModelKind
    params: Mapping[str, Any]

    @property
    def counts_tokens(self) -> bool:
        """Whether token counts come with the completions."""
        return self.kind is ModelKind.USAGE

    @property
    def one_row_at_a_time(self) -> bool:
        """Whether it answers only the first row of a batch."""
        return self.kind is ModelKind.ONE_BY_ONE


def open_model(
    uri: str, options: Mapping[str, Any], pilot_prompts: Callable[[], Sequence[str]]
) -> ScoringModel:
    """Look a model up, load it on the driver, and find out how it answers.

    Args:
        uri: any that MLflow takes, ``models:/name@alias`` or ``runs:/...`` or a path.
        options: the generation parameters that the user gave; the model's own defaults for others.
        pilot_prompts: gives two prompts of the table; called for models that are not ours, whose
            answers to them show how they take a batch.

    Raises:
        InvalidModelError: the model is not there, cannot be loaded, or is no model of prompts.
        InvalidParameterError: the model has no parameter of an option's name.
    """
    resolved_uri = _resolve_alias(uri)
    info = _find(resolved_uri)
    _check_inputs(uri, info)
    takes = info.signature.params if info.signature else None
    known = [spec.name for spec in takes] if takes else []
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidParameterError(
            f"{uri} has no parameter {unknown[0]!r}, it takes {', '.join(known) or 'none at all'}"
        )
    model = _load(uri, resolved_uri)
    if USAGE_PARAM in known:
        params = {**options, USAGE_PARAM: True}
        return ScoringModel(uri, resolved_uri, ModelKind.USAGE, params)
    if "phi3_batch" in (info.metadata or {}):
        return ScoringModel(uri, resolved_uri, ModelKind.BARE, options)
    kind = _pilot(uri, model, pilot_prompts(), options)
    return ScoringModel(uri, resolved_uri, kind, options)


def result_columns(
    spark: SparkSession, model: ScoringModel, prompt: Column
) -> tuple[Column, Callable[[Column], dict[str, Column]]]:
    """The model's UDF over a column of prompts, and how its result becomes output columns.

    The two come apart because the result must be a column of its own first: Spark runs a UDF
    again for every expression that it is part of.
    """
    with _quiet_about_local_environment():
        udf = mlflow.pyfunc.spark_udf(
            spark,
            model.resolved_uri,
            result_type=schema.USAGE_RESULT if model.counts_tokens else "string",
            env_manager="local",
            params=_mlflow_params(model.params),
            extra_env=_NO_DATA_IN_ERRORS,
        )
    readers = {
        ModelKind.USAGE: schema.columns_from_usage,
        ModelKind.BARE: schema.columns_from_bare_text,
        ModelKind.TEXT: schema.columns_from_text,
        ModelKind.ONE_BY_ONE: schema.columns_from_text,
    }
    # in a struct the column has its name, which a model without signature would not see otherwise
    return udf(F.struct(prompt.alias(PROMPT_INPUT))), readers[model.kind]


@contextmanager
def batches_for(spark: SparkSession, model: ScoringModel) -> Iterator[None]:
    """Arrow batches as the model needs them while Spark jobs run in the ``with`` block.

    Spark calls predict once for each batch; batches of one row are what makes it see one row.
    """
    if not model.one_row_at_a_time:
        yield
        return
    setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(setting)
    spark.conf.set(setting, "1")
    try:
        yield
    finally:
        spark.conf.set(setting, str(before))


def _resolve_alias(uri: str) -> str:
    """``models:/name@alias`` → ``models:/name/version``; any other URI as it is."""
    if not uri.startswith("models:/") or "@" not in uri:
        return uri
    name, alias = uri.removeprefix("models:/").rsplit("@", 1)
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise InvalidModelError(f"no model {uri} in {mlflow.get_registry_uri()}") from error
    return f"models:/{name}/{found.version}"


def _find(uri: str) -> ModelInfo:
    try:
        return mlflow.models.get_model_info(uri)
    except (MlflowException, OSError) as error:
        raise InvalidModelError(
            f"no model {uri} in {mlflow.get_registry_uri()}: {first_line(error)}"
        ) from error


def _check_inputs(uri: str, info: ModelInfo) -> None:
    if "python_function" not in info.flavors:
        raise InvalidModelError(f"{uri} is not a pyfunc, its flavors are {', '.join(info.flavors)}")
    if info.signature is None:
        return  # the pilot will show
    inputs = info.signature.inputs
    names = ", ".join(map(str, inputs.input_names()))
    if PROMPT_INPUT not in inputs.input_names():
        raise InvalidModelError(f"{uri} has no input {PROMPT_INPUT!r}, its inputs are {names}")
    if inputs.required_input_names() != [PROMPT_INPUT]:
        raise InvalidModelError(f"{uri} needs more inputs than {PROMPT_INPUT!r}: {names}")


def _load(uri: str, resolved_uri: str) -> PyFuncModel:
    try:
        with _quiet_about_local_environment():
            model: PyFuncModel = mlflow.pyfunc.load_model(resolved_uri)
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
        result = model.predict(pd.DataFrame({PROMPT_INPUT: prompts}), params=_mlflow_params(params))
    except Exception as error:  # not its text, which may quote the prompt
        raise InvalidModelError(
            f"{uri} failed on a row of the table with {type(error).__name__}"
        ) from error
    return 1 if isinstance(result, str) else len(result)


def _mlflow_params(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters in the types that MLflow knows: lists, not tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in params.items()
    } or None


@contextmanager
def _quiet_about_local_environment() -> Iterator[None]:
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
