"""Planning a scoring job: everything that can be wrong with it is found before the first row."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.generation import GenerationParams
from phi3_batch.scoring import identity, incremental, outputs, schema, session, tables
from phi3_batch.scoring.columns import find_field
from phi3_batch.scoring.ledger import RunRecord
from phi3_batch.scoring.model import FoundModel, ScoringModel, find_model, load_model
from phi3_batch.scoring.outputs import OutputState
from phi3_batch.scoring.requests import RowRequests, prompt_requests
from phi3_batch.scoring.source import Source
from phi3_batch.scoring.tables import InputTable, Location, WriteMode
from phi3_batch.scoring.udf import ModelUdf, model_udf

# Columns of `ScoringPlan.work`, beside the input's.
REQUEST_ID = "__phi3_batch_request_id"
REFUSAL = "__phi3_batch_refusal"
BUCKET = "__phi3_batch_bucket"


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
        mode: what happens when the output has rows that are not this run's.
        ids: columns that name a row: score only what is new or has changed since.
        retry_errors: with ids, score rows again that have an error.
        delete_removed: with ids, delete output rows that the input has no longer.
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
    ids: tuple[str, ...] = ()
    retry_errors: bool = False
    delete_removed: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a run that is committed as a whole.

    Attributes:
        number: from 0.
        rows: in it.
        requests: how many the model is asked, equal ones once.
    """

    number: int
    rows: int
    requests: int


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """A job that has been checked, ready to run.

    Attributes:
        options: what was asked for.
        input: the rows, pinned.
        model: what will score them.
        udf: of the model, which MLflow takes a while to make.
        requests: what the model is asked for each row.
        pinned: the rows, each with its request's hash.
        work: those to score, with their hidden columns.
        greedy: whether a row is decoded greedily, so that equal requests have equal completions.
        fingerprint: of the run.
        settings: what shapes results, in words.
        request_columns: of the input, whose values are the request.
        state: what of the run is in the output already.
        total: rows of the run, those that are done included.
        refused: how many of them no model will see, by error code.
        longest_request: characters of the longest of the others.
        chunks: those that have rows.
        chunk_count: the chunk of a row is its bucket modulo this.
        done: numbers of the chunks that are in the output.
        kept: names of the input columns that go into the output.
        changes: with ids, how the input differs from the output.
        slots: tasks that run at the same time.
    """

    options: ScoreOptions
    input: InputTable
    model: ScoringModel
    udf: Future[ModelUdf]
    requests: RowRequests
    pinned: DataFrame
    work: DataFrame
    greedy: Column
    fingerprint: str
    settings: Mapping[str, str]
    request_columns: tuple[str, ...]
    state: OutputState
    total: int
    refused: Mapping[str, int]
    longest_request: int
    chunks: tuple[Chunk, ...]
    chunk_count: int
    done: frozenset[int]
    kept: tuple[str, ...]
    changes: incremental.Changes | None
    slots: int

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """Names of the columns that scoring adds."""
        added = schema.output_columns(keep_response=self.options.keep_response)
        return tuple(added.fieldNames())

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the output's columns."""
        return (*self.kept, *self.scored_columns)

    @property
    def to_do(self) -> tuple[Chunk, ...]:
        """The chunks that are not in the output yet."""
        return tuple(chunk for chunk in self.chunks if chunk.number not in self.done)

    @property
    def finished(self) -> bool:
        """Whether the output has all of the run, and nothing is left to write."""
        return not self.to_do and not self.state.begin and not self.to_delete

    @property
    def to_delete(self) -> int:
        """Rows that the input has no longer, where the user wants them deleted."""
        return self.changes.removed if self.changes and self.options.delete_removed else 0

    def record(self, run_id: str) -> RunRecord:
        """What the run's first commit says of it."""
        return RunRecord(
            fingerprint=self.fingerprint,
            settings=self.settings,
            input=self.options.input.text,
            input_version=self.input.version,
            request_columns=self.request_columns,
            ids=self.options.ids,
            limit=self.options.limit,
            rows=self.total,
            chunks=self.chunk_count,
            run_id=run_id,
        )


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
    _check_incremental(options)
    table = tables.open_input(spark, options.input)
    found = find_model(options.model)
    if options.keep_response and not found.takes_messages:
        raise InvalidParameterError(
            f"--keep-response keeps chat completions, and {found.uri} gives plain text"
        )
    options.source.check(found, table.rows.schema, table.location.text)
    added = schema.output_columns(keep_response=options.keep_response)
    kept = _kept_fields(table.rows.schema, options.keep, added)
    table = replace(table, rows=identity.limited(table.rows, options.limit))

    settings = _settings(found, options, table.rows.schema)
    digest = identity.settings_digest({**settings, "model": str(found.info.model_uuid)})
    shape = [(column.name, column.dataType.simpleString()) for column in (*kept, *added)]
    sample = identity.sampling(table.rows.schema, options.limit)
    fingerprint = identity.fingerprint(
        digest, {"input": table.identity, **sample, "columns": shape}
    )
    output = tables.open_output(spark, options.output)
    if output.path is not None and output.path == table.path:
        raise TableError(f"output {output.location.text} is the input: give another table")
    asked = outputs.AskedRun(
        fingerprint=fingerprint,
        settings=settings,
        input=options.input.text,
        input_version=table.version,
        columns=StructType([*kept, *added]),
        mode=options.mode,
        ids=options.ids,
    )
    state = outputs.look(spark, output, asked)

    columns = options.source.request_columns(found)
    rows = table.rows.withColumn(
        REQUEST_ID, identity.request_id(table.rows.schema, columns, digest)
    )
    pinned, changes = rows, None
    if options.ids:
        kept_names = kept.fieldNames()
        incremental.check_ids(rows, options.ids, kept_names, table.location.text)
        rows, changes = incremental.compare(
            spark,
            rows,
            REQUEST_ID,
            output,
            options.ids,
            anew=state.begin is not None,
            retry_errors=options.retry_errors,
        )
    model = _load(found, table.rows, options, wrap_pipeline)
    udf = session.in_background(lambda: model_udf(spark, model))
    requests = options.source.requests(model, table.rows.schema)
    work = rows.withColumns(
        {REFUSAL: requests.refusal, BUCKET: identity.bucket_of(F.col(REQUEST_ID))}
    )
    greedy = _greedy(model, requests)
    counts = _count(work, greedy, requests.characters())
    requests_in_all = sum(count.requests for count in counts)
    chunk_count = state.chunks or identity.chunk_count(requests_in_all)
    chunks = _chunks(counts, chunk_count)
    rows_by_chunk = {chunk.number: chunk.rows for chunk in chunks}
    done = outputs.done_chunks(output, state, rows_by_chunk, chunk_count)
    return ScoringPlan(
        options=options,
        input=table,
        model=model,
        udf=udf,
        requests=requests,
        pinned=pinned,
        work=work,
        greedy=greedy,
        fingerprint=fingerprint,
        settings=settings,
        request_columns=columns,
        state=state,
        total=sum(chunk.rows for chunk in chunks),
        refused=_sum_by_code(counts),
        longest_request=max((count.longest or 0 for count in counts), default=0),
        chunks=chunks,
        chunk_count=chunk_count,
        done=done,
        kept=tuple(kept.fieldNames()),
        changes=changes,
        slots=session.task_slots(spark),
    )


def _settings(found: FoundModel, options: ScoreOptions, table: StructType) -> dict[str, str]:
    """What shapes results, in words that can be shown and kept."""
    source, given = options.source, {}
    for name, value in options.generation.items():
        # beside a column, the value is for rows in which that is null
        key = f"params.{name}.default" if name in source.param_columns else f"params.{name}"
        given[key] = _in_words(name, value)
    values = identity.rendering(table, source.request_columns(found))
    return {"model": found.resolved_uri, **source.settings(), **given, **values}


def _in_words(name: str, value: Any) -> str:
    if name == "stop":  # it may quote what completions are about
        # no text is empty, so that a list which begins with NUL was never joined by it
        is_joined = not any("\0" in text for text in value)
        texts = "\0".join(value) if is_joined else f"\0{json.dumps(value)}"
        return f"sha256 {hashlib.sha256(texts.encode()).hexdigest()}"
    if isinstance(getattr(GenerationParams(), name, None), float):
        return str(float(value) + 0.0)  # 1 is 1.0, and -0.0 is 0.0
    return str(value)


def _greedy(model: ScoringModel, requests: RowRequests) -> Column:
    temperature = requests.inputs.get("temperature")  # where a job or its rows have their own
    return F.lit(model.greedy) if temperature is None else temperature == 0


@dataclass(frozen=True, slots=True)
class _Count:
    bucket: int
    code: str | None
    rows: int
    requests: int
    longest: int | None


def _count(work: DataFrame, greedy: Column, characters: Column) -> list[_Count]:
    """Rows by bucket and by what is wrong with them, and the requests that they make."""
    sound = F.col(REFUSAL).isNull()
    once = F.count_distinct(F.when(sound & greedy, F.col(REQUEST_ID)))
    counted = work.groupBy(BUCKET, F.col(REFUSAL)["code"].alias("code")).agg(
        F.count(F.lit(1)).alias("rows"),
        (once + F.count_if(sound & ~greedy)).alias("requests"),
        F.max(F.when(sound, characters)).alias("longest"),
    )
    return [_Count(*row) for row in counted.collect()]


def _chunks(counts: Sequence[_Count], number: int) -> tuple[Chunk, ...]:
    rows, requests = Counter[int](), Counter[int]()
    for count in counts:
        rows[count.bucket % number] += count.rows
        requests[count.bucket % number] += count.requests
    return tuple(Chunk(chunk, rows[chunk], requests[chunk]) for chunk in sorted(rows))


def _sum_by_code(counts: Sequence[_Count]) -> dict[str, int]:
    by_code = Counter[str]()
    for count in counts:
        if count.code:
            by_code[count.code] += count.rows
    return dict(by_code)


def _check_generation(generation: Mapping[str, Any]) -> None:
    """Raise for a value out of range."""
    GenerationParams(**{name: value for name, value in generation.items() if name != "n"})
    if generation.get("n", 1) < 1:
        raise InvalidParameterError(f"n must be 1 or above, not {generation['n']}")


def _check_incremental(options: ScoreOptions) -> None:
    """Raise for options that go together in no way."""
    for name, given in (
        ("--retry-errors", options.retry_errors),
        ("--delete-removed", options.delete_removed),
    ):
        if given and not options.ids:
            raise InvalidParameterError(f"{name} goes with --id, which says what a row is")
    if options.delete_removed and options.limit is not None:
        raise InvalidParameterError(
            "--delete-removed would delete all rows beyond --limit: give one of them"
        )


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
