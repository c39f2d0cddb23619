"""Rows in against rows out: whether a table has each row once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from phi3_batch.scoring.columns import named
from phi3_batch.scoring.ledger import Ledger
from phi3_batch.scoring.schema import FINGERPRINT, REQUEST_ID

_IN, _OUT, _ASKED, _ANSWERED = "__rows_in", "__rows_out", "__asked", "__answered"


@dataclass(frozen=True, slots=True)
class Balance:
    """What two tables come to.

    Attributes:
        rows_in: of the input.
        rows_out: of the output.
        missing: rows of the input that the output has not.
        doubled: rows of the output beyond the one that each row of the input has.
        orphaned: rows of the output that are none of the input's.
        stale: with ids, rows whose request is another than the one that was answered.
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


def compare(rows_in: DataFrame, rows_out: DataFrame, ids: Sequence[str]) -> Balance:
    """Count an input against an output.

    Args:
        rows_in: with a column ``request_id``.
        rows_out: with a column ``request_id``.
        ids: columns that name a row; without any, rows are told apart by their requests.
    """
    keys = list(ids) or [REQUEST_ID]
    request = F.max(REQUEST_ID)
    wanted = rows_in.groupBy(*map(named, keys)).agg(
        F.count(F.lit(1)).alias(_IN), request.alias(_ASKED)
    )
    there = rows_out.groupBy(*map(named, keys)).agg(
        F.count(F.lit(1)).alias(_OUT), request.alias(_ANSWERED)
    )
    both = wanted.join(there, on=keys, how="full")
    count_in, count_out = F.coalesce(_IN, F.lit(0)), F.coalesce(_OUT, F.lit(0))
    known = count_in > 0
    counted = both.agg(
        F.sum(count_in),
        F.sum(count_out),
        F.sum(F.greatest(count_in - count_out, F.lit(0))),
        F.sum(F.when(known, F.greatest(count_out - count_in, F.lit(0)))),
        F.sum(F.when(~known, count_out)),
        F.count_if(F.col(_ASKED) != F.col(_ANSWERED)),
    ).head()
    assert counted is not None  # an aggregate of no rows is a row too
    ins, outs, missing, doubled, orphaned, stale = (count or 0 for count in counted)
    return Balance(ins, outs, missing, doubled, orphaned, stale, bool(ids))


def compare_run(
    rows_in: DataFrame, table: DataFrame, ledger: Ledger, fingerprint: str, ids: Sequence[str]
) -> Balance:
    """Count the input of a run against its output; all of that, where nothing else may be in it.

    Args:
        rows_in: with a column ``request_id``.
        table: the output.
        ledger: the output's history.
        fingerprint: of the run.
        ids: columns that name a row; without any, the rows with the run's fingerprint are its own.
    """
    own = table if ids else table.where(F.col(FINGERPRINT) == fingerprint)
    balance = compare(rows_in, own, ids)
    if ledger.is_all_ours:
        return replace(balance, unknown=count_unknown(table, ledger))
    return balance


def count_unknown(table: DataFrame, ledger: Ledger) -> int:
    """How many rows of an output no run in its history has written.

    Args:
        table: with a column ``fingerprint``.
        ledger: its history.
    """
    known = sorted({commit.fingerprint for commit in ledger.since_replaced()})
    return table.where(~F.coalesce(F.col(FINGERPRINT).isin(known), F.lit(False))).count()
