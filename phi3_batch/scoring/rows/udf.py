"""MLflow's UDF of a model, and how its result becomes columns."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from pyspark.cloudpickle import register_pickle_by_value
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StringType, StructField, StructType

from phi3_batch import contract
from phi3_batch.contract import (
    ENGINE_VARIABLE,
    MESSAGES_INPUT,
    TIME_LIMITS_VARIABLE,
    USAGE_PARAM,
    loaded_engine,
)
from phi3_batch.errors import EnvironmentProblemError, InvalidParameterError
from phi3_batch.scoring.compat import JVM_GONE_ERRORS
from phi3_batch.scoring.rows import schema
from phi3_batch.scoring.rows.columns import OURS, named
from phi3_batch.scoring.rows.idle_limit import IDLE_LIMIT, first_limit
from phi3_batch.scoring.rows.model import (
    ModelKind,
    ScoringModel,
    mlflow_params,
    quiet_about_local_environment,
)
from phi3_batch.scoring.rows.requests import chat_requests, with_stand_ins
from phi3_batch.scratch import temporary_files_here

# An error of MLflow's schema enforcement quotes the data, unless this is set.
_NO_DATA_IN_ERRORS = {"MLFLOW_DISABLE_SCHEMA_DETAILS": "true"}
# In a job, a row that hangs in native code ends its process, and the job finds the row.
_WORKER_ENV = _NO_DATA_IN_ERRORS | {TIME_LIMITS_VARIABLE: "1"}

# what asks for the engine travels to the workers, whatever release is there
register_pickle_by_value(contract)  # type: ignore[no-untyped-call]

# Fields of a result: text, of a model that gives nothing else, and what has answered.
TEXT = "text"
ENGINE = f"{OURS}engine"
_TEXT_RESULT = StructType([StructField(TEXT, StringType())])

_KILL_IDLE = "spark.sql.execution.pyspark.udf.killOnIdleTimeout"

_RESULT_TYPES: dict[ModelKind, StructType | str] = {
    ModelKind.CHAT: schema.CHAT_COMPLETION,
    ModelKind.USAGE: schema.USAGE_RESULT,
}
_READERS: dict[ModelKind, Callable[[Column], dict[str, Column]]] = {
    ModelKind.CHAT: schema.columns_from_chat,
    ModelKind.USAGE: schema.columns_from_usage,
    ModelKind.BARE: lambda result: schema.columns_from_bare_text(result[TEXT]),
    ModelKind.TEXT: lambda result: schema.columns_from_text(result[TEXT]),
    ModelKind.ONE_BY_ONE: lambda result: schema.columns_from_text(result[TEXT]),
}


class ModelUdf(NamedTuple):
    """A model's UDF, in two parts.

    The result must be a column of its own before it is read: Spark runs a UDF again for every
    expression that it is part of.

    Attributes:
        ask: the model's result for a struct of its inputs, and in the field ENGINE the name and
            version of the engine that gave it, or null where the model does not tell.
        read: the output columns of a result, which is given without ENGINE.
    """

    ask: Callable[[Column], Column]
    read: Callable[[Column], dict[str, Column]]


def model_udf(spark: SparkSession, model: ScoringModel) -> ModelUdf:
    """The UDF of a model; takes seconds, for MLflow copies the model twice.

    On a cluster, each call ships the model.

    Raises:
        EnvironmentProblemError: there is no room for the copies.
    """
    udf = _mlflow_udf(spark, model, _WORKER_ENV)
    return ModelUdf(_telling_engine(udf), _READERS[model.kind])


def chat_udf(spark: SparkSession, model: ScoringModel) -> Callable[..., Column]:
    """A function of columns that gives chat completions, whatever the rows hold.

    MLflow's own UDF fails a whole batch for one null; this one fills nulls in, and keeps from the
    model the rows that MLflow would refuse. They come out as what the model gives for a chat it
    cannot answer: the object ``error``, with the reason as finish_reason.

    Raises:
        EnvironmentProblemError: there is no room for MLflow's copies of the model.
    """
    udf = _mlflow_udf(spark, model, _NO_DATA_IN_ERRORS)

    def chat(messages: Column | str = MESSAGES_INPUT, **params: object) -> Column:
        """Chat completions for a column of messages.

        Args:
            messages: array of structs (or maps) with role and content; a column or its name.
            params: temperature, max_tokens, stop, n and stream: a column, a column's name, or a
                value that holds for every row. Null means the model's default.
        """
        unknown = [name for name in params if name not in model.defaults]
        if unknown:
            raise InvalidParameterError(
                f"a chat has no {unknown[0]!r}, but {', '.join(model.defaults)}"
            )
        columns = {name: _column(value) for name, value in params.items()}
        asked = chat_requests(
            _column(messages), columns, model.defaults, most_bytes=model.most_bytes
        )
        safe = with_stand_ins(asked, model.defaults)
        failure = schema.failed_chat(asked.refusal)
        return F.when(asked.refusal.isNull(), udf(safe.struct())).otherwise(failure)

    return chat


@contextmanager
def worker_settings(spark: SparkSession, model: ScoringModel, heaviest_s: float) -> Iterator[None]:
    """Spark's settings for Python workers while a job runs in the ``with`` block.

    Spark calls predict once for each Arrow batch. Batches of one row are what makes a model see
    one row; where rows are sampled, a task must be one batch, because the model tells copies of a
    request apart by counting them.

    Args:
        spark: the session.
        model: what the workers run.
        heaviest_s: what the rows of the heaviest chunk may take together.
    """
    settings = {IDLE_LIMIT: first_limit(heaviest_s), _KILL_IDLE: "true"}
    if model.one_row_at_a_time:
        settings["spark.sql.execution.arrow.maxRecordsPerBatch"] = "1"
    elif not model.greedy or model.takes_messages:
        settings["spark.sql.execution.arrow.maxRecordsPerBatch"] = "0"
        settings["spark.sql.execution.arrow.maxBytesPerBatch"] = str(2**31 - 1)
    before = {name: spark.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        with suppress(*JVM_GONE_ERRORS):  # of a JVM that has died, which has no settings
            for name, old in before.items():
                if old is None:
                    spark.conf.unset(name)
                else:
                    spark.conf.set(name, old)


def _mlflow_udf(
    spark: SparkSession, model: ScoringModel, environment: Mapping[str, str]
) -> Callable[[Column], Column]:
    params = dict(model.params)
    if model.kind is ModelKind.USAGE:
        params[USAGE_PARAM] = True
    if choice := os.environ.get(ENGINE_VARIABLE):  # the driver's holds for its workers
        environment = {**environment, ENGINE_VARIABLE: choice}
    try:
        with quiet_about_local_environment(), temporary_files_here():
            udf = mlflow.pyfunc.spark_udf(
                spark,
                model.served_uri,
                result_type=_RESULT_TYPES.get(model.kind, "string"),
                env_manager="local",
                # a chat has its parameters among its inputs
                params=None if model.takes_messages else mlflow_params(params),
                extra_env=dict(environment),
            )
    except ConnectionError:  # to a JVM that has died; an OSError too
        raise
    except OSError as error:  # a full disk
        raise EnvironmentProblemError(
            f"MLflow cannot copy {model.uri} to {tempfile.gettempdir()}"
            f" ({error.strerror or type(error).__name__}): TMPDIR names another place"
        ) from error
    return _quoting_nothing(udf)


def _telling_engine(udf: Any) -> Callable[[Column], Column]:
    """A model's UDF whose result has ENGINE too; a result that is text becomes its field TEXT."""
    answer, result_type = udf.func, udf.returnType

    def answer_telling_engine(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        # the function travels to the workers alone, without this module
        for answers in answer(batches):
            frame = answers.to_frame(TEXT) if isinstance(answers, pd.Series) else answers
            yield frame.assign(**{ENGINE: loaded_engine()})

    fields = result_type if isinstance(result_type, StructType) else _TEXT_RESULT
    told = StructType([*fields, StructField(ENGINE, StringType())])
    return pandas_udf(answer_telling_engine, told)  # type: ignore[call-overload,no-any-return]


def _quoting_nothing(udf: Any) -> Callable[[Column], Column]:
    """MLflow's UDF, whose exceptions say what the model raised, and where, without its text.

    That may quote a row, and Spark writes it into its logs, its event log and its web pages. What
    our own models raise on purpose quotes nobody.
    """
    answer = udf.__wrapped__.func

    def answer_quoting_nothing(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        # the function travels to the workers alone, without this module
        try:
            yield from answer(batches)
        except Exception as error:
            if type(error).__module__ == "phi3_batch.errors":
                raise error from None
            said = f"the model raised {type(error).__name__}"
            raise RuntimeError(said).with_traceback(error.__traceback__) from None

    # its stubs know no iterators
    return pandas_udf(  # type: ignore[call-overload,no-any-return]
        answer_quoting_nothing, udf.__wrapped__.returnType
    )


def _column(value: object) -> Column:
    if isinstance(value, Column):
        return value
    if isinstance(value, str):
        return named(value)
    return F.array(*map(F.lit, value)) if isinstance(value, list | tuple) else F.lit(value)
