"""Planning a scoring job: everything that can be wrong with it is found before the first row."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.generation import GenerationParams
from phi3_batch.scoring import session
from phi3_batch.scoring.delta import balance, constraints, incremental, outputs, tables
from phi3_batch.scoring.delta.ledger import RunRecord
from phi3_batch.scoring.delta.outputs import OutputState
from phi3_batch.scoring.delta.rivals import Contender
from phi3_batch.scoring.delta.tables import InputTable, OutputTable
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.columns import OURS, find_field, join_names, named
from phi3_batch.scoring.rows.hidden import with_texts
from phi3_batch.scoring.rows.idle_limit import allowed_seconds
from phi3_batch.scoring.rows.model import FoundModel, ScoringModel, find_model, load_model
from phi3_batch.scoring.rows.requests import RowRequests, prompt_requests
from phi3_batch.scoring.rows.source import Source
from phi3_batch.scoring.rows.udf import ModelUdf, model_udf

# Columns of `ScoringPlan.work`, beside the input's.
REQUEST_ID = f"{OURS}request_id"
REFUSAL = f"{OURS}refusal"
BUCKET = f"{OURS}bucket"
EXISTING = f"{OURS}existing"  # copies of a sampled request that were scored before


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a run that is committed as a whole.

    Attributes:
        number: from 0.
        rows: in it.
        requests: how many the model is asked, equal ones once.
        allowed_s: what they may take one after another on a slow machine, in seconds.
    """

    number: int
    rows: int
    requests: int
    allowed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """A job that has been checked, ready to run.

    Attributes:
        options: what was asked for.
        input: the rows, pinned.
        model: what will score them.
        udf: of the model, which MLflow takes a while to make.
        requests: what the model is asked for each row.
        pinned: the rows, what is kept of them and each with its ``request_id``.
        work: those to score, with their hidden columns.
        to_update: with ids, those whose kept columns alone have changed; None where there are none.
        greedy: whether a row is decoded greedily, so that equal requests have equal completions.
        contender: what tells the run from others.
        settings: what shapes results, in words.
        request_columns: of the input, whose values are the request.
        state: what of the run is in the output already.
        total: rows of the run, those that are done included.
        refused: how many of them no model will see, by error code.
        chunks: those that have rows.
        chunk_count: the chunk of a row is its bucket modulo this.
        done: numbers of the chunks that are in the output.
        kept: names of the input columns that go into the output.
        partitions: columns by which a table that is replaced stays partitioned.
        notes: what the user should know of the output before the first row.
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
    to_update: DataFrame | None
    greedy: Column
    contender: Contender
    settings: Mapping[str, str]
    request_columns: tuple[str, ...]
    state: OutputState
    total: int
    refused: Mapping[str, int]
    chunks: tuple[Chunk, ...]
    chunk_count: int
    done: frozenset[int]
    kept: tuple[str, ...]
    partitions: tuple[str, ...]
    notes: tuple[str, ...]
    changes: incremental.Changes | None
    slots: int

    @property
    def fingerprint(self) -> str:
        """Of the run."""
        return self.contender.fingerprint

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
    def heaviest_s(self) -> float:
        """What the rows of a chunk may take at most, in seconds."""
        return max((chunk.allowed_s for chunk in self.chunks), default=0.0)

    @property
    def finished(self) -> bool:
        """Whether the output has all of the run, and nothing is left to write."""
        begun = self.state.begin is None or self.state.may_wait
        return begun and not self.to_do and not self.to_delete and self.to_update is None

    @property
    def begins_empty(self) -> bool:
        """Whether the first commit has no chunk: with ids, rows are merged into what is there."""
        return bool(self.options.ids) and self.state.begin == "append"

    @property
    def to_delete(self) -> int:
        """Rows that the input has no longer, where the user wants them deleted."""
        return self.changes.removed if self.changes and self.options.delete_removed else 0

    def record(self, run_id: str) -> RunRecord:
        """What the run's first commit says of it."""
        chunks_to_follow = len(self.to_do) - (0 if self.begins_empty else 1)
        return RunRecord(
            fingerprint=self.fingerprint,
            settings=self.settings,
            input=self.contender.input,
            input_version=self.contender.input_version,
            input_id=self.contender.input_id,
            mode=self.state.begin,
            commits=max(chunks_to_follow, 0) + bool(self.to_delete) + (self.to_update is not None),
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
        InvalidParameterError: an option has no meaning for the model.
    """
    table = tables.open_input(spark, options.input)
    table = replace(table, rows=tables.without_limits(table.rows))
    found = find_model(options.model)
    if options.keep_response and not found.takes_messages:
        raise InvalidParameterError(
            f"--keep-response keeps chat completions, and {found.uri} gives plain text"
        )
    options.source.check(found, table.rows.schema, table.location.text)
    added = schema.output_columns(keep_response=options.keep_response)
    output = tables.open_output(spark, options.output)
    if output.path is not None and output.path == table.path:
        raise TableError(f"output {output.location.text} is the input: give another table")
    if output.path is not None:
        session.check_writable(spark, output.path)
    kept = _kept_fields(table.rows.schema, options.keep, added, output)
    tables.check_types(table.rows, kept)
    options = replace(options, ids=incremental.resolve_ids(kept, options.ids))
    table = replace(table, rows=identity.limited(table.rows, options.limit))

    settings = _settings(found, options, table.rows.schema)
    digest = identity.settings_digest({**settings, "model": str(found.info.model_uuid)})
    shape = [(column.name, column.dataType.simpleString()) for column in (*kept, *added)]
    sample = identity.sampling(table.rows.schema, options.limit)
    fingerprint = identity.fingerprint(
        digest, {"input": table.identity, **sample, "columns": shape}
    )
    contender = Contender(
        fingerprint=fingerprint,
        input=options.input.text,
        input_id=table.delta_id,
        input_version=table.version,
        output=options.output.text,
        ids=options.ids,
        delete_removed=options.delete_removed,
    )
    columns_written = StructType([*kept, *added])
    asked = outputs.AskedRun(contender, settings, columns_written, options.mode)
    state = outputs.look(spark, output, asked)

    columns = options.source.request_columns(found)
    rows = _with_request_ids(table.rows, [*kept.fieldNames(), *columns], columns, digest)
    pinned = _identified(rows, kept)
    compared = None
    if options.ids:
        incremental.check_ids(rows, options.ids, table.location.text)
        compare = partial(
            incremental.compare,
            spark,
            rows,
            REQUEST_ID,
            output,
            options.ids,
            kept,
            retry_errors=options.retry_errors,
        )
        try:
            compared = compare(anew=state.begin in ("error", "overwrite"))
        except TableError:  # the output's ids do not name its rows
            if options.mode != "overwrite":
                raise
            state = state.replaced()
            compared = compare(anew=True)
        rows = compared.to_score
    model = _load(found, table.rows, options, wrap_pipeline)
    udf = session.in_background(lambda: model_udf(spark, model))
    requests = options.source.requests(model, table.rows.schema)
    rows = with_texts(spark, rows, options.source.texts(model))
    is_new = state.begin in ("error", "overwrite")
    if options.ids and not is_new and _samples(model, options.source):
        rows = incremental.count_existing(
            spark, rows, REQUEST_ID, output, options.ids, existing=EXISTING
        )
    else:
        rows = rows.withColumn(EXISTING, F.lit(0))
    work = rows.withColumns(
        {REFUSAL: requests.refusal, BUCKET: identity.bucket_of(F.col(REQUEST_ID))}
    )
    greedy = _greedy(model, requests)
    counts = _count(work, greedy, allowed_seconds(model, requests))
    requests_in_all = sum(count.requests for count in counts)
    chunk_count = state.chunks or identity.chunk_count(requests_in_all)
    chunks = _chunks(counts, chunk_count)
    rows_by_chunk = {chunk.number: chunk.rows for chunk in chunks}
    try:
        done = outputs.done_chunks(output, state, rows_by_chunk, chunk_count)
        finished = len(done) == len(chunks) and state.begin is None and not options.ids
        changed = (
            options.mode == "overwrite"
            and finished
            and not _is_whole(spark, output, contender, state, pinned)
        )
    except TableError:
        if options.mode != "overwrite":
            raise
        changed = True
    if changed:  # by somebody else, and the user wants the table made anew
        state, done = state.replaced(), frozenset[int]()
    changes = compared.changes if compared else None
    to_update = None
    if compared and compared.to_update is not None and compared.changes.updated:
        to_update = _identified(compared.to_update, kept)
    replaced = output if state.begin == "overwrite" else None
    plan = ScoringPlan(
        options=options,
        input=table,
        model=model,
        udf=udf,
        requests=requests,
        pinned=pinned,
        work=work,
        to_update=to_update,
        greedy=greedy,
        contender=contender,
        settings=settings,
        request_columns=columns,
        state=state,
        total=sum(chunk.rows for chunk in chunks),
        refused=_sum_by_code(counts),
        chunks=chunks,
        chunk_count=chunk_count,
        done=done,
        kept=tuple(kept.fieldNames()),
        partitions=constraints.kept_partitions(replaced, asked.columns),
        notes=constraints.dropped_layout(replaced, asked.columns),
        changes=changes,
        slots=session.task_slots(spark),
    )
    if not plan.finished:
        constraints.check(output, pinned, kept, added, state.begin, options.ids)
    return plan


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


def _is_whole(
    spark: SparkSession,
    output: OutputTable,
    run: Contender,
    state: OutputState,
    rows_in: DataFrame,
) -> bool:
    """Whether the output of a finished run has each row once."""
    assert state.version is not None  # the run has begun
    table = tables.read_version(spark, output.location, state.version)
    return balance.compare_run(rows_in, table, state.seen, run.fingerprint, run.ids, ()).ok


def _greedy(model: ScoringModel, requests: RowRequests) -> Column:
    temperature = requests.inputs.get("temperature")  # where a job or its rows have their own
    return F.lit(model.greedy) if temperature is None else temperature == 0


def _samples(model: ScoringModel, source: Source) -> bool:
    """Whether any row may be sampled."""
    return not model.greedy or "temperature" in source.param_columns


@dataclass(frozen=True, slots=True)
class _Count:
    bucket: int
    code: str | None
    rows: int
    requests: int
    allowed_s: float | None
    heaviest_s: float | None


def _count(work: DataFrame, greedy: Column, allowed: Column) -> list[_Count]:
    """Rows by bucket and by what is wrong with them, and the requests that they make."""
    sound = F.col(REFUSAL).isNull()
    once = F.count_distinct(F.when(sound & greedy, F.col(REQUEST_ID)))
    counted = work.groupBy(BUCKET, F.col(REFUSAL)["code"].alias("code")).agg(
        F.count(F.lit(1)).alias("rows"),
        (once + F.count_if(sound & ~greedy)).alias("requests"),
        F.sum(F.when(sound, allowed)).alias("allowed"),
        F.max(F.when(sound, allowed)).alias("heaviest"),
    )
    return [_Count(*row) for row in counted.collect()]


def _chunks(counts: Sequence[_Count], number: int) -> tuple[Chunk, ...]:
    rows, requests = Counter[int](), Counter[int]()
    allowed_s: dict[int, float] = {}
    for count in counts:
        chunk = count.bucket % number
        rows[chunk] += count.rows
        requests[chunk] += count.requests
        # of equal rows one is asked, perhaps
        of_bucket = min(count.allowed_s or 0.0, (count.heaviest_s or 0.0) * count.requests)
        allowed_s[chunk] = allowed_s.get(chunk, 0.0) + of_bucket
    return tuple(
        Chunk(chunk, rows[chunk], requests[chunk], allowed_s[chunk]) for chunk in sorted(rows)
    )


def _sum_by_code(counts: Sequence[_Count]) -> dict[str, int]:
    by_code = Counter[str]()
    for count in counts:
        if count.code:
            by_code[count.code] += count.rows
    return dict(by_code)


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


def _with_request_ids(
    rows: DataFrame, names: Sequence[str], request_columns: Sequence[str], digest: str
) -> DataFrame:
    """What a job needs of its rows, and no column more: others may have any name."""
    fields = [find_field(rows.schema, name) for name in names]
    needed = list(dict.fromkeys(field.name for field in fields if field))
    hidden = [name for name in needed if name.lower().startswith(OURS)]
    if hidden:
        raise TableError(
            f"input column {hidden[0]!r} has a name that the job needs for itself: names that begin"
            f" with {OURS} are not for input columns, so rename it"
        )
    request = identity.request_id(rows.schema, request_columns, digest)
    return rows.select(*map(named, needed), request.alias(REQUEST_ID))


def _identified(rows: DataFrame, kept: StructType) -> DataFrame:
    """What the output has of rows before they are scored."""
    request = F.col(REQUEST_ID).alias(schema.REQUEST_ID)
    return rows.select(*map(named, kept.fieldNames()), request)


def _kept_fields(
    table: StructType, keep: Sequence[str] | None, added: StructType, output: OutputTable
) -> StructType:
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
            if found in kept:
                raise InvalidParameterError(f"--keep names {name} twice")
            kept.append(found)
    taken = [
        field
        for field in kept
        if find_field(added, field.name) or field.name.lower().startswith(OURS)
    ]
    refused = [] if output.takes_any_name else tables.refused_names(kept)
    if taken or refused:
        what = (
            f"input column {taken[0].name!r} has the name of an output column"
            if taken
            else f"Delta does not store columns named like {refused[0].name!r} (spaces and"
            " ,;{}()= are refused)"
        )
        others = join_names(field.name for field in kept if field not in (*taken, *refused))
        raise TableError(f"{what}: rename it, or leave it out with --keep {others}")
    return StructType(kept)
