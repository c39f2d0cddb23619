"""Scoring one chunk: what the model is asked, what becomes of the rows, and one commit of them.

A chunk is scored whole and kept on the executors before it is committed, so that a commit takes
seconds and one that has to be made again costs no scoring. What happens when its job fails is in
attempts.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from phi3_batch.scoring.delta.commits import Committer
from phi3_batch.scoring.job.attempts import Blamed, CrashLimit, persist
from phi3_batch.scoring.job.plan import BUCKET, EXISTING, REFUSAL, REQUEST_ID, Chunk, ScoringPlan
from phi3_batch.scoring.job.tasks import count_side_by_side, count_tasks
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.columns import named
from phi3_batch.scoring.rows.idle_limit import IdleLimit
from phi3_batch.scoring.rows.requests import refuse

_COPY, _INPUTS, _RESULT = "__phi3_batch_copy", "__phi3_batch_inputs", "__phi3_batch_result"


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
    """

    chunk: Chunk
    seconds: float
    generated_tokens: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    by_us: bool = True


class ChunkScorer:
    """Scores the chunks of a run; one for the whole run, used by several threads.

    Args:
        spark: the session.
        plan: of the run.
        run_id: of MLflow's run, written beside each row.

    Attributes:
        side_by_side: how many chunks fill the slots, once the first commit is made.
    """

    def __init__(self, spark: SparkSession, plan: ScoringPlan, run_id: str) -> None:
        self._spark = spark
        self._plan = plan
        self._run_id = run_id
        self._udf = plan.udf.result()
        self._crash_limit = CrashLimit(sum(chunk.requests for chunk in plan.chunks))
        self._seconds_per_request: float | None = None  # of a slot
        self._idle_limit = IdleLimit(spark, plan.model, plan.heaviest_s)
        largest = max((chunk.requests for chunk in plan.to_do), default=0)
        begins_with_one = plan.state.begin is not None and not plan.begins_empty
        after_first = len(plan.to_do) - begins_with_one
        self.side_by_side = count_side_by_side(plan.slots, largest, after_first)
        self._committer = Committer(
            spark, plan.options.output, plan.contender, plan.state.seen, plan.state.start
        )

    def begin(self, chunk: Chunk | None) -> ScoredChunk | None:
        """Make the run's first commit, with its first chunk if there is any."""
        plan = self._plan
        mode = plan.state.begin
        assert mode is not None  # who calls has looked
        record = plan.record(self._run_id)
        if chunk is None:
            nothing = self._rows(self._work(Chunk(0, 0, 0)).limit(0), 1, {}).drop(_COPY)
            self._committer.begin(nothing, record, mode, None, plan.partitions)
            return None

        def commit(rows: DataFrame) -> bool:
            begun = self._committer.begin(rows, record, mode, chunk.number, plan.partitions)
            return begun or self._add(rows, chunk)  # another driver's first may have been another

        return self._score(chunk, commit, slots=plan.slots)

    def score(self, chunk: Chunk) -> ScoredChunk:
        """Score a chunk and commit it."""
        slots = -(-self._plan.slots // self.side_by_side)
        return self._score(chunk, lambda rows: self._add(rows, chunk), slots)

    def bring_up_to_date(self) -> None:
        """Write what takes no model: kept columns that alone have changed, and deletions."""
        plan = self._plan
        if plan.to_update is not None:
            self._committer.update_kept(plan.to_update, plan.options.ids, plan.kept)
        if plan.to_delete:
            ids = plan.options.ids
            self._committer.delete_others(plan.input.rows.select(*map(named, ids)), ids)

    def _add(self, rows: DataFrame, chunk: Chunk) -> bool:
        """Commit a chunk of a run that has begun; False where another driver has."""
        if self._plan.options.ids:
            return self._committer.merge(rows, self._plan.options.ids, chunk.number)
        return self._committer.append(rows, chunk.number)

    def try_out(self, requests: Sequence[str]) -> int:
        """Score a few requests in one task without writing; returns the tokens generated."""
        plan = self._plan
        some = plan.work.where(F.col(REQUEST_ID).isin(*requests)).dropDuplicates([REQUEST_ID])
        asked = self._ask(some.withColumn(_COPY, F.lit(0)), tasks=1)
        answers = asked.select(F.struct(*self._answer_columns()).alias(_RESULT))
        total = answers.agg(F.sum(F.col(_RESULT)["completion_tokens"])).head()
        return int(total[0] or 0) if total else 0

    def _score(self, chunk: Chunk, commit: Callable[[DataFrame], bool], slots: int) -> ScoredChunk:
        """Score on so many slots and commit, through whatever goes wrong.

        Args:
            chunk: which.
            commit: writes its rows, and returns whether it did; else another driver has.
            slots: tasks of it that run at the same time.

        Raises:
            ScoringError: it cannot be done; nothing of the chunk was written.
        """
        started = time.monotonic()
        work = _ChunkWork(self, self._work(chunk), chunk.requests, commit, slots)
        attempt, retries = persist(work, self._crash_limit, self._plan.options.output)
        if chunk.requests:
            # the least of all chunks': others have waited for a slot
            each = attempt.seconds * slots / chunk.requests
            self._seconds_per_request = min(self._seconds_per_request or each, each)
            if not retries:
                self._idle_limit.learn(attempt.seconds, slots, chunk.allowed_s)
        return ScoredChunk(
            chunk,
            time.monotonic() - started,
            attempt.tokens,
            attempt.errors,
            retries,
            attempt.by_us,
        )

    def _work(self, chunk: Chunk) -> DataFrame:
        """The rows of a chunk.

        Greedy rows of one request are one copy: they are asked once. Sampled ones are counted, in
        an order that is the same each time and on from those that the output has, and the model
        gives each copy a text of its own.
        """
        plan = self._plan
        work = plan.work.where(F.col(BUCKET) % plan.chunk_count == chunk.number)
        order = Window.partitionBy(REQUEST_ID).orderBy(identity.row_digest(work.schema, plan.kept))
        return work.withColumn(
            _COPY,
            F.when(plan.greedy, F.lit(0)).otherwise(
                F.col(EXISTING) + F.row_number().over(order) - 1
            ),
        )

    def _ask(self, work: DataFrame, tasks: int) -> DataFrame:
        """The distinct requests among rows, with the model's result for each."""
        inputs = self._plan.requests.struct().alias(_INPUTS)
        # Rows that no model should see are split off before it. A condition around the UDF would
        # not do: Spark runs a Python UDF for every row, whatever stands around it.
        # The model counts copies within its batch: before the first new one, it is asked those
        # again that the output has.
        copy = F.col(_COPY)
        first = F.when(copy == F.col(EXISTING), F.lit(0)).otherwise(copy)
        copies = F.explode(F.sequence(first, copy)).alias(_COPY)
        asked = work.where(F.col(REFUSAL).isNull()).select(REQUEST_ID, copies, inputs)
        once = asked.dropDuplicates([REQUEST_ID, _COPY])
        # copies come to the model in one task and in their order, on any number of processors
        placed = once.repartition(tasks, REQUEST_ID).sortWithinPartitions(REQUEST_ID, _COPY)
        return placed.withColumn(_RESULT, self._udf.ask(F.col(_INPUTS))).drop(_INPUTS)

    def _rows(self, work: DataFrame, tasks: int, blamed: Blamed) -> DataFrame:
        """The output's rows, and the number of each among the copies of its request."""
        plan = self._plan
        if blamed:
            named_errors = [
                refuse(F.col(REQUEST_ID) == request, code, message)
                for request, (code, message) in blamed.items()
            ]
            work = work.withColumn(REFUSAL, F.coalesce(F.col(REFUSAL), *named_errors))
        kept = [named(name) for name in plan.kept]
        answers = self._ask(work, tasks).select(
            REQUEST_ID, _COPY, F.struct(*self._answer_columns()).alias(_RESULT)
        )
        keys = [REQUEST_ID, _COPY]
        sound = work.where(F.col(REFUSAL).isNull()).select(*keys, *kept)
        answered = sound.join(answers, on=keys).select(*kept, *keys, f"{_RESULT}.*")
        refusal = self._added(schema.columns_from_error(F.col(REFUSAL)))
        refused = work.where(F.col(REFUSAL).isNotNull())
        scored = answered.unionByName(refused.select(*kept, *keys, *refusal))
        scored = scored.withColumnRenamed(REQUEST_ID, schema.REQUEST_ID).withColumns(
            {
                "model": F.lit(plan.model.resolved_uri),
                "run_id": F.lit(self._run_id),
                schema.FINGERPRINT: F.lit(plan.fingerprint),
                "scored_at": F.current_timestamp(),
            }
        )
        return scored.select(*kept, *map(named, plan.scored_columns), _COPY)

    def _answer_columns(self) -> list[Column]:
        return self._added(self._udf.read(F.col(_RESULT)))

    def _added(self, columns: Mapping[str, Column]) -> list[Column]:
        # a response that is not kept must not meet an input column of that name
        return [columns[name].alias(name) for name in self._plan.scored_columns if name in columns]


class _Attempt(NamedTuple):
    """An attempt at a chunk that succeeded.

    Attributes:
        seconds: of scoring, the commit apart.
        errors: rows with an error, by code.
        tokens: that were generated.
        by_us: whether this process has written it.
    """

    seconds: float
    errors: Mapping[str, int]
    tokens: int
    by_us: bool


@dataclass(frozen=True, slots=True)
class _ChunkWork:
    """A chunk as :func:`~phi3_batch.scoring.job.attempts.persist` takes it.

    Attributes:
        scorer: of the run.
        rows: of the chunk.
        count: of its requests.
        commit: writes its rows, and returns whether it did.
        slots: tasks of it that run at the same time.
    """

    scorer: ChunkScorer
    rows: DataFrame
    count: int
    commit: Callable[[DataFrame], bool]
    slots: int

    def attempt(self, blamed: Blamed) -> _Attempt:
        started = time.monotonic()
        scored = self.scorer._rows(self.rows, self._tasks(self.count), blamed)
        scored = scored.localCheckpoint()  # what is read from it does not run the model again
        seconds = time.monotonic() - started
        errors, tokens = _count(scored)
        return _Attempt(seconds, errors, tokens, self.commit(scored.drop(_COPY)))

    def requests(self, blamed: Blamed) -> list[str]:
        ids = F.col(REQUEST_ID)
        return [row[0] for row in self._sound(blamed).select(ids).distinct().orderBy(ids).collect()]

    def try_some(self, requests: Sequence[str], blamed: Blamed) -> None:
        between = F.col(REQUEST_ID).between(requests[0], requests[-1])
        trial = self.scorer._ask(self._sound(blamed).where(between), self._tasks(len(requests)))
        trial.write.format("noop").mode("overwrite").save()

    def _sound(self, blamed: Blamed) -> DataFrame:
        return self.rows.where(F.col(REFUSAL).isNull() & ~F.col(REQUEST_ID).isin(*blamed))

    def _tasks(self, requests: int) -> int:
        return count_tasks(requests, self.slots, self.scorer._seconds_per_request)


def _count(scored: DataFrame) -> tuple[dict[str, int], int]:
    """Rows with an error by code, and the tokens that were generated: for copies, once."""
    code = F.col("error")["code"]
    once = scored.groupBy(named(schema.REQUEST_ID), _COPY, code.alias("code")).agg(
        F.count(F.lit(1)).alias("rows"), F.max("completion_tokens").alias("tokens")
    )
    counted = once.groupBy("code").agg(F.sum("rows").alias("rows"), F.sum("tokens").alias("tokens"))
    found = counted.collect()
    errors = {row["code"]: row["rows"] for row in found if row["code"]}
    return errors, sum(row["tokens"] or 0 for row in found)
