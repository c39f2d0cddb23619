"""Scoring one chunk, through whatever goes wrong.

A chunk is scored whole and kept on the executors before it is committed, so that a commit takes
seconds and one that has to be made again costs no scoring. What happens when its job fails is in
attempts.py.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.scoring.compat import JVM_GONE_ERRORS
from phi3_batch.scoring.job.attempts import CrashLimit, persist
from phi3_batch.scoring.job.cut import Chunk
from phi3_batch.scoring.job.plan import ScoringPlan
from phi3_batch.scoring.job.tasks import count_tasks
from phi3_batch.scoring.rows import schema
from phi3_batch.scoring.rows.columns import named
from phi3_batch.scoring.rows.score import COPY, Blamed, RowScorer
from phi3_batch.scoring.rows.time_limit import TimeLimit
from phi3_batch.scoring.rows.udf import model_udf
from phi3_batch.scoring.rows.work import BUCKET, REFUSAL, REQUEST_ID, Work
from phi3_batch.scoring.rows.worker import ENGINE

# Writes a chunk's rows, and returns whether it did; else another driver has.
Commit = Callable[[DataFrame], bool]


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """What became of a chunk.

    Attributes:
        chunk: which.
        seconds: from its start to its commit.
        generated_tokens: by the model; a copy of a completion was not generated again.
        errors: rows with an error, by code.
        retries: Spark jobs that failed or were run to find out why.
        by_us: whether this process wrote it; else another driver did.
        engines: names and versions of those that have answered.
    """

    chunk: Chunk
    seconds: float
    generated_tokens: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    by_us: bool = True
    engines: frozenset[str] = frozenset()


class ChunkScorer:
    """Scores the chunks of a run; one for the whole run, used by several threads.

    Args:
        spark: the session.
        plan: of the run.
        work: of the plan.
        run_id: of MLflow's run, written beside each row.

    Raises:
        EnvironmentProblemError: there is no room for MLflow's copies of the model.
    """

    def __init__(self, spark: SparkSession, plan: ScoringPlan, work: Work, run_id: str) -> None:
        self._plan = plan
        self._work = work
        self._run_id = run_id
        udf = model_udf(spark, work.model, greedy=work.is_greedy)
        self._limit = TimeLimit(work.model)
        options = plan.options
        self._rows = RowScorer(work, udf, self._limit, options.keep_response, options.answers)
        self._crash_limit = CrashLimit(sum(chunk.requests for chunk in plan.chunks))
        self._seconds_per_request: float | None = None  # of a slot

    def score(self, chunk: Chunk, commit: Commit, slots: int) -> ScoredChunk:
        """Score on so many slots and commit, through whatever goes wrong.

        Args:
            chunk: which.
            commit: writes its rows.
            slots: tasks of it that run at the same time.

        Raises:
            ScoringError: it cannot be done; nothing of the chunk was written.
        """
        started = time.monotonic()
        of_chunk = F.col(BUCKET) % self._plan.chunk_count == chunk.number
        # the model's side and the rows' side of an attempt both read them: the input is read once
        with _kept(self._rows.number_copies(self._work.rows.where(of_chunk))) as rows:
            work = _ChunkWork(self, rows, chunk.requests, commit, slots)
            attempt, retries = persist(work, self._crash_limit, self._plan.options.output)
        if chunk.requests:
            # the least of all chunks': others have waited for a slot
            each = attempt.seconds * slots / chunk.requests
            self._seconds_per_request = min(self._seconds_per_request or each, each)
            if not retries:
                self._limit.learn(attempt.seconds, slots, chunk.allowed_s)
        return ScoredChunk(
            chunk,
            time.monotonic() - started,
            attempt.tokens,
            attempt.errors,
            retries,
            attempt.by_us,
            attempt.engines,
        )

    def ask(self, rows: DataFrame, requests: int, slots: int) -> DataFrame:
        """The distinct requests among rows, with the model's result for each."""
        return self._rows.ask(rows, self._tasks(requests, slots))

    def answer(self, rows: DataFrame, requests: int, slots: int, blamed: Blamed) -> DataFrame:
        """The output's rows, with COPY and ENGINE."""
        scored = self._rows.score(rows, self._tasks(requests, slots), blamed).withColumns(
            {
                "model": F.lit(self._plan.job.model.resolved_uri),
                "run_id": F.lit(self._run_id),
                schema.FINGERPRINT: F.lit(self._plan.run.fingerprint),
                "scored_at": F.current_timestamp(),
            }
        )
        return scored.select(*map(named, self._plan.columns), COPY, ENGINE)

    def _tasks(self, requests: int, slots: int) -> int:
        return count_tasks(requests, slots, self._seconds_per_request)


@contextmanager
def _kept(rows: DataFrame) -> Iterator[DataFrame]:
    """Keep rows on the executors for as long as they are worked on."""
    try:
        yield rows.persist()
    finally:
        with suppress(*JVM_GONE_ERRORS):  # of a JVM that has died
            rows.unpersist()


class _Attempt(NamedTuple):
    """An attempt at a chunk that succeeded.

    Attributes:
        seconds: of scoring, the commit apart.
        errors: rows with an error, by code.
        tokens: that were generated.
        engines: that have answered.
        by_us: whether this process has written it.
    """

    seconds: float
    errors: Mapping[str, int]
    tokens: int
    engines: frozenset[str]
    by_us: bool


@dataclass(frozen=True, slots=True)
class _ChunkWork:
    """A chunk as :func:`~phi3_batch.scoring.job.attempts.persist` takes it.

    Attributes:
        scorer: of the run.
        rows: of the chunk.
        count: of its requests.
        commit: writes its rows.
        slots: tasks of it that run at the same time.
    """

    scorer: ChunkScorer
    rows: DataFrame
    count: int
    commit: Commit
    slots: int

    def attempt(self, blamed: Blamed) -> _Attempt:
        started = time.monotonic()
        scored = self.scorer.answer(self.rows, self.count, self.slots, blamed)
        scored = scored.localCheckpoint()  # what is read from it does not run the model again
        seconds = time.monotonic() - started
        errors, tokens, engines = _count(scored)
        by_us = self.commit(scored.drop(COPY, ENGINE))
        return _Attempt(seconds, errors, tokens, engines, by_us)

    def requests(self, blamed: Blamed) -> list[str]:
        ids = F.col(REQUEST_ID)
        return [row[0] for row in self._sound(blamed).select(ids).distinct().orderBy(ids).collect()]

    def try_some(self, requests: Sequence[str], blamed: Blamed) -> None:
        between = F.col(REQUEST_ID).between(requests[0], requests[-1])
        some = self._sound(blamed).where(between)
        trial = self.scorer.ask(some, len(requests), self.slots)
        trial.write.format("noop").mode("overwrite").save()

    def _sound(self, blamed: Blamed) -> DataFrame:
        return self.rows.where(F.col(REFUSAL).isNull() & ~F.col(REQUEST_ID).isin(*blamed))


def _count(scored: DataFrame) -> tuple[dict[str, int], int, frozenset[str]]:
    """Rows with an error by code; tokens that were generated, for copies once; the engines."""
    code = F.col("error")["code"]
    once = scored.groupBy(named(schema.REQUEST_ID), COPY, code.alias("code")).agg(
        F.count(F.lit(1)).alias("rows"),
        F.max("completion_tokens").alias("tokens"),
        F.max(ENGINE).alias("engine"),
    )
    found = (
        once.groupBy("code", "engine")
        .agg(F.sum("rows").alias("rows"), F.sum("tokens").alias("tokens"))
        .collect()
    )
    errors = Counter[str]()
    for row in found:
        if row["code"]:
            errors[row["code"]] += row["rows"]
    tokens = sum(row["tokens"] or 0 for row in found)
    return dict(errors), tokens, frozenset(row["engine"] for row in found if row["engine"])
