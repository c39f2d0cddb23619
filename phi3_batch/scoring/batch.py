"""Running a scoring job: every row is scored once, and written in one commit."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.errors import ScoringError
from phi3_batch.scoring import schema, session, tables
from phi3_batch.scoring.columns import named
from phi3_batch.scoring.plan import ScoringPlan
from phi3_batch.scoring.udf import batches_for, result_columns

_REFUSAL, _RESULT = "__phi3_batch_refusal", "__phi3_batch_result"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a finished job did.

    Attributes:
        rows: rows written.
        errors: how many of them have an error, by code.
        prompt_tokens: read, in all rows; 0 when the model does not count.
        completion_tokens: generated, in all rows; 0 when the model does not count.
        seconds: from the start of scoring to the commit.
        output_version: of the Delta table, made by this job.
        output_path: where the table is.
    """

    rows: int
    errors: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    output_version: int
    output_path: str

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second of scoring, the engine's loading included."""
        return self.completion_tokens / self.seconds


def run_scoring(
    spark: SparkSession, plan: ScoringPlan, run_id: str, report: Callable[[int, int], None]
) -> Summary:
    """Score every row of a plan and write the output in one commit.

    Args:
        spark: the session the plan was made with.
        plan: from :func:`plan_scoring`.
        run_id: written beside each row.
        report: called now and then with the tasks done and the tasks in all.

    Raises:
        ScoringError: the Spark job failed; the output is as it was.
    """
    started = time.monotonic()
    try:
        scored = _score(spark, plan, run_id)

        def write() -> None:
            tables.write_table(scored, plan.options.output, plan.options.mode, run_id)

        with batches_for(spark, plan.model):
            session.run_with_progress(spark, write, plan.tasks, report)
    except (PySparkException, Py4JError) as error:
        raise ScoringError(f"{_why(error)}; the output is as it was") from error
    return _summarize(spark, plan, run_id, time.monotonic() - started)


def _score(spark: SparkSession, plan: ScoringPlan, run_id: str) -> DataFrame:
    kept = [named(name) for name in plan.kept]

    def added(columns: Mapping[str, Column]) -> list[Column]:
        # a response that is not kept must not meet an input column of that name
        return [columns[name].alias(name) for name in plan.scored_columns if name in columns]

    rows = plan.input.rows.withColumn(_REFUSAL, plan.requests.refusal)
    udf, read_result = result_columns(spark, plan.model, plan.requests)

    # Rows that no model should see are split off before it. A condition around the UDF would not
    # do: Spark runs a Python UDF for every row, whatever stands around it.
    sound = rows.where(F.col(_REFUSAL).isNull()).repartition(plan.tasks).withColumn(_RESULT, udf)
    answered = sound.select(*kept, *added(read_result(F.col(_RESULT))))
    refusal = schema.columns_from_error(F.col(_REFUSAL))
    refused = rows.where(F.col(_REFUSAL).isNotNull()).select(*kept, *added(refusal))

    scored = answered.unionByName(refused).withColumns(
        {
            "model": F.lit(plan.model.resolved_uri),
            "run_id": F.lit(run_id),
            "scored_at": F.current_timestamp(),
        }
    )
    return scored.select(*kept, *plan.scored_columns)


def _summarize(spark: SparkSession, plan: ScoringPlan, run_id: str, seconds: float) -> Summary:
    version = tables.version_of_run(spark, plan.options.output, run_id)
    output = tables.read_version(spark, plan.options.output, version)
    by_code = (
        output.where(F.col("run_id") == run_id)
        .groupBy(F.col("error.code").alias("code"))
        .agg(
            F.count("*").alias("rows"),
            F.sum("prompt_tokens").alias("prompt_tokens"),
            F.sum("completion_tokens").alias("completion_tokens"),
        )
        .collect()
    )
    return Summary(
        rows=sum(row["rows"] for row in by_code),
        errors={row["code"]: row["rows"] for row in by_code if row["code"]},
        prompt_tokens=sum(row["prompt_tokens"] or 0 for row in by_code),
        completion_tokens=sum(row["completion_tokens"] or 0 for row in by_code),
        seconds=seconds,
        output_version=version,
        output_path=tables.open_output(spark, plan.options.output).path or "",
    )


def _why(error: Exception) -> str:
    """What made a Spark job fail, in one line that quotes nobody's data."""
    text = str(error)
    if ours := re.search(r"phi3_batch\.errors\.\w+: (.+)", text):
        return ours.group(1)
    if "[RESULT_ROWS_MISMATCH]" in text or "[OUTPUT_EXCEEDS_INPUT_ROWS]" in text:
        return "the model returned another number of results than rows"
    if "Python worker exited unexpectedly" in text:
        return "a Python worker died while the model ran (out of memory, perhaps)"
    # another model's exception: its class alone, for its text may quote a prompt
    raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception))\b", text, re.MULTILINE)
    if "Traceback (most recent call last)" in text and raised:
        return f"the model raised {raised[-1]} in a Spark task"
    return tables.first_line(error)
