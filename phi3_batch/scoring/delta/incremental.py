"""Incremental runs: with ids, rows are compared with what the output has of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.scoring.delta import tables
from phi3_batch.scoring.delta.tables import OutputTable
from phi3_batch.scoring.rows import schema
from phi3_batch.scoring.rows.columns import (
    OURS,
    find_field,
    join_names,
    named,
    quoted,
    values_digest,
)

_THERE, _ANSWERED, _FAILED = f"{OURS}there", f"{OURS}answered", f"{OURS}failed"
_KEPT, _KEPT_THERE = f"{OURS}kept", f"{OURS}kept_there"
_ROWS, _AGAIN = f"{OURS}rows", f"{OURS}again"


@dataclass(frozen=True, slots=True)
class Changes:
    """How an input differs from its output.

    Attributes:
        new: rows whose id the output has not.
        changed: rows whose request is another than that of their id in the output.
        updated: rows whose request is the same, and whose other kept columns are not: they get
            the new values, and keep what was answered.
        failed: rows with an error there.
        unchanged: rows that are there as they are, and without an error.
        removed: ids of the output that the input has no longer.
    """

    new: int
    changed: int
    updated: int
    failed: int
    unchanged: int
    removed: int

    def to_score(self, *, retry_errors: bool) -> int:
        """Rows to score; those with an error too, if they are to be tried again."""
        return self.new + self.changed + (self.failed if retry_errors else 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """An input against its output.

    Attributes:
        to_score: the input's rows that are new or have changed.
        to_update: those whose kept columns alone have changed; None where there can be none.
        changes: how many there are of which kind.
    """

    to_score: DataFrame
    to_update: DataFrame | None
    changes: Changes


def resolve_ids(kept: StructType, ids: Sequence[str]) -> tuple[str, ...]:
    """The names of ``--id`` as the table spells them.

    Args:
        kept: the columns of the input that go into the output.
        ids: as the user gave them.

    Raises:
        TableError: a column is not there or not kept, or Spark or Delta cannot go by it.
        InvalidParameterError: one is given twice.
    """
    found = []
    for name in ids:
        field = find_field(kept, name)
        if field is None:
            raise TableError(
                f"--id {name} is not among the columns of the output"
                f" ({', '.join(kept.fieldNames())})"
            )
        if not _is_comparable(field.dataType):
            raise TableError(
                f"--id {name} is {field.dataType.simpleString()}, which Spark cannot compare:"
                " name other columns"
            )
        if field.name in found:
            raise InvalidParameterError(f"--id names {name} twice")
        found.append(field.name)
    ticked = [name for name in kept.fieldNames() if "`" in name]
    if found and ticked:
        others = join_names(name for name in kept.fieldNames() if name not in ticked)
        raise TableError(
            f"Delta's MERGE, which --id needs, takes no column named like {ticked[0]!r}: leave it"
            f" out with --keep {others}"
        )
    return tuple(found)


def check_ids(rows: DataFrame, ids: Sequence[str], where: str) -> None:
    """See that ids name each row of a table.

    Raises:
        TableError: an id is null, or two rows have one.
    """
    null = rows.where(_any_null(ids)).count()
    if null:
        raise TableError(
            f"{null:,} rows of {where} have no {' or no '.join(ids)}: an id names a row"
        )
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
    kept: Iterable[StructField],
    *,
    anew: bool,
    retry_errors: bool,
) -> Comparison:
    """The rows that are to be scored, those to be updated, and how many of which kind there are.

    Args:
        spark: the session.
        rows: the input.
        request_id: the column of their hashes.
        output: the table as it is now; compared at this version, whatever is written to it.
        ids: columns that name a row.
        kept: columns that go into the output.
        anew: score all rows, the output is not there or will be replaced.
        retry_errors: score rows again that have an error.

    Raises:
        TableError: two rows of the output have one id.
    """
    if anew or output.version is None:
        return Comparison(rows, None, Changes(rows.count(), 0, 0, 0, 0, 0))
    table = tables.read_version(spark, output.location, output.version)
    try:
        check_ids(table, ids, f"output {output.location.text}")
    except TableError as error:
        raise TableError(
            f"{error}; delete the others, restore the table (RESTORE TABLE), or start over with"
            " --mode overwrite"
        ) from None
    others = [field for field in kept if field.name not in ids]
    there = table.select(
        *map(named, ids),
        F.lit(True).alias(_THERE),
        named(schema.REQUEST_ID).alias(_ANSWERED),
        F.col("error").isNotNull().alias(_FAILED),
        values_digest(others).alias(_KEPT_THERE),
    )
    here = rows.withColumn(_KEPT, values_digest(others))
    both = here.join(there, on=list(ids), how="full")
    # a row that only one side has is null in the other's columns
    new, removed = F.col(_THERE).isNull(), F.col(request_id).isNull()
    known = ~new & ~removed
    same = known & F.col(request_id).eqNullSafe(F.col(_ANSWERED))
    failed = same & F.col(_FAILED)
    changed = known & ~same
    to_score = new | changed | failed if retry_errors else new | changed
    updated = same & ~to_score & (F.col(_KEPT) != F.col(_KEPT_THERE))
    left = same & ~updated
    kinds = (new, changed, updated, left & F.col(_FAILED), left & ~F.col(_FAILED), removed)
    counts = both.agg(*[F.count_if(kind) for kind in kinds]).head()
    assert counts is not None  # an aggregate of no rows is a row too
    matched = here.join(there, on=list(ids), how="left")
    columns = [named(name) for name in rows.columns]
    return Comparison(
        matched.where(to_score).select(*columns),
        matched.where(updated).select(*columns),
        Changes(*counts),
    )


def update_clause(kept: Sequence[str], ids: Sequence[str]) -> str:
    """What MERGE does with a row whose kept columns alone have changed.

    A row whose request is another by now is left alone: it is scored by whoever finds it so.
    """
    values = ", ".join(
        f"there.{quoted(name)} = new.{quoted(name)}" for name in kept if name not in ids
    )
    request = schema.REQUEST_ID
    return f"WHEN MATCHED AND there.{request} = new.{request} THEN UPDATE SET {values}"


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


def _is_comparable(of: DataType) -> bool:
    if isinstance(of, ArrayType):
        return _is_comparable(of.elementType)
    if isinstance(of, StructType):
        return all(_is_comparable(field.dataType) for field in of)
    return not isinstance(of, MapType) and of.typeName() != "variant"
