"""Incremental runs: with ids, rows are compared with what the output has of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from phi3_batch.errors import TableError
from phi3_batch.scoring import schema, tables
from phi3_batch.scoring.columns import named
from phi3_batch.scoring.tables import OutputTable

_THERE, _FAILED = "__phi3_batch_there", "__phi3_batch_failed"
_ROWS, _AGAIN = "__phi3_batch_rows", "__phi3_batch_again"


@dataclass(frozen=True, slots=True)
class Changes:
    """How an input differs from its output.

    Attributes:
        new: rows whose id the output has not.
        changed: rows whose request is another than that of their id in the output.
        failed: rows with an error there.
        unchanged: rows that are there as they are, and without an error.
        removed: ids of the output that the input has no longer.
    """

    new: int
    changed: int
    failed: int
    unchanged: int
    removed: int


def check_ids(rows: DataFrame, ids: Sequence[str], kept: Sequence[str], where: str) -> None:
    """See that ids name each row of a table.

    Raises:
        TableError: a column is not there or not kept, an id is null, or two rows have one.
    """
    for name in ids:
        if name not in kept:
            raise TableError(
                f"--id {name} is not among the columns of the output ({', '.join(kept)})"
            )
    null = rows.where(_any_null(ids)).count()
    if null:
        raise TableError(f"{null:,} rows of {where} have no {', '.join(ids)}: an id names a row")
    twice = rows.groupBy(*map(named, ids)).count().where("count > 1")
    summary = twice.agg(F.count(F.lit(1)), F.sum("count")).head()
    assert summary is not None  # an aggregate of no rows is a row too
    if summary[0]:
        names = ", ".join(ids)
        raise TableError(  # the values are not said: they may be names, or prompts
            f"{summary[1]:,} rows of {where} share {summary[0]:,} values of {names}: an id names"
            f" one row (GROUP BY {names} HAVING count(*) > 1 finds them)"
        )


def compare(
    spark: SparkSession,
    rows: DataFrame,
    request_id: str,
    output: OutputTable,
    ids: Sequence[str],
    *,
    anew: bool,
    retry_errors: bool,
) -> tuple[DataFrame, Changes]:
    """The rows that are to be scored, and how many of which kind there are.

    Args:
        spark: the session.
        rows: the input.
        request_id: the column of their hashes.
        output: the table as it is now; compared at this version, whatever is written to it.
        ids: columns that name a row.
        anew: score all rows, the output is not there or will be replaced.
        retry_errors: score rows again that have an error.

    Raises:
        TableError: two rows of the output have one id.
    """
    if anew or output.version is None:
        return rows, Changes(rows.count(), 0, 0, 0, 0)
    table = tables.read_version(spark, output.location, output.version)
    check_ids(table, ids, table.columns, output.location.text)
    there = table.select(
        *map(named, ids),
        named(schema.REQUEST_ID).alias(_THERE),
        F.col("error").isNotNull().alias(_FAILED),
    )
    both = rows.join(there, on=list(ids), how="full")
    # a row that only one side has is null in the other's columns
    new, removed = F.col(_THERE).isNull(), F.col(request_id).isNull()
    changed = F.col(_THERE) != F.col(request_id)
    failed = ~changed & F.col(_FAILED)
    kinds = (new, changed, failed, ~changed & ~F.col(_FAILED), removed)
    counts = both.agg(*[F.count_if(kind) for kind in kinds]).head()
    assert counts is not None  # an aggregate of no rows is a row too
    to_score = new | changed | failed if retry_errors else new | changed
    matched = rows.join(there, on=list(ids), how="left").where(to_score)
    return matched.select(*map(named, rows.columns)), Changes(*counts)


def count_existing(
    spark: SparkSession,
    rows: DataFrame,
    request_id: str,
    output: OutputTable,
    ids: Sequence[str],
    existing: str,
) -> DataFrame:
    """Add how many copies of a row's request the output has, not counting rows asked again.

    A sampled request's copies have texts of their own by their number, and new ones are numbered
    from here on. A row that has changed or was removed still counts: another copy may have its
    number's text.

    Args:
        spark: the session.
        rows: those to score, from :func:`compare`.
        request_id: the column of their hashes.
        output: the table as it was compared.
        ids: columns that name a row.
        existing: name of the column to add.
    """
    if output.version is None:
        return rows.withColumn(existing, F.lit(0))
    there = tables.read_version(spark, output.location, output.version)
    before = there.select(*map(named, ids), named(schema.REQUEST_ID).alias(_THERE))
    asked = F.col(request_id)
    again = F.count_if(F.col(_THERE) == asked).over(Window.partitionBy(request_id))
    matched = rows.join(before, on=list(ids), how="left").withColumn(_AGAIN, again)
    copies = there.groupBy(named(schema.REQUEST_ID).alias(request_id)).agg(
        F.count(F.lit(1)).alias(_ROWS)
    )
    counted = matched.join(copies, on=request_id, how="left").withColumn(
        existing, (F.coalesce(_ROWS, F.lit(0)) - F.col(_AGAIN)).cast("int")
    )
    return counted.select(*map(named, rows.columns), existing)


def _any_null(ids: Sequence[str]) -> Column:
    condition = F.lit(False)
    for name in ids:
        condition = condition | named(name).isNull()
    return condition
