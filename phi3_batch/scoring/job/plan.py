"""Planning a job: check it, compare it with its output, cut it into chunks.

A plan is inert: nothing was scored, written or copied. Everything that can be wrong with a job is
found here, before its first row; its model is loaded only if something is left to score.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pyspark.sql import DataFrame, SparkSession

from phi3_batch.errors import TableError
from phi3_batch.scoring import session
from phi3_batch.scoring.delta import balance, constraints, incremental, outputs, tables
from phi3_batch.scoring.delta.incremental import Changes, Comparison
from phi3_batch.scoring.delta.outputs import OutputState
from phi3_batch.scoring.delta.record import RunIdentity, RunRecord
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.job.check import CheckedJob, check_job
from phi3_batch.scoring.job.cut import NOTHING, Chunk, Cut, cut_finished, cut_work
from phi3_batch.scoring.rows import identity
from phi3_batch.scoring.rows.model import ScoringModel, load_model
from phi3_batch.scoring.rows.work import (
    EXISTING,
    REQUEST_ID,
    Work,
    identified,
    with_request_ids,
    with_requests,
)


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """A job that has been checked, ready to run.

    Attributes:
        job: what was asked for, checked.
        pinned: the rows, what is kept of them and each with its ``request_id``.
        work: the rows to score; None where there are none.
        to_update: with ids, those whose kept columns alone have changed; None where there are none.
        state: what of the run is in the output already.
        total: rows of the run, those that are done included.
        refused: how many of them no model will see, by error code; empty without ``work``.
        chunks: those that have rows.
        chunk_count: the chunk of a row is its bucket modulo this.
        done: numbers of the chunks that are in the output.
        partitions: columns by which a table that is replaced stays partitioned.
        notes: what the user should know of the output before the first row.
        changes: with ids, how the input differs from the output.
        slots: tasks that run at the same time.
    """

    job: CheckedJob
    pinned: DataFrame
    work: Work | None
    to_update: DataFrame | None
    state: OutputState
    total: int
    refused: Mapping[str, int]
    chunks: tuple[Chunk, ...]
    chunk_count: int
    done: frozenset[int]
    partitions: tuple[str, ...]
    notes: tuple[str, ...]
    changes: Changes | None
    slots: int

    @property
    def options(self) -> ScoreOptions:
        """What was asked for."""
        return self.job.options

    @property
    def run(self) -> RunIdentity:
        """What tells the run from others."""
        return self.job.run

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the input columns that go into the output."""
        return tuple(self.job.kept.fieldNames())

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the output's columns."""
        return tuple(self.job.written.fieldNames())

    @property
    def counts_tokens(self) -> bool:
        """Whether token counts come with the completions."""
        return self.work is not None and self.work.model.counts_tokens

    @property
    def to_do(self) -> tuple[Chunk, ...]:
        """The chunks that are not in the output yet."""
        return tuple(chunk for chunk in self.chunks if chunk.number not in self.done)

    @property
    def rows_done(self) -> int:
        """Rows of the run that need no scoring, those in the output among them."""
        return self.total - sum(chunk.rows for chunk in self.to_do)

    @property
    def requests_to_do(self) -> int:
        """Distinct requests that are not in the output yet."""
        return sum(chunk.requests for chunk in self.to_do)

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
            run=self.run,
            rows=self.total,
            chunks=self.chunk_count,
            run_id=run_id,
            mode=self.state.begin,
            commits=max(chunks_to_follow, 0) + bool(self.to_delete) + (self.to_update is not None),
        )


@dataclass(frozen=True, slots=True)
class _Compared:
    """A job beside its output.

    Attributes:
        rows: to score, as far as that is known: those that are done are among them without ids.
        pinned: all rows, with what is kept of them.
        state: what of the run is there.
        by_ids: with ids, what is new and what has changed.
    """

    rows: DataFrame
    pinned: DataFrame
    state: OutputState
    by_ids: Comparison | None


def plan_scoring(
    spark: SparkSession, options: ScoreOptions, *, wrap_pipeline: Callable[[str], str]
) -> ScoringPlan:
    """Plan a job.

    Args:
        spark: the session.
        options: what the user asked for.
        wrap_pipeline: makes a model that Spark can score of a plain transformers pipeline.

    Raises:
        TableError: the input or the output is not what it has to be.
        InvalidModelError: the model cannot be had, or takes neither prompts nor chats.
        InvalidParameterError: an option has no meaning for the model.
    """
    job = check_job(spark, options)
    compared = _compare(spark, job)
    cut = _cut_finished(job, compared) or _cut(spark, job, compared, wrap_pipeline)
    state, done = _find_done(spark, job, compared, cut)
    if state is not compared.state and cut.work is None:  # all of it is to be scored after all
        compared = replace(compared, state=state)
        cut = _cut(spark, job, compared, wrap_pipeline)
    plan = _put_together(spark, job, replace(compared, state=state), cut, done)
    if not plan.finished:
        constraints.check(job.output, plan.pinned, job.kept, job.added, state.begin, job.run.ids)
    return plan


def _compare(spark: SparkSession, job: CheckedJob) -> _Compared:
    """See what of a run is in its output, and which rows are not."""
    options, table = job.options, job.input.rows
    state = outputs.look(spark, job.output, outputs.AskedRun(job.run, job.written, options.mode))
    settings = identity.settings_of(job.run.fingerprint)
    rows = with_request_ids(table, job.kept.fieldNames(), job.run.request_columns, settings)
    pinned = identified(rows, job.kept.fieldNames())
    if not options.ids:
        return _Compared(rows, pinned, state, None)
    incremental.check_ids(rows, options.ids, job.input.location.text)
    compare = partial(
        incremental.compare,
        spark,
        rows,
        REQUEST_ID,
        job.output,
        options.ids,
        job.kept,
        retry_errors=options.retry_errors,
    )
    try:
        by_ids = compare(anew=_begins_anew(state))
    except TableError:  # the output's ids do not name its rows
        if options.mode != "overwrite":
            raise
        state = state.replaced()
        by_ids = compare(anew=True)
    return _Compared(by_ids.to_score, pinned, state, by_ids)


def _begins_anew(state: OutputState) -> bool:
    """Whether nothing that is in the output stays there."""
    return state.begin in ("error", "overwrite")


def _cut_finished(job: CheckedJob, compared: _Compared) -> Cut | None:
    """The chunks of a run that has nothing left to score; None if it has, or may have."""
    state = compared.state
    if compared.by_ids:
        to_score = compared.by_ids.changes.to_score(retry_errors=job.options.retry_errors)
        return None if to_score else NOTHING
    if state.begin is not None or state.chunks is None:
        return None
    return cut_finished(compared.rows, state.rows, state.chunks)


def _cut(
    spark: SparkSession,
    job: CheckedJob,
    compared: _Compared,
    wrap_pipeline: Callable[[str], str],
) -> Cut:
    """Load the model, see what it is asked, and cut that into chunks."""
    state, options, rows = compared.state, job.options, compared.rows
    model = _load(job, wrap_pipeline)
    may_sample = not model.greedy or "temperature" in options.source.param_columns
    if options.ids and not _begins_anew(state) and may_sample:
        rows = incremental.count_existing(
            spark, rows, REQUEST_ID, job.output, options.ids, existing=EXISTING
        )
    work = with_requests(rows, job.input.rows.schema, options.source, model, job.kept.fieldNames())
    return cut_work(work, state.chunks)


def _find_done(
    spark: SparkSession, job: CheckedJob, compared: _Compared, cut: Cut
) -> tuple[OutputState, frozenset[int]]:
    """The chunks that are in the output, and its state as it is to be taken.

    Raises:
        TableError: the output was changed by somebody else, and is not to be overwritten.
    """
    state, is_overwritten = compared.state, job.options.mode == "overwrite"
    rows_by_chunk = {chunk.number: chunk.rows for chunk in cut.chunks}
    try:
        done = outputs.done_chunks(job.output, state, rows_by_chunk, cut.chunk_count)
    except TableError:
        if not is_overwritten:
            raise
        return state.replaced(), frozenset()
    finished = len(done) == len(cut.chunks) and state.begin is None and not job.run.ids
    # by somebody else, and the user wants the table made anew
    if is_overwritten and finished and not _is_whole(spark, job, compared):
        return state.replaced(), frozenset()
    return state, done


def _put_together(
    spark: SparkSession,
    job: CheckedJob,
    compared: _Compared,
    cut: Cut,
    done: frozenset[int],
) -> ScoringPlan:
    by_ids, state = compared.by_ids, compared.state
    to_update = None
    if by_ids and by_ids.to_update is not None and by_ids.changes.updated:
        to_update = identified(by_ids.to_update, job.kept.fieldNames())
    replaced = job.output if state.begin == "overwrite" else None
    return ScoringPlan(
        job=job,
        pinned=compared.pinned,
        work=cut.work,
        to_update=to_update,
        state=state,
        total=sum(chunk.rows for chunk in cut.chunks),
        refused=cut.refused,
        chunks=cut.chunks,
        chunk_count=cut.chunk_count,
        done=done,
        partitions=constraints.kept_partitions(replaced, job.written),
        notes=constraints.dropped_layout(replaced, job.written),
        changes=by_ids.changes if by_ids else None,
        slots=session.task_slots(spark),
    )


def _is_whole(spark: SparkSession, job: CheckedJob, compared: _Compared) -> bool:
    """Whether the output of a finished run has each row once."""
    state, run = compared.state, job.run
    assert state.version is not None  # the run has begun
    table = tables.read_version(spark, job.output.location, state.version)
    return balance.compare_run(compared.pinned, table, state.seen, run.fingerprint, run.ids, ()).ok


def _load(job: CheckedJob, wrap_pipeline: Callable[[str], str]) -> ScoringModel:
    return load_model(
        job.model,
        job.options.generation,
        row_params=job.options.source.param_columns,
        wrap_pipeline=wrap_pipeline,
        pilot_prompts=partial(job.options.source.pilot_prompts, job.input.rows),
    )
