"""Running a scoring job: chunk by chunk, each written once, whatever happens in between."""

import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.errors import InputGoneError, ScoringError, SupersededError
from phi3_batch.scoring import session
from phi3_batch.scoring.compat import JOB_ERRORS, JVM_GONE_ERRORS
from phi3_batch.scoring.delta import tables
from phi3_batch.scoring.delta.balance import Balance, compare_run
from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.job import faults, statistics
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.plan import ScoringPlan
from phi3_batch.scoring.job.statistics import Statistics
from phi3_batch.scoring.job.writer import RunWriter
from phi3_batch.scoring.rows import schema

_TICK_S = 0.5
_ENDS_THE_RUN: tuple[type[Exception], ...] = (ScoringError, *JOB_ERRORS)


class Outcome(Enum):
    """How a run ended that did not fail."""

    COMPLETE = "complete"
    OUT_OF_BUDGET = "stopped by its budget"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop before the end; what is in flight then is finished and committed.

    Attributes:
        hours: of scoring.
        output_tokens: generated.
    """

    hours: float | None = None
    output_tokens: int | None = None

    def is_spent(self, seconds: float, tokens: int) -> bool:
        """Whether no further chunk may start."""
        return (self.hours is not None and seconds >= self.hours * 3600) or (
            self.output_tokens is not None and tokens >= self.output_tokens
        )


@dataclass(slots=True)
class Progress:
    """How far a job is. Counts are of this process, unless they say otherwise.

    Attributes:
        rows: of the run in all.
        rows_done: in the output, those that were there before included.
        requests_left: not scored yet.
        rows_scored: written by this process.
        requests_done: scored.
        generated_tokens: by the model.
        errors: rows with an error, by code.
        retries: Spark jobs that failed, or were run to find out why.
        chunks_done: committed.
        seconds: of scoring.
        engines: names and versions of those that have answered, as far as the model tells.
    """

    rows: int
    rows_done: int
    requests_left: int
    rows_scored: int = 0
    requests_done: int = 0
    generated_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    chunks_done: int = 0
    seconds: float = 0.0
    engines: set[str] = field(default_factory=set)

    def add(self, scored: ScoredChunk) -> None:
        """Count a chunk that is committed."""
        self.rows_done += scored.chunk.rows
        self.requests_left -= scored.chunk.requests
        self.retries += scored.retries
        if scored.by_us:
            self.rows_scored += scored.chunk.rows
            self.requests_done += scored.chunk.requests
            self.generated_tokens += scored.generated_tokens
            self.errors.update(scored.errors)
            self.engines |= scored.engines
            self.chunks_done += 1

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the engine's loading included."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time to go, by the mean of all that was done: steady, where chunks are not."""
        if not self.requests_done:
            return None
        return self.seconds * self.requests_left / self.requests_done


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job did, and what its run has come to.

    Attributes:
        outcome: how it ended.
        progress: what this process did.
        balance: rows in against rows out, checked in the tables; None unless it is complete.
        statistics: of all of the run that is in the output; None where it was interrupted.
        output_version: of the Delta table.
        output_path: where the table is.
    """

    outcome: Outcome
    progress: Progress
    balance: Balance | None
    statistics: Statistics | None
    output_version: int | None
    output_path: str


def run_scoring(
    spark: SparkSession,
    plan: ScoringPlan,
    run_id: str,
    *,
    budget: Budget,
    on_progress: Callable[[Progress], None],
    on_chunk: Callable[[ScoredChunk, Progress], None],
) -> Summary:
    """Score the rows of a plan that are not in the output yet.

    Args:
        spark: the session the plan was made with.
        plan: from :func:`plan_scoring`.
        run_id: written beside each row.
        budget: when to stop before the end.
        on_progress: called twice a second, and after each chunk.
        on_chunk: called after each chunk.

    Raises:
        ScoringError: a chunk cannot be scored, or the output does not have each row once at the
            end. What was committed stays; run the same command to continue.
    """
    progress = Progress(
        rows=plan.total,
        rows_done=plan.rows_done,
        requests_left=plan.requests_to_do,
    )
    job = _Job(spark, plan, run_id, budget, progress, on_progress, on_chunk)
    outcome = job.run()
    return _summarize(spark, plan, job.seen, outcome, progress)


class _Job:
    """The loop over chunks."""

    def __init__(
        self,
        spark: SparkSession,
        plan: ScoringPlan,
        run_id: str,
        budget: Budget,
        progress: Progress,
        on_progress: Callable[[Progress], None],
        on_chunk: Callable[[ScoredChunk, Progress], None],
    ) -> None:
        self._plan = plan
        self._budget = budget
        self._progress = progress
        self._on_progress = on_progress
        self._on_chunk = on_chunk
        self._writer = RunWriter(spark, plan, run_id)
        # One more than fill the slots: while one commits, another keeps the processors busy.
        self._in_flight = self._writer.side_by_side + 1
        self._pool = session.JobPool(spark, self._in_flight)
        self._running: set[Future[ScoredChunk | None]] = set()
        self._started = time.monotonic()

    @property
    def seen(self) -> Ledger:
        """The output's history, with all that this run has committed."""
        return self._writer.seen

    def run(self) -> Outcome:
        """Score what is to do.

        Raises:
            ScoringError: a chunk cannot be scored.
        """
        writer, waiting = self._writer, deque(self._plan.to_do)
        try:
            # The first commit makes or replaces the table, and is waited for: if its chunk cannot
            # be scored, the table is as it was.
            if self._plan.state.begin:
                first = waiting.popleft() if waiting and not self._plan.begins_empty else None
                self._finish(lambda: writer.begin(first))
            while self._running or (waiting and not self._is_spent()):
                while waiting and len(self._running) < self._in_flight and not self._is_spent():
                    self._submit(partial(writer.write, waiting.popleft()))
                self._wait()
            if not waiting:
                self._finish(writer.bring_up_to_date)
        except KeyboardInterrupt:
            self._drop_running()
            return Outcome.INTERRUPTED
        # OSError is what a JVM that has died looks like from here
        except _ENDS_THE_RUN as error:
            self._drop_running()
            failed = (
                error
                if isinstance(error, ScoringError)
                else faults.failure(error, self._plan.options.output)
            )
            if isinstance(failed, SupersededError):  # which says what is left to do
                raise failed from None
            raise ScoringError(f"{failed}; {self._how_to_go_on(failed)}") from None
        finally:
            self._pool.close()
        return Outcome.OUT_OF_BUDGET if waiting else Outcome.COMPLETE

    def _is_spent(self) -> bool:
        return self._budget.is_spent(
            time.monotonic() - self._started, self._progress.generated_tokens
        )

    def _finish(self, work: Callable[[], ScoredChunk | None]) -> None:
        """Do something by itself."""
        self._submit(work)
        while self._running:
            self._wait()

    def _submit(self, work: Callable[[], ScoredChunk | None]) -> None:
        self._running.add(self._pool.submit(work))

    def _wait(self) -> None:
        """Wait a moment for chunks in flight, and count those that are done."""
        done, self._running = wait(self._running, _TICK_S, return_when=FIRST_COMPLETED)
        self._progress.seconds = time.monotonic() - self._started
        for future in done:
            if scored := future.result():
                self._progress.add(scored)
                self._on_chunk(scored, self._progress)
        self._on_progress(self._progress)

    def _drop_running(self) -> None:
        """Stop what is in flight; a chunk that had reached its commit is done all the same."""
        while self._running:
            with suppress(*JVM_GONE_ERRORS):  # of a JVM that has died
                self._pool.cancel()  # again and again: a job may have been about to start
            done, self._running = wait(self._running, _TICK_S)
            for future in done:
                if future.exception() is None and (scored := future.result()):
                    self._progress.add(scored)

    def _how_to_go_on(self, failed: ScoringError) -> str:
        done, rows = self._progress.rows_done, self._progress.rows
        if done == 0:
            return "the output is unchanged"
        there = f"{done:,} of {rows:,} rows are in the output"
        if isinstance(failed, InputGoneError):
            return (
                f"{there}, and the input as it is now is another run: use --mode overwrite, or"
                " another output"
            )
        return f"{there}; run the same command to continue"


def check_finished(spark: SparkSession, plan: ScoringPlan) -> Summary:
    """Count rows in against rows out of a run that has nothing left to do.

    Raises:
        ScoringError: rows are missing, or are there more than once.
    """
    progress = Progress(rows=plan.total, rows_done=plan.total, requests_left=0)
    return _summarize(spark, plan, plan.state.seen, Outcome.COMPLETE, progress)


def _check_balance(plan: ScoringPlan, table: DataFrame, ledger: Ledger) -> Balance:
    balance = compare_run(
        plan.pinned,
        table,
        ledger,
        plan.run.fingerprint,
        plan.run.ids,
        list(plan.job.kept),
    )
    if not balance.ok:
        raise ScoringError(
            f"output {plan.options.output.text} does not have each row once ({balance}): somebody"
            " else has written to it. Restore it (RESTORE TABLE), or start over with --mode"
            " overwrite or another output"
        )
    return balance


def _rows_of(plan: ScoringPlan, table: DataFrame) -> DataFrame:
    return table.where(F.col(schema.FINGERPRINT) == plan.run.fingerprint)


def _summarize(
    spark: SparkSession,
    plan: ScoringPlan,
    ledger: Ledger,
    outcome: Outcome,
    progress: Progress,
) -> Summary:
    """Look at the tables, unless the user wants to be gone.

    Raises:
        ScoringError: the run is complete and rows are missing, or are there more than once.
    """
    output = plan.options.output
    if outcome is Outcome.INTERRUPTED:
        return Summary(outcome, progress, None, None, None, output.text)
    version = ledger.last_version
    table = tables.read_version(spark, output, version)
    return Summary(
        outcome=outcome,
        progress=progress,
        balance=_check_balance(plan, table, ledger) if outcome is Outcome.COMPLETE else None,
        statistics=statistics.collect(
            _rows_of(plan, table), ledger, plan.run.fingerprint, plan.chunk_count
        ),
        output_version=version,
        output_path=tables.table_path(spark, output),
    )
