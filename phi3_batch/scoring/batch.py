"""A scoring job: everything that can be wrong is found first, then every row is scored once."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from phi3_batch.errors import RowErrorCode, ScoringError, TableError
from phi3_batch.generation import GenerationParams
from phi3_batch.scoring import schema, session, tables
from phi3_batch.scoring.tables import InputTable, Location, OutputTable, WriteMode
from phi3_batch.scoring.udf import ScoringModel, batches_for, open_model, result_columns

# Rows of one task. Enough to outweigh what a task costs to start, few enough that progress shows
# and that a lost task is not a lost hour.
_ROWS_PER_TASK = 256

_CODE, _RESULT = "__phi3_batch_code", "__phi3_batch_result"

_REFUSALS = {
    RowErrorCode.NULL_PROMPT: "the prompt is null",
    RowErrorCode.EMPTY_PROMPT: "the prompt is empty or only white space",
    RowErrorCode.INVALID_TEXT: "the prompt is not valid UTF-8",
}


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What the user asked for.

    Attributes:
        model: MLflow URI of the model.
        input: table or files to score.
        output: Delta table to write.
        column: of the prompts.
        keep: input columns to carry into the output; None carries all.
        limit: score this many rows at most; None scores all.
        mode: what happens when the output is there already.
        generation: generation parameters given by the user; the model's defaults for the others.
    """

    model: str
    input: Location
    output: Location
    column: str = "prompt"
    keep: tuple[str, ...] | None = None
    limit: int | None = None
    mode: WriteMode = "error"
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """A job that has been checked, ready to run.

    Attributes:
        options: what was asked for.
        input: the rows, pinned.
        model: what will score them.
        rows: how many there are.
        refused: how many of them no model will see, by error code.
        tasks: how many Spark tasks score them.
        kept: names of the input columns that go into the output.
    """

    options: ScoreOptions
    input: InputTable
    model: ScoringModel
    rows: int
    refused: Mapping[str, int]
    tasks: int
    kept: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the output's columns."""
        return (*self.kept, *schema.OUTPUT.fieldNames())


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


def plan_scoring(spark: SparkSession, options: ScoreOptions) -> ScoringPlan:
    """Check a job from end to end, without scoring or writing anything.

    Raises:
        TableError: the input or the output is not what it has to be.
        InvalidModelError: the model cannot be had, or is no model of prompts.
        InvalidParameterError: a generation parameter is out of range or unknown to the model.
    """
    GenerationParams(**options.generation)  # raises for a value out of range
    table = tables.open_input(spark, options.input)
    _check_prompt_column(table, options.column)
    kept = _kept_fields(table.rows.schema, options.keep)
    columns = StructType([*kept, *schema.OUTPUT])
    _check_output(tables.open_output(spark, options.output), table, columns, options.mode)
    if options.limit is not None:
        # the rows are read more than once, and must be the same rows each time
        limited = table.rows.limit(options.limit).localCheckpoint()
        table = InputTable(table.location, limited, table.version, table.path)

    def pilot_prompts() -> list[str]:
        sound = table.rows.where(_refusal(options.column).isNull()).select(_named(options.column))
        return [row[0] for row in sound.head(2)]

    model = open_model(options.model, options.generation, pilot_prompts)
    counts = _count_by_refusal(table.rows, options.column)
    to_score = counts.pop(None, 0)
    return ScoringPlan(
        options=options,
        input=table,
        model=model,
        rows=to_score + sum(counts.values()),
        refused={code: count for code, count in counts.items() if code is not None},
        tasks=max(-(-to_score // _ROWS_PER_TASK), min(to_score, session.task_slots(spark)), 1),
        kept=tuple(kept.fieldNames()),
    )


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
    options = plan.options
    kept = [_named(name) for name in plan.kept]
    rows = plan.input.rows.withColumn(_CODE, _refusal(options.column))
    udf, read_result = result_columns(spark, plan.model, _named(options.column))

    # Rows that no model should see are split off before it. A condition around the UDF would not
    # do: Spark runs a Python UDF for every row, whatever stands around it.
    sound = rows.where(F.col(_CODE).isNull()).repartition(plan.tasks).withColumn(_RESULT, udf)
    answered = sound.select(*kept, *_aliased(read_result(F.col(_RESULT))))
    message = F.create_map(*[F.lit(text) for pair in _REFUSALS.items() for text in pair])
    refusal = schema.columns_from_error(F.col(_CODE), message[F.col(_CODE)])
    refused = rows.where(F.col(_CODE).isNotNull()).select(*kept, *_aliased(refusal))

    return answered.unionByName(refused).withColumns(
        {
            "model": F.lit(plan.model.resolved_uri),
            "run_id": F.lit(run_id),
            "scored_at": F.current_timestamp(),
        }
    )


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


def _refusal(column: str) -> Column:
    """The error code of a row that no model should see, else null."""
    prompt = _named(column)
    return (
        F.when(prompt.isNull(), RowErrorCode.NULL_PROMPT.value)
        # Arrow hands bytes to Python as they are, and one row would fail its whole task
        .when(~F.is_valid_utf8(prompt), RowErrorCode.INVALID_TEXT.value)
        .when(~prompt.rlike(r"(?U)\S"), RowErrorCode.EMPTY_PROMPT.value)
    )


def _count_by_refusal(rows: DataFrame, column: str) -> dict[str | None, int]:
    counted = rows.groupBy(_refusal(column).alias("code")).count().collect()
    return {row["code"]: row["count"] for row in counted}


def _check_prompt_column(table: InputTable, column: str) -> None:
    fields = {field.name.lower(): field for field in table.rows.schema}
    if column.lower() not in fields:
        raise TableError(
            f"{table.location.text} has no column {column!r}, its columns are"
            f" {', '.join(table.rows.columns)}; name the prompts' column with --column"
        )
    found = fields[column.lower()].dataType
    if not isinstance(found, StringType):
        raise TableError(
            f"column {column!r} of {table.location.text} is {found.simpleString()}, not string"
        )


def _kept_fields(table: StructType, keep: Sequence[str] | None) -> StructType:
    """The input columns that go into the output."""
    by_name = {field.name.lower(): field for field in table}
    if keep is None:
        kept = list(table)
    else:
        missing = [name for name in keep if name.lower() not in by_name]
        if missing:
            raise TableError(
                f"the input has no column {missing[0]!r} to keep, its columns are"
                f" {', '.join(table.fieldNames())}"
            )
        kept = [by_name[name.lower()] for name in keep]
    taken = {name.lower() for name in schema.OUTPUT.fieldNames()}
    colliding = [field.name for field in kept if field.name.lower() in taken]
    if colliding:
        others = [field.name for field in kept if field.name not in colliding]
        raise TableError(
            f"input column {colliding[0]!r} has the name of an output column: leave it out with"
            f" --keep {','.join(others)}"
        )
    tables.check_column_names([field.name for field in kept])
    return StructType(kept)


def _check_output(
    output: OutputTable, table: InputTable, columns: StructType, mode: WriteMode
) -> None:
    name = output.location.text
    if output.path is not None and output.path == table.path:
        raise TableError(f"output {name} is the input: give another table")
    if output.schema is None:
        return
    if mode == "error":
        raise TableError(f"output {name} exists: use --mode append or --mode overwrite")
    if mode == "append":
        there, new = _types(output.schema), _types(columns)
        differing = sorted(dict(there ^ new))
        if differing:
            raise TableError(
                f"output {name} has other columns than this job writes ({', '.join(differing)}):"
                " choose another output, other columns with --keep, or --mode overwrite"
            )


def _types(table: StructType) -> set[tuple[str, str]]:
    return {(field.name, field.dataType.simpleString()) for field in table}


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


def _named(column: str) -> Column:
    return F.col("`{}`".format(column.replace("`", "``")))


def _aliased(columns: Mapping[str, Column]) -> list[Column]:
    return [column.alias(name) for name, column in columns.items()]
