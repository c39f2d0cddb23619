"""Scoring one chunk: what the model is asked, what becomes of the rows, and one commit of them.

A chunk whose job fails is tried once more. If it fails again, the request that makes it fail is
looked for by halving, gets an error of its own, and the chunk is scored without it.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as F

from phi3_batch.errors import RowErrorCode, ScoringError
from phi3_batch.scoring import commits, faults, identity, schema, session, tables
from phi3_batch.scoring.columns import named
from phi3_batch.scoring.faults import CrashLimit, Fault
from phi3_batch.scoring.ledger import Commit, describe_commit, read_ledger
from phi3_batch.scoring.plan import BUCKET, REFUSAL, REQUEST_ID, Chunk, ScoringPlan
from phi3_batch.scoring.requests import refuse
from phi3_batch.scoring.tasks import REQUESTS_PER_TASK, count_side_by_side, count_tasks
from phi3_batch.scoring.udf import limit_idle_workers

_COPY, _INPUTS, _RESULT = "__phi3_batch_copy", "__phi3_batch_inputs", "__phi3_batch_result"

_CONFLICTS_TOLERATED = 5
_FRUITLESS_SEARCHES = 3
_OBSERVED_WITHIN_S = 5.0  # Spark's listeners run behind its jobs

_Culprits = dict[str, tuple[RowErrorCode, str]]


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
        self._start: int | None = None  # version of the run's first commit
        self._udf = plan.udf.result()
        self._crash_limit = CrashLimit(sum(chunk.requests for chunk in plan.chunks))
        self._seconds_per_request: float | None = None  # of a slot
        largest = max((chunk.requests for chunk in plan.to_do), default=0)
        after_first = len(plan.to_do) - (plan.state.begin is not None)
        self.side_by_side = count_side_by_side(plan.slots, largest, after_first)

    def find_start(self) -> Commit | None:
        """Look up the run's first commit, below which this process commits chunks."""
        plan = self._plan
        ledger = read_ledger(self._spark, plan.options.output)
        if plan.state.begin:
            start = ledger.first_start(plan.fingerprint, above=plan.state.base)
        else:
            start = ledger.start_of(plan.fingerprint)
        self._start = start.version if start else plan.state.base
        return start

    def begin(self, chunk: Chunk | None) -> ScoredChunk | None:
        """Make the run's first commit, with its first chunk if there is any."""
        plan = self._plan
        number = chunk.number if chunk else None
        record = plan.record(self._run_id)
        says = describe_commit(plan.fingerprint, chunk=number, record=record)
        mode = plan.state.begin
        assert mode is not None  # who calls has looked

        def commit(rows: DataFrame) -> None:
            try:
                commits.begin(rows, plan.options.output, mode, plan.state.transaction, says)
            except commits.WrittenByAnotherError as error:
                if self._has_begun() or error.__cause__ is None:
                    raise
                # it was not this run that was in the way
                raise error.__cause__ from None

        if chunk is None:
            commit(self._rows(self._work(Chunk(0, 0, 0)).limit(0), 1, {})[0])
            return None
        begun = self._score(chunk, commit, slots=plan.slots)
        start = self.find_start()
        by_us = bool(start and start.record and start.record.run_id == self._run_id)
        if by_us and begun.by_us:
            return begun
        # Spark does not observe the write that replaces a table by its name; or another driver
        # has begun the run, with this chunk or another one.
        there = self._look_up(begun)
        return self.score(chunk) if there is None else replace(there, by_us=by_us)

    def score(self, chunk: Chunk) -> ScoredChunk:
        """Score a chunk and commit it."""
        plan = self._plan
        # with ids no first commit is needed, and each says what the run is
        record = plan.record(self._run_id) if plan.options.ids else None
        says = describe_commit(
            plan.fingerprint, chunk=chunk.number, start=self._start, record=record
        )
        transaction = f"phi3_batch/{plan.fingerprint}/{self._start}/{chunk.number}"

        def commit(rows: DataFrame) -> None:
            if plan.options.ids:
                commits.merge(rows.localCheckpoint(), plan.options.output, plan.options.ids, says)
            else:
                commits.append(rows, plan.options.output, transaction, says)

        return self._score(chunk, commit, slots=-(-plan.slots // self.side_by_side))

    def try_out(self, requests: Sequence[str]) -> int:
        """Score a few requests in one task without writing; returns the tokens generated."""
        plan = self._plan
        some = plan.work.where(F.col(REQUEST_ID).isin(*requests)).dropDuplicates([REQUEST_ID])
        asked = self._ask(some.withColumn(_COPY, F.lit(0)), tasks=1)
        answers = asked.select(F.struct(*self._answer_columns()).alias(_RESULT))
        total = answers.agg(F.sum(F.col(_RESULT)["completion_tokens"])).head()
        return int(total[0] or 0) if total else 0

    def _score(self, chunk: Chunk, commit: Callable[[DataFrame], None], slots: int) -> ScoredChunk:
        """Score on so many slots and commit, through whatever goes wrong.

        Raises:
            ScoringError: it cannot be done; nothing of the chunk was written.
        """
        started, retries, failures, conflicts = time.monotonic(), 0, 0, 0
        culprits: _Culprits = {}
        work = self._work(chunk)
        while True:
            tasks = count_tasks(chunk.requests, slots, self._seconds_per_request)
            rows, of_rows, of_requests = self._rows(work, tasks, culprits)
            try:
                commit(rows)
                break
            except commits.WrittenByAnotherError:
                return ScoredChunk(chunk, time.monotonic() - started, by_us=False)
            except (PySparkException, Py4JError, OSError) as error:
                retries += 1
                fault = faults.classify(error)
                if fault is Fault.CONFLICT and conflicts < _CONFLICTS_TOLERATED:
                    conflicts += 1
                    continue
                if fault not in (Fault.CRASH, Fault.RAISED):
                    raise faults.failure(error) from error
                failures += 1
                if failures == 1 and fault is Fault.CRASH:
                    continue  # by chance, perhaps: a machine was taken away, memory was short
                culprit, trials = self._find_culprit(work, culprits, error, slots)
                retries += trials
                if culprit is not None:
                    self._crash_limit.add()
                    culprits[culprit] = faults.row_error(error)
                    failures = 0
                elif failures > _FRUITLESS_SEARCHES:
                    raise ScoringError(
                        f"{faults.why(error)}, with many rows at once and with none of them alone:"
                        " give executors more memory"
                    ) from error
        seconds = time.monotonic() - started
        counts, generated = _observed(of_rows), _observed(of_requests)
        if counts is None:  # Delta has dropped the commit: it was there already
            return ScoredChunk(chunk, seconds, retries=retries, by_us=False)
        if chunk.requests:
            # the least of all chunks': others have waited for a slot
            each = seconds * slots / chunk.requests
            each = self._seconds_per_request = min(self._seconds_per_request or each, each)
            limit_idle_workers(self._spark, each * REQUESTS_PER_TASK)
        errors = {code.value: n for code in RowErrorCode if (n := counts.get(code.value) or 0)}
        tokens = (generated or {}).get("tokens") or 0
        return ScoredChunk(chunk, seconds, tokens, errors, retries)

    def _has_begun(self) -> bool:
        ledger = read_ledger(self._spark, self._plan.options.output)
        return ledger.first_start(self._plan.fingerprint, self._plan.state.base) is not None

    def _look_up(self, scored: ScoredChunk) -> ScoredChunk | None:
        """What became of a chunk, from the table; None where it is not there."""
        table = tables.read_table(self._spark, self._plan.options.output)
        chunk = identity.bucket_of(F.col(schema.REQUEST_ID)) % self._plan.chunk_count
        mine = (F.col(schema.FINGERPRINT) == self._plan.fingerprint) & (
            chunk == scored.chunk.number
        )
        once = table.where(mine).groupBy(schema.REQUEST_ID, F.col("error")["code"].alias("code"))
        counted = once.agg(F.count(F.lit(1)).alias("rows"), F.max("completion_tokens").alias("one"))
        found = counted.groupBy("code").agg(F.sum("rows"), F.sum("one")).collect()
        if not found:
            return None
        return replace(
            scored,
            generated_tokens=sum(tokens or 0 for _, _, tokens in found),
            errors={code: rows for code, rows, _ in found if code},
        )

    def _work(self, chunk: Chunk) -> DataFrame:
        """The rows of a chunk.

        Greedy rows of one request are one copy: they are asked once. Sampled ones are counted, in
        an order that is the same each time, and the model gives each copy a text of its own.
        """
        plan = self._plan
        work = plan.work.where(F.col(BUCKET) % plan.chunk_count == chunk.number)
        order = Window.partitionBy(REQUEST_ID).orderBy(identity.row_digest(work.schema, plan.kept))
        return work.withColumn(
            _COPY, F.when(plan.greedy, F.lit(0)).otherwise(F.row_number().over(order) - 1)
        )

    def _ask(self, work: DataFrame, tasks: int) -> DataFrame:
        """The distinct requests among rows, with the model's result for each."""
        inputs = self._plan.requests.struct().alias(_INPUTS)
        # Rows that no model should see are split off before it. A condition around the UDF would
        # not do: Spark runs a Python UDF for every row, whatever stands around it.
        asked = work.where(F.col(REFUSAL).isNull()).select(REQUEST_ID, _COPY, inputs)
        once = asked.dropDuplicates([REQUEST_ID, _COPY])
        # copies come to the model in one task and in their order, on any number of processors
        placed = once.repartition(tasks, REQUEST_ID).sortWithinPartitions(REQUEST_ID, _COPY)
        return placed.withColumn(_RESULT, self._udf.ask(F.col(_INPUTS))).drop(_INPUTS)

    def _rows(
        self, work: DataFrame, tasks: int, culprits: Mapping[str, tuple[RowErrorCode, str]]
    ) -> tuple[DataFrame, Observation, Observation]:
        """The output's rows, and counts that are taken while they are written."""
        plan = self._plan
        if culprits:
            named_errors = [
                refuse(F.col(REQUEST_ID) == request, code, message)
                for request, (code, message) in culprits.items()
            ]
            work = work.withColumn(REFUSAL, F.coalesce(F.col(REFUSAL), *named_errors))
        kept = [named(name) for name in plan.kept]
        of_rows, of_requests = Observation(), Observation()
        answers = self._ask(work, tasks).select(
            REQUEST_ID, _COPY, F.struct(*self._answer_columns()).alias(_RESULT)
        )
        tokens = F.sum(F.col(_RESULT)["completion_tokens"]).alias("tokens")
        answers = answers.observe(of_requests, tokens)
        keys = [REQUEST_ID, _COPY]
        sound = work.where(F.col(REFUSAL).isNull()).select(*keys, *kept)
        answered = sound.join(answers, on=keys).select(*kept, REQUEST_ID, f"{_RESULT}.*")
        refusal = self._added(schema.columns_from_error(F.col(REFUSAL)))
        refused = work.where(F.col(REFUSAL).isNotNull())
        scored = answered.unionByName(refused.select(*kept, REQUEST_ID, *refusal))
        scored = scored.withColumnRenamed(REQUEST_ID, schema.REQUEST_ID).withColumns(
            {
                "model": F.lit(plan.model.resolved_uri),
                "run_id": F.lit(self._run_id),
                schema.FINGERPRINT: F.lit(plan.fingerprint),
                "scored_at": F.current_timestamp(),
            }
        )
        code = F.col("error")["code"]
        by_code = [F.count_if(code == error.value).alias(error.value) for error in RowErrorCode]
        rows = scored.select(*kept, *map(named, plan.scored_columns))
        return rows.observe(of_rows, *by_code), of_rows, of_requests

    def _answer_columns(self) -> list[Column]:
        return self._added(self._udf.read(F.col(_RESULT)))

    def _added(self, columns: Mapping[str, Column]) -> list[Column]:
        # a response that is not kept must not meet an input column of that name
        return [columns[name].alias(name) for name in self._plan.scored_columns if name in columns]

    def _find_culprit(
        self, work: DataFrame, known: Mapping[str, object], error: Exception, slots: int
    ) -> tuple[str | None, int]:
        """The request that fails alone, and how many jobs it took to find it."""
        ids = F.col(REQUEST_ID)
        sound = work.where(F.col(REFUSAL).isNull() & ~ids.isin(*known))
        requests = [row[0] for row in sound.select(ids).distinct().orderBy(ids).collect()]
        trials = 0

        def fails(some: Sequence[str]) -> bool:
            nonlocal trials
            trials += 1
            tasks = count_tasks(len(some), slots, self._seconds_per_request)
            trial = self._ask(sound.where(ids.between(some[0], some[-1])), tasks)
            try:
                trial.write.format("noop").mode("overwrite").save()
            except (PySparkException, Py4JError) as failure:
                if faults.classify(failure) in (Fault.CRASH, Fault.RAISED):
                    return True
                raise faults.failure(failure) from failure
            return False

        try:
            return faults.find_culprit(requests, fails), trials
        except ScoringError as nothing_works:
            raise ScoringError(f"{faults.why(error)}; {nothing_works}") from error


def _observed(observation: Observation) -> dict[str, Any] | None:
    """The counts of a write; None where Delta dropped it, for which Spark would wait for ever."""
    try:
        return session.in_background(lambda: observation.get).result(_OBSERVED_WITHIN_S)
    except (TimeoutError, Py4JError):  # the latter where the write was planned and then dropped
        return None


def count_errors(chunks: Sequence[ScoredChunk]) -> Counter[str]:
    """Rows with an error in several chunks, by code."""
    total = Counter[str]()
    for chunk in chunks:
        total.update(chunk.errors)
    return total
