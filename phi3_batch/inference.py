"""Scoring chats in one's own Spark code, with what the job uses."""

from collections.abc import Callable

from pyspark.sql import Column, SparkSession

from phi3_batch.errors import InvalidModelError
from phi3_batch.models.wrap import wrap_pipeline
from phi3_batch.scoring.rows.model import find_model, load_model
from phi3_batch.scoring.rows.udf import chat_udf


def spark_udf(spark: SparkSession, uri: str) -> Callable[..., Column]:
    """A function of columns that gives chat completions.

    ``mlflow.pyfunc.spark_udf`` works for these models too, called with a struct of columns
    without nulls; this one takes columns by name, fills nulls with the model's defaults, and
    keeps from the model the rows that would fail a whole batch. A row that cannot be answered
    comes out with the object ``error`` and the reason as its first choice's finish_reason.

        chat = phi3_batch.spark_udf(spark, "models:/phi3-chat@champion")
        table.withColumn("response", chat(messages="messages", max_tokens=col("limit")))

    Args:
        spark: the session.
        uri: of a chat or pipeline model, ours or logged by ``mlflow.transformers.log_model`` with
            task ``llm/v1/chat``.

    Returns:
        A function with the arguments messages, temperature, max_tokens, stop, n and stream: each
        a column, a column's name, or (all but messages) a value that holds for every row.

    Raises:
        InvalidModelError: the model is not there, cannot be loaded, or is one of prompts.
    """
    found = find_model(uri)
    if not found.takes_messages:
        raise InvalidModelError(
            f"{uri} takes prompts, one string for each row: mlflow.pyfunc.spark_udf will do"
        )
    model = load_model(found, {}, wrap_pipeline=wrap_pipeline, pilot_prompts=list)
    return chat_udf(spark, model)
