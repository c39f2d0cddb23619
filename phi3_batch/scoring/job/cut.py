"""A run in chunks: each is scored, and committed, as a whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from phi3_batch.scoring.rows import identity
from phi3_batch.scoring.rows.work import BUCKET, REFUSAL, REQUEST_ID, Work


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a run that is committed as a whole.

    Attributes:
        number: from 0.
        rows: in it.
        requests: how many the model is asked, equal ones once; 0 where no model was looked at.
        allowed_s: what they may take one after another on a slow machine, in seconds.
    """

    number: int
    rows: int
    requests: int
    allowed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cut:
    """A run in chunks.

    Attributes:
        work: the rows to score; None where there are none.
        refused: how many rows no model will see, by error code; empty without ``work``.
        chunks: those that have rows.
        chunk_count: the chunk of a row is its bucket modulo this.
    """

    work: Work | None
    refused: Mapping[str, int]
    chunks: tuple[Chunk, ...]
    chunk_count: int


NOTHING = Cut(None, {}, (), 1)


def cut_work(work: Work, chunk_count: int | None) -> Cut:
    """Cut what a model is asked into chunks.

    Args:
        work: the rows.
        chunk_count: in how many; None for as many as its requests make.
    """
    counts = _count(work)
    number = chunk_count or identity.chunk_count(sum(count.requests for count in counts))
    return Cut(work, _sum_by_code(counts), _chunks(counts, number), number)


def cut_finished(rows: DataFrame, there: Mapping[int, int], chunk_count: int) -> Cut | None:
    """Cut rows that are all in the output; None where they are not.

    Args:
        rows: of the run, with REQUEST_ID.
        there: how many of the run's rows the output has, by bucket.
        chunk_count: in how many chunks the run was begun.
    """
    bucket = identity.bucket_of(F.col(REQUEST_ID)).alias(BUCKET)
    counted = {row[BUCKET]: row["count"] for row in rows.groupBy(bucket).count().collect()}
    if counted != there:
        return None
    counts = [_Count(bucket, None, rows, 0, 0.0, 0.0) for bucket, rows in counted.items()]
    return Cut(None, {}, _chunks(counts, chunk_count), chunk_count)


@dataclass(frozen=True, slots=True)
class _Count:
    bucket: int
    code: str | None
    rows: int
    requests: int
    allowed_s: float | None
    heaviest_s: float | None


def _count(work: Work) -> list[_Count]:
    """Rows by bucket and by what is wrong with them, and the requests that they make."""
    sound, greedy, allowed_s = F.col(REFUSAL).isNull(), work.greedy, work.allowed_s
    once = F.count_distinct(F.when(sound & greedy, F.col(REQUEST_ID)))
    counted = work.rows.groupBy(BUCKET, F.col(REFUSAL)["code"].alias("code")).agg(
        F.count(F.lit(1)).alias("rows"),
        (once + F.count_if(sound & ~greedy)).alias("requests"),
        F.sum(F.when(sound, allowed_s)).alias("allowed"),
        F.max(F.when(sound, allowed_s)).alias("heaviest"),
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
