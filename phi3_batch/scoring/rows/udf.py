"""MLflow's UDF of a model, and how its result becomes columns."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
    CHAT_PARAMS,
    CHOICES,
    ENGINE_VARIABLE,
    MESSAGES_INPUT,
    TIME_LIMITS_VARIABLE,
    USAGE_PARAM,
)
from phi3_batch.errors import EnvironmentProblemError, InvalidParameterError
from phi3_batch.scoring import session
from phi3_batch.scoring.rows import schema, worker
from phi3_batch.scoring.rows.columns import named
from phi3_batch.scoring.rows.model import (
    ModelKind,
    ScoringModel,
    mlflow_params,
    quiet_about_local_environment,
)
from phi3_batch.scoring.rows.requests import chat_requests, literal
from phi3_batch.scoring.rows.worker import ENGINE, TEXT
from phi3_batch.scratch import temporary_files_here

# An error of MLflow's schema enforcement quotes the data, unless this is set.
_NO_DATA_IN_ERRORS = {"MLFLOW_DISABLE_SCHEMA_DETAILS": "true"}
# In a job, a row that hangs in native code ends its process, and the job finds the row.
_WORKER_ENV = _NO_DATA_IN_ERRORS | {TIME_LIMITS_VARIABLE: "1"}

for module in (contract, worker):
    register_pickle_by_value(module)  # type: ignore[no-untyped-call]

_TEXT_RESULT = StructType([StructField(TEXT, StringType())])
_ENGINE = StructField(ENGINE, StringType())

# without details, and with them
_RESULT_TYPES = {
    ModelKind.CHAT: (schema.CHAT_COMPLETION, schema.DETAILED_COMPLETION),
    ModelKind.USAGE: (schema.USAGE_RESULT, schema.DETAILED_USAGE),
}
_OF_STRUCTS = {
    ModelKind.CHAT: schema.columns_from_chat,
    ModelKind.USAGE: schema.columns_from_usage,
}
_READERS: dict[ModelKind, Callable[[Column], dict[str, Column]]] = {
    ModelKind.BARE: lambda result: schema.columns_from_bare_text(result[TEXT]),
    ModelKind.TEXT: lambda result: schema.columns_from_text(result[TEXT]),
    ModelKind.ONE_BY_ONE: lambda result: schema.columns_from_text(result[TEXT]),
}


class ModelUdf(NamedTuple):
    """A model's UDF, in two parts.

    The result must be a column of its own before it is read: Spark runs a UDF again for every
    expression that it is part of.

    Attributes:
        ask: the model's result for a struct of its inputs, nulls for null. The field ENGINE has
            name and version of the engine that gave it, null where the model does not tell. With
            the field ALLOWED_S, a worker that hangs is ended.
        read: the output columns of a result, which is given without ENGINE.
    """

    ask: Callable[[Column], Column]
    read: Callable[[Column], dict[str, Column]]


def model_udf(spark: SparkSession, model: ScoringModel, *, greedy: bool) -> ModelUdf:
    """The UDF of a model; takes seconds, for MLflow copies the model twice.

    On a cluster, each call ships the model.

    Args:
        spark: the session.
        model: to ask.
        greedy: whether all rows are decoded greedily. Where rows are sampled, the model gets all
            of a task at once: it tells copies of a request apart by counting them.

    Raises:
        EnvironmentProblemError: there is no room for the copies.
    """
    regroup = worker.as_they_come if greedy else worker.together
    if model.one_row_at_a_time:
        regroup = worker.one_by_one
    udf, fields = _mlflow_udf(spark, model, _WORKER_ENV)
    ask = _in_workers(spark, udf, regroup, [*fields, _ENGINE])
    read = _READERS.get(model.kind)
    if read is None:
        read = partial(_OF_STRUCTS[model.kind], has_details=model.has_details)
    return ModelUdf(ask, read)


def chat_udf(spark: SparkSession, model: ScoringModel) -> Callable[..., Column]:
    """A function of columns that gives chat completions, whatever the rows hold.

    MLflow's own UDF fails a whole batch for one null; this one fills nulls in, and keeps from the
    model the rows that MLflow would refuse. They come out as what the model gives for a chat it
    cannot answer: the object ``error``, with the reason as finish_reason.

    Raises:
        EnvironmentProblemError: there is no room for MLflow's copies of the model.
    """
    mlflow_udf, fields = _mlflow_udf(spark, model, _NO_DATA_IN_ERRORS)
    udf = _in_workers(spark, mlflow_udf, worker.as_they_come, fields)

    def chat(messages: Column | str = MESSAGES_INPUT, **params: object) -> Column:
        """Chat completions for a column of messages.

        Args:
            messages: array of structs (or maps) with role and content; a column or its name.
            params: temperature, max_tokens, stop, n and stream: a column, a column's name, or a
                value that holds for every row. Null means the model's default.
        """
        # a column of choices would make another type of the result
        known = [name for name in model.defaults if name != CHOICES]
        unknown = [name for name in params if name not in known]
        if unknown:
            raise InvalidParameterError(f"a chat has no {unknown[0]!r}, but {', '.join(known)}")
        of_all = {name: value for name, value in model.params.items() if name in CHAT_PARAMS}
        columns = {name: literal(value) for name, value in of_all.items()}
        columns |= {name: _column(value) for name, value in params.items()}
        asked = chat_requests(
            _column(messages), columns, model.defaults, most_bytes=model.most_bytes
        )
        is_sound = asked.refusal.isNull()
        failure = schema.failed_chat(asked.refusal, has_details=model.has_details)
        # Spark runs a UDF for every row, whatever stands around it: a null is not asked
        return F.when(is_sound, udf(F.when(is_sound, asked.struct()))).otherwise(failure)

    return chat


def _mlflow_udf(
    spark: SparkSession, model: ScoringModel, environment: Mapping[str, str]
) -> tuple[worker.Answer, Sequence[StructField]]:
    """What MLflow's UDF does in a worker, and the fields of what it gives."""
    # a row of chats has some of them among its inputs
    of_rows = CHAT_PARAMS if model.takes_messages else ()
    params = {name: value for name, value in model.params.items() if name not in of_rows}
    if model.kind is ModelKind.USAGE:
        params[USAGE_PARAM] = True
    if choice := os.environ.get(ENGINE_VARIABLE):  # the driver's holds for its workers
        environment = {**environment, ENGINE_VARIABLE: choice}
    result_type: StructType | str = "string"
    if model.kind in _RESULT_TYPES:
        result_type = _RESULT_TYPES[model.kind][model.has_details]
    try:
        with quiet_about_local_environment(), temporary_files_here():
            udf = mlflow.pyfunc.spark_udf(
                spark,
                model.served_uri,
                result_type=result_type,
                env_manager="local",
                params=mlflow_params(params),
                extra_env=dict(environment),
            )
    except ConnectionError:  # to a JVM that has died; an OSError too
        raise
    except OSError as error:  # a full disk
        raise EnvironmentProblemError(
            f"MLflow cannot copy {model.uri} to {tempfile.gettempdir()}"
            f" ({error.strerror or type(error).__name__}): TMPDIR names another place"
        ) from error
    made: Any = udf
    returned = made.__wrapped__.returnType
    fields = returned if isinstance(returned, StructType) else _TEXT_RESULT
    return made.__wrapped__.func, fields.fields


def _in_workers(
    spark: SparkSession,
    answer: worker.Answer,
    regroup: worker.Regroup,
    fields: Sequence[StructField],
) -> Callable[[Column], Column]:
    columns, hang_s = [field.name for field in fields], worker.HANG_SECONDS
    # the driver's own workers leave nothing: a start of this package removes it
    on_executors = not session.is_local(spark)

    def answer_requests(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return worker.answer_requests(
            answer, batches, regroup, columns, hang_s, on_executors=on_executors
        )

    # its stubs know no iterators
    return pandas_udf(  # type: ignore[call-overload,no-any-return]
        answer_requests, StructType([*fields])
    )


def _column(value: object) -> Column:
    if isinstance(value, Column):
        return value
    if isinstance(value, str):
        return named(value)
    return F.array(*map(F.lit, value)) if isinstance(value, list | tuple) else F.lit(value)
