"""MLflow's UDF of a model, and how its result becomes columns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlflow
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import InvalidParameterError
from phi3_batch.scoring import schema
from phi3_batch.scoring.columns import named
from phi3_batch.scoring.model import (
    USAGE_PARAM,
    ModelKind,
    ScoringModel,
    mlflow_params,
    quiet_about_local_environment,
)
from phi3_batch.scoring.requests import MESSAGES_INPUT, RowRequests, chat_requests, with_stand_ins

# An error of MLflow's schema enforcement quotes the data, unless this is set.
_NO_DATA_IN_ERRORS = {"MLFLOW_DISABLE_SCHEMA_DETAILS": "true"}

_RESULT_TYPES: dict[ModelKind, StructType | str] = {
    ModelKind.CHAT: schema.CHAT_COMPLETION,
    ModelKind.USAGE: schema.USAGE_RESULT,
}
_READERS: dict[ModelKind, Callable[[Column], dict[str, Column]]] = {
    ModelKind.CHAT: schema.columns_from_chat,
    ModelKind.USAGE: schema.columns_from_usage,
    ModelKind.BARE: schema.columns_from_bare_text,
    ModelKind.TEXT: schema.columns_from_text,
    ModelKind.ONE_BY_ONE: schema.columns_from_text,
}


def result_columns(
    spark: SparkSession, model: ScoringModel, requests: RowRequests
) -> tuple[Column, Callable[[Column], dict[str, Column]]]:
    """The model's UDF over its inputs, and how its result becomes output columns.

    The two come apart because the result must be a column of its own first: Spark runs a UDF
    again for every expression that it is part of.
    """
    return _mlflow_udf(spark, model)(requests.struct()), _READERS[model.kind]


def chat_udf(spark: SparkSession, model: ScoringModel) -> Callable[..., Column]:
    """A function of columns that gives chat completions, whatever the rows hold.

    MLflow's own UDF fails a whole batch for one null; this one fills nulls in, and keeps from the
    model the rows that MLflow would refuse. They come out as what the model gives for a chat it
    cannot answer: the object ``error``, with the reason as finish_reason.
    """
    udf = _mlflow_udf(spark, model)

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
        asked = chat_requests(_column(messages), columns, model.defaults)
        safe = with_stand_ins(asked, model.defaults)
        failure = schema.failed_chat(asked.refusal)
        return F.when(asked.refusal.isNull(), udf(safe.struct())).otherwise(failure)

    return chat


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


def _mlflow_udf(spark: SparkSession, model: ScoringModel) -> Callable[[Column], Column]:
    params = dict(model.params)
    if model.kind is ModelKind.USAGE:
        params[USAGE_PARAM] = True
    with quiet_about_local_environment():
        udf: Callable[[Column], Column] = mlflow.pyfunc.spark_udf(
            spark,
            model.served_uri,
            result_type=_RESULT_TYPES.get(model.kind, "string"),
            env_manager="local",
            # a chat has its parameters among its inputs
            params=None if model.takes_messages else mlflow_params(params),
            extra_env=_NO_DATA_IN_ERRORS,
        )
    return udf


def _column(value: object) -> Column:
    if isinstance(value, Column):
        return value
    if isinstance(value, str):
        return named(value)
    return F.array(*map(F.lit, value)) if isinstance(value, list | tuple) else F.lit(value)
