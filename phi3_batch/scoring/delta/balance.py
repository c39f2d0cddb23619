"""Rows in against rows out: whether a table has each row once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructField

from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.rows.columns import named, values_digest
from phi3_batch.scoring.rows.schema import FINGERPRINT, REQUEST_ID


@dataclass(frozen=True, slots=True)
class Balance:
    """What two tables come to.

    Attributes:
        rows_in: of the input.
        rows_out: of the output.
        missing: rows of the input that the output has not.
        doubled: rows of the output beyond the one that each row of the input has.
        orphaned: rows of the output that are none of the input's.
        stale: with ids, rows whose request is another than the one that was answered, or whose
            kept columns have other values.
        orphans_allowed: whether orphaned rows are as they should be: with ids, the input may have
            lost rows that the output keeps.
        unknown: rows of the output that no run of its history has written, where all should be of
            one.
    """

    rows_in: int
    rows_out: int
    missing: int
    doubled: int
    orphaned: int
    stale: int
    orphans_allowed: bool
    unknown: int = 0

    @property
    def ok(self) -> bool:
        """Whether each row is there once."""
        orphans = 0 if self.orphans_allowed else self.orphaned
        return not (self.missing or self.doubled or self.stale or orphans or self.unknown)

    def __str__(self) -> str:
        stale = f", {self.stale:,} out of date" if self.stale else ""
        unknown = f", {self.unknown:,} of no run of its history" if self.unknown else ""
        return (
            f"{self.rows_in:,} in, {self.rows_out:,} out, {self.missing:,} missing,"
            f" {self.doubled:,} doubled, {self.orphaned:,} orphaned{stale}{unknown}"
        )


def compare(
    rows_in: DataFrame,
    rows_out: DataFrame,
    ids: Sequence[str],
    kept: Sequence[StructField] = (),
) -> Balance:
    """Count an input against an output.

    Args:
        rows_in: with a column ``request_id``.
        rows_out: with a column ``request_id``.
        ids: columns that name a row; without any, rows are told apart by their requests.
        kept: with ids, columns that both have, and that must have the same values.
    """
    kept = kept if ids else ()
    # one shuffle, where a join of both would be three
    both = (
        _side(rows_in, ids, kept, "in", "out")
        .unionByName(_side(rows_out, ids, kept, "out", "in"))
        .groupBy("key")
        .agg(
            *[F.sum(f"count_{side}").alias(f"count_{side}") for side in ("in", "out")],
            *[F.max(f"row_{side}").alias(f"row_{side}") for side in ("in", "out")],
        )
    )
    count_in, count_out = F.col("count_in"), F.col("count_out")
    known = count_in > 0
    same = F.col("row_in") == F.col("row_out")
    counted = both.agg(
        F.sum(count_in),
        F.sum(count_out),
        F.sum(F.greatest(count_in - count_out, F.lit(0))),
        F.sum(F.when(known, F.greatest(count_out - count_in, F.lit(0)))),
        F.sum(F.when(~known, count_out)),
        F.count_if(known & (count_out > 0) & ~same),
    ).head()
    assert counted is not None  # an aggregate of no rows is a row too
    ins, outs, missing, doubled, orphaned, stale = (count or 0 for count in counted)
    return Balance(ins, outs, missing, doubled, orphaned, stale, bool(ids))


def compare_run(
    rows_in: DataFrame,
    table: DataFrame,
    ledger: Ledger,
    fingerprint: str,
    ids: Sequence[str],
    kept: Sequence[StructField],
) -> Balance:
    """Count the input of a run against its output; all of that, where nothing else may be in it.

    Args:
        rows_in: with a column ``request_id``.
        table: the output.
        ledger: the output's history.
        fingerprint: of the run.
        ids: columns that name a row; without any, the rows with the run's fingerprint are its own.
        kept: with ids, columns that both have, and that must have the same values.
    """
    own = table if ids else table.where(F.col(FINGERPRINT) == fingerprint)
    balance = compare(rows_in, own, ids, kept)
    if ledger.is_all_ours:
        return replace(balance, unknown=count_unknown(table, ledger))
    return balance


def count_unknown(table: DataFrame, ledger: Ledger) -> int:
    """How many rows of an output no run in its history has written.

    Args:
        table: with a column ``fingerprint``.
        ledger: its history.
    """
    if ledger.has_no_others:
        return 0  # nobody else can have, so the table need not be read again
    known = sorted({commit.fingerprint for commit in ledger.since_replaced()})
    return table.where(~F.coalesce(F.col(FINGERPRINT).isin(known), F.lit(False))).count()


def _side(
    rows: DataFrame, ids: Sequence[str], kept: Sequence[StructField], side: str, other: str
) -> DataFrame:
    """A row for each, by its key and with what is there; the tables' own names play no part."""
    # a number, for Spark sorts all rows to find the greatest of anything longer
    request = named(REQUEST_ID)
    row = F.xxhash64(request.isNull(), request, values_digest(kept))
    return rows.select(
        F.struct(*map(named, ids or [REQUEST_ID])).alias("key"),
        F.lit(1).alias(f"count_{side}"),
        F.lit(0).alias(f"count_{other}"),
        row.alias(f"row_{side}"),
        F.lit(None).cast("bigint").alias(f"row_{other}"),
    )
