"""Planning a scoring job: everything that can be wrong with it is found before the first row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.types import StructType

from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.generation import GenerationParams
from phi3_batch.scoring import schema, session, tables
from phi3_batch.scoring.columns import find_field
from phi3_batch.scoring.model import FoundModel, ScoringModel, find_model, load_model
from phi3_batch.scoring.requests import RowRequests, prompt_requests
from phi3_batch.scoring.source import Source
from phi3_batch.scoring.tables import InputTable, Location, OutputTable, WriteMode

# Rows of one task. Enough to outweigh what a task costs to start, few enough that progress shows
# and that a lost task is not a lost hour.
_ROWS_PER_TASK = 256


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What the user asked for.

    Attributes:
        model: MLflow URI of the model.
        input: table or files to score.
        output: Delta table to write.
        source: which columns are the requests.
        keep: input columns to carry into the output; None carries all.
        keep_response: for a chat model, keep the whole completion object too.
        limit: score this many rows at most; None scores all.
        mode: what happens when the output is there already.
        generation: generation parameters given by the user; the model's defaults for the others.
    """

    model: str
    input: Location
    output: Location
    source: Source = field(default_factory=Source)
    keep: tuple[str, ...] | None = None
    keep_response: bool = False
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
        requests: what the model is asked for each row.
        rows: how many there are.
        refused: how many of them no model will see, by error code.
        tasks: how many Spark tasks score them.
        kept: names of the input columns that go into the output.
    """

    options: ScoreOptions
    input: InputTable
    model: ScoringModel
    requests: RowRequests
    rows: int
    refused: Mapping[str, int]
    tasks: int
    kept: tuple[str, ...]

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """Names of the columns that scoring adds."""
        added = schema.output_columns(keep_response=self.options.keep_response)
        return tuple(added.fieldNames())

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the output's columns."""
        return (*self.kept, *self.scored_columns)


def plan_scoring(
    spark: SparkSession, options: ScoreOptions, *, wrap_pipeline: Callable[[str], str]
) -> ScoringPlan:
    """Check a job from end to end, without scoring or writing anything.

    Args:
        spark: the session.
        options: what the user asked for.
        wrap_pipeline: makes a model that Spark can score of a plain transformers pipeline.

    Raises:
        TableError: the input or the output is not what it has to be.
        InvalidModelError: the model cannot be had, or takes neither prompts nor chats.
        InvalidParameterError: an option is out of range, or has no meaning for the model.
    """
    _check_generation(options.generation)
    table = tables.open_input(spark, options.input)
    found = find_model(options.model)
    if options.keep_response and not found.takes_messages:
        raise InvalidParameterError(
            f"--keep-response keeps chat completions, and {found.uri} gives plain text"
        )
    options.source.check(found, table.rows.schema, table.location.text)
    added = schema.output_columns(keep_response=options.keep_response)
    kept = _kept_fields(table.rows.schema, options.keep, added)
    columns = StructType([*kept, *added])
    _check_output(tables.open_output(spark, options.output), table, columns, options.mode)
    if options.limit is not None:
        # the rows are read more than once, and must be the same rows each time
        limited = table.rows.limit(options.limit).localCheckpoint()
        table = InputTable(table.location, limited, table.version, table.path)
    model = _load(found, table.rows, options, wrap_pipeline)
    requests = options.source.requests(model)
    counts = _count_by_refusal(table.rows, requests.refusal)
    to_score = counts.pop(None, 0)
    return ScoringPlan(
        options=options,
        input=table,
        model=model,
        requests=requests,
        rows=to_score + sum(counts.values()),
        refused={code: count for code, count in counts.items() if code is not None},
        tasks=max(-(-to_score // _ROWS_PER_TASK), min(to_score, session.task_slots(spark)), 1),
        kept=tuple(kept.fieldNames()),
    )


def _check_generation(generation: Mapping[str, Any]) -> None:
    """Raise for a value out of range."""
    GenerationParams(**{name: value for name, value in generation.items() if name != "n"})
    if generation.get("n", 1) < 1:
        raise InvalidParameterError(f"n must be 1 or above, not {generation['n']}")


def _load(
    found: FoundModel,
    rows: DataFrame,
    options: ScoreOptions,
    wrap_pipeline: Callable[[str], str],
) -> ScoringModel:
    def pilot_prompts() -> list[str]:
        prompt = options.source.prompt()
        sound = rows.where(prompt_requests(prompt).refusal.isNull())
        return [row[0] for row in sound.select(prompt).head(2)]

    return load_model(
        found, options.generation, wrap_pipeline=wrap_pipeline, pilot_prompts=pilot_prompts
    )


def _count_by_refusal(rows: DataFrame, refusal: Column) -> dict[str | None, int]:
    counted = rows.groupBy(refusal["code"].alias("code")).count().collect()
    return {row["code"]: row["count"] for row in counted}


def _kept_fields(table: StructType, keep: Sequence[str] | None, added: StructType) -> StructType:
    """The input columns that go into the output."""
    if keep is None:
        kept = list(table)
    else:
        kept = []
        for name in keep:
            found = find_field(table, name)
            if found is None:
                raise TableError(
                    f"the input has no column {name!r} to keep, its columns are"
                    f" {', '.join(table.fieldNames())}"
                )
            kept.append(found)
    colliding = [field.name for field in kept if find_field(added, field.name)]
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
