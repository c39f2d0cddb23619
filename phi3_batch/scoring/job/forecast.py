"""What a job would take, before it is begun: tokens counted, a few requests tried."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from phi3_batch.errors import ScoringError
from phi3_batch.scoring.compat import SPARK_ERRORS
from phi3_batch.scoring.job import faults
from phi3_batch.scoring.job.plan import ScoringPlan
from phi3_batch.scoring.rows.score import RowScorer
from phi3_batch.scoring.rows.time_limit import TimeLimit
from phi3_batch.scoring.rows.udf import model_udf
from phi3_batch.scoring.rows.work import REQUEST_ID, Work

# Requests that are read through the model's tokenizer, on the driver, and their characters: some
# seconds' work, and no more memory than that.
_MOST_COUNTED = 10_000
_MOST_CHARACTERS = 20_000_000
_PILOT_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Prompt tokens of a job's requests, by the model's own tokenizer.

    Attributes:
        requests: of the job.
        counted: how many of them were looked at; the other figures are scaled up from these.
        prompt_tokens: of all requests.
        longest: tokens of prompt and completion together, of the longest one looked at.
        errors: requests that will fail, by code, beyond those that no model sees.
        memory_bytes: that a process takes which runs the model on the longest one.
    """

    requests: int
    counted: int
    prompt_tokens: int
    longest: int
    errors: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0

    @property
    def exact(self) -> bool:
        """Whether all requests were looked at."""
        return self.counted == self.requests


@dataclass(frozen=True, slots=True)
class Pilot:
    """A few requests that were scored, and not written.

    Attributes:
        requests: how many.
        seconds_each: on one executor, without what a job costs to start.
        tokens_each: generated; None where the model does not count.
    """

    requests: int
    seconds_each: float
    tokens_each: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job would take.

    Attributes:
        tokens: None for a model that is not ours.
        pilot: None where there is nothing to score.
        requests: that are to be scored.
        executors: that work at the same time.
        cores_each: of an executor.
    """

    tokens: TokenCount | None
    pilot: Pilot | None
    requests: int
    executors: int
    cores_each: int

    @property
    def hours(self) -> float:
        """Expected, by the pilot."""
        if self.pilot is None:
            return 0.0
        return self.requests * self.pilot.seconds_each / self.executors / 3600

    @property
    def core_hours(self) -> float:
        """Expected, by the pilot."""
        return self.hours * self.executors * self.cores_each


def make_forecast(spark: SparkSession, plan: ScoringPlan, executors: int | None) -> Forecast:
    """Count a job's tokens, and score a few of its requests without writing them.

    Args:
        spark: the session.
        plan: of the job.
        executors: that the job is to have; those of the session, where none are given.

    Raises:
        ScoringError: the few requests could not be scored.
    """
    requests = plan.requests_to_do
    return Forecast(
        tokens=_count_tokens(plan.work) if plan.work else None,
        pilot=_pilot(spark, plan, plan.work) if plan.work and requests else None,
        requests=requests,
        executors=executors or plan.slots,
        cores_each=int(spark.conf.get("spark.task.cpus", "1") or 1),
    )


def _count_tokens(work: Work) -> TokenCount | None:
    model = work.model.plannable
    if model is None:
        return None
    sound = work.sound()
    once = sound.dropDuplicates([REQUEST_ID]).orderBy(REQUEST_ID)  # by a hash: in no order
    sized = once.select(
        REQUEST_ID, work.requests.struct().alias("row"), work.requests.characters().alias("size")
    ).limit(_MOST_COUNTED)
    in_order = Window.partitionBy(F.lit(0)).orderBy(REQUEST_ID)
    before = F.sum("size").over(in_order) - F.col("size")
    rows = sized.withColumn("before", before).where(F.col("before") <= _MOST_CHARACTERS).collect()
    inputs = pd.DataFrame([row["row"].asDict(recursive=True) for row in rows])
    if inputs.empty:
        return TokenCount(0, 0, 0, 0)
    params = {} if work.model.takes_messages else dict(work.model.params)
    examined = model.examine(inputs, params)
    distinct = sound.select(F.count_distinct(REQUEST_ID)).head()
    assert distinct is not None  # an aggregate of no rows is a row too
    scale = distinct[0] / len(inputs)
    codes = Counter(error["code"] for error in examined["error"] if error["code"])
    longest = int((examined["prompt_tokens"] + examined["max_tokens"]).max())
    return TokenCount(
        requests=distinct[0],
        counted=len(inputs),
        prompt_tokens=round(scale * int(examined["prompt_tokens"].sum())),
        longest=longest,
        errors={code: round(scale * count) for code, count in codes.items()},
        memory_bytes=model.memory_bytes(longest),
    )


def _pilot(spark: SparkSession, plan: ScoringPlan, work: Work) -> Pilot:
    udf = model_udf(spark, work.model, greedy=work.is_greedy)
    scorer = RowScorer(work, udf, TimeLimit(work.model))
    ids, sound = F.col(REQUEST_ID), work.sound()
    sample = [row[0] for row in sound.select(ids).distinct().orderBy(ids).head(_PILOT_REQUESTS + 1)]

    def timed(requests: Sequence[str]) -> tuple[float, int]:
        started = time.monotonic()
        tokens = scorer.try_out(sound.where(ids.isin(*requests)))
        return time.monotonic() - started, tokens

    try:
        timed(sample[:1])  # loads the model
        for_one, _ = timed(sample[:1])
        if len(sample) == 1:
            return Pilot(1, for_one, None)
        for_all, tokens = timed(sample)
    except SPARK_ERRORS as error:
        raise ScoringError(f"the pilot failed: {faults.why(error)}") from None
    # what both jobs cost to start goes out of the difference
    seconds = max(for_all - for_one, 0.0) / (len(sample) - 1)
    each = tokens / len(sample) if work.model.counts_tokens else None
    return Pilot(len(sample), seconds, each)
