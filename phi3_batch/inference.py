"""Scoring in one's own Spark code, with what the job uses."""

from collections.abc import Callable, Mapping
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch import keywords
from phi3_batch.errors import InvalidModelError
from phi3_batch.models.wrap import wrap_pipeline
from phi3_batch.options import RequestOptions
from phi3_batch.scoring.job.asked import AskedRequests
from phi3_batch.scoring.job.check import check_requests, kept_fields
from phi3_batch.scoring.rows import schema
from phi3_batch.scoring.rows.columns import OURS, named
from phi3_batch.scoring.rows.hidden import with_texts
from phi3_batch.scoring.rows.model import check_params, find_model, load_model
from phi3_batch.scoring.rows.udf import chat_udf, model_udf
from phi3_batch.scoring.rows.worker import ENGINE

_RESULT = f"{OURS}result"


@keywords.takes_after_two(RequestOptions)
def complete(table: DataFrame, model: str, options: RequestOptions) -> DataFrame:
    """Rows with what a model answers: a DataFrame in, a DataFrame out, and no commits.

    Nothing is scored before the result is used, and each use scores it again: write it, or
    ``persist()`` it. Rows stay in their partitions, and equal requests are answered once in a batch
    of Spark's; where rows are sampled, a shuffle brings equal ones together, for each is to have a
    text of its own. A row that cannot be answered has ``error``; one that crashes its worker, or
    hangs, fails the query, as in any Spark UDF: :func:`phi3_batch.score` finds it and goes on.

        answers = phi3_batch.complete(
            table, "models:/phi3-chat@champion", user_template="Summarize: {body}", max_tokens=60
        )
        answers.select("id", "completion", "error").write.saveAsTable("summaries")

    Args:
        table: the rows, of any source.
        model: MLflow URI.
        options: below.

    Returns:
        What is kept of the rows, and completion, finish_reason, prompt_tokens, completion_tokens,
        total_tokens, error and, where they are asked for, answer, probabilities, logprob,
        mean_logprob, token_logprobs and response.

    Raises:
        InvalidModelError: there is no such model, or it cannot be loaded.
        TableError: a column is missing, or of another type, or has the name of a new one.
        InvalidParameterError: an option is out of range, or has no meaning for the model.
    """
    asked = AskedRequests.of_rows(options)
    found = find_model(model)
    check_requests(asked, found, table.schema, "the table")
    added = schema.answer_columns(keep_response=asked.keep_response, answers=asked.answers)
    kept = kept_fields(table.schema, asked.keep, added, any_name=True)
    loaded = load_model(
        found,
        asked.generation,
        row_params=asked.source.param_columns,
        wrap_pipeline=wrap_pipeline,
        pilot_prompts=lambda: [] if table.isStreaming else asked.source.pilot_prompts(table),
    )
    requests = asked.source.requests(loaded, table.schema)
    greedy = loaded.all_greedy(by_rows="temperature" in asked.source.param_columns)
    udf = model_udf(table.sparkSession, loaded, greedy=greedy)
    rows = with_texts(table.sparkSession, table, asked.source.texts(loaded))
    is_sound = requests.refusal.isNull()
    request = F.when(is_sound, requests.struct())  # a null is not asked
    if not greedy:
        rows = rows.repartition(request)
    answered = rows.withColumn(_RESULT, udf.ask(request))
    answer, refusal = (
        {**columns, **asked.answers.columns(columns)}
        for columns in (
            udf.read(F.col(_RESULT).dropFields(ENGINE)),
            schema.columns_from_error(requests.refusal),
        )
    )
    return answered.select(
        *map(named, kept.fieldNames()),
        *(
            F.when(is_sound, answer[name]).otherwise(refusal[name]).alias(name)
            for name in added.fieldNames()
        ),
    )


def spark_udf(
    spark: SparkSession, uri: str, params: Mapping[str, Any] | None = None
) -> Callable[..., Column]:
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
        params: for all rows, such as ``{"choices": ["yes", "no"]}``; those of the logged model.

    Returns:
        A function with the arguments messages, temperature, max_tokens, stop, n and stream: each
        a column, a column's name, or (all but messages) a value that holds for every row.

    Raises:
        InvalidModelError: the model is not there, cannot be loaded, or is one of prompts.
        InvalidParameterError: the model has no such parameter, or it is out of range.
    """
    found = find_model(uri)
    if not found.takes_messages:
        raise InvalidModelError(
            f"{uri} takes prompts, one string for each row: mlflow.pyfunc.spark_udf will do"
        )
    given = dict(params or {})
    check_params(found, given)
    model = load_model(found, given, wrap_pipeline=wrap_pipeline, pilot_prompts=list)
    return chat_udf(spark, model)
