"""What an output table demands of its rows, looked up before the first one is scored.

Delta checks each row as it is written: a constraint that a late row breaks would end a job that
has run for hours, and every time that it is tried again.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from phi3_batch.errors import TableError
from phi3_batch.options import WriteMode
from phi3_batch.scoring import compat
from phi3_batch.scoring.delta.tables import LENGTH_LIMIT, OutputTable
from phi3_batch.scoring.rows.columns import find_field, is_plain, named, quoted
from phi3_batch.scoring.rows.schema import ALWAYS_THERE

_CONSTRAINT = "delta.constraints."
_GENERATED, _IDENTITY = "delta.generationExpression", "delta.identity.start"


@dataclass(frozen=True, slots=True)
class _Demand:
    """Something that rows must fulfil.

    Attributes:
        of: what demands it, in words.
        broken: by which rows of the input; None where it is for what scoring adds, which nobody
            knows yet.
        way_out: what the user can do about it.
    """

    of: str
    broken: Column | None
    way_out: str


def check(
    output: OutputTable,
    rows: DataFrame,
    kept: StructType,
    added: StructType,
    begin: WriteMode | None,
    ids: Sequence[str],
) -> None:
    """See that a table will take the rows of a job.

    Args:
        output: the table.
        rows: the job's, with the columns that are kept.
        kept: the input's columns that go into the output.
        added: the columns that scoring adds.
        begin: how the run's first commit is made; None where it is there or none is needed.
        ids: columns that name a row, for an incremental run.

    Raises:
        TableError: it will not, or may not.
    """
    if output.detail is None:  # the job makes it
        return
    name, sql = output.location.text, output.location.sql
    if output.detail.properties.get("delta.appendOnly") == "true" and (ids or begin == "overwrite"):
        raise TableError(
            f"output {name} takes new rows only (delta.appendOnly), and"
            f" {'--id' if ids else '--mode overwrite'} changes those that are there: use another"
            f" output, or ALTER TABLE {sql} SET TBLPROPERTIES ('delta.appendOnly' = 'false')"
        )
    demands = list(_check_constraints(output, kept, added))
    if begin != "overwrite":  # which replaces the columns, and all that is said of them
        demands += [
            *_not_null(output, kept),
            *_lengths(output, kept),
            *_generated(rows.sparkSession, output, kept, added),
        ]
    for demand in demands:
        if demand.broken is None:
            raise TableError(
                f"output {name} has {demand.of}, and a row that broke it would stop the job:"
                f" {demand.way_out}, or use another output"
            )
    if not demands:
        return
    broken = rows.agg(*[F.count_if(each.broken) for each in demands if each.broken is not None])
    counts = broken.head()
    assert counts is not None  # an aggregate of no rows is a row too
    for demand, count in zip(demands, counts, strict=True):
        if count:
            raise TableError(
                f"output {name} has {demand.of}, and {count:,} rows of the input break it: leave"
                f" them out, {demand.way_out}, or use another output"
            )


def kept_partitions(replaced: OutputTable | None, columns: StructType) -> tuple[str, ...]:
    """The columns by which a table that is replaced stays partitioned.

    Args:
        replaced: the table; None where none is replaced.
        columns: that it is to have.
    """
    before = replaced.detail.partitions if replaced and replaced.detail else ()
    found = [find_field(columns, name) for name in before]
    there = [field.name for field in found if field and is_plain(field.dataType)]
    return tuple(there) if len(there) == len(before) else ()


def dropped_layout(replaced: OutputTable | None, columns: StructType) -> tuple[str, ...]:
    """What replacing a table takes from it beside its rows, each in a sentence.

    Delta keeps a table's properties, its comment and its CHECK constraints.
    """
    if replaced is None or replaced.detail is None:
        return ()
    name, notes = replaced.location.text, []
    partitions, clustering = replaced.detail.partitions, replaced.detail.clustering
    if partitions and not kept_partitions(replaced, columns):
        notes.append(
            f"--mode overwrite ends the partitioning of {name} by {', '.join(partitions)}: not all"
            " of them are columns of the new table that it could be partitioned by"
        )
    if clustering:
        notes.append(
            f"--mode overwrite ends the clustering of {name}; when the job is done, ALTER TABLE"
            f" {replaced.location.sql} CLUSTER BY ({', '.join(map(quoted, clustering))}) begins it"
            " again"
        )
    return tuple(notes)


def _check_constraints(
    output: OutputTable, kept: StructType, added: StructType
) -> Iterator[_Demand]:
    assert output.schema is not None  # it is there
    assert output.detail is not None
    for key, text in output.detail.properties.items():
        if not key.startswith(_CONSTRAINT):
            continue
        name = key.removeprefix(_CONSTRAINT)
        of = f"the CHECK constraint {name} ({text})"
        way_out = f"ALTER TABLE {output.location.sql} DROP CONSTRAINT {quoted(name)}"
        gone = [there for there in output.schema.fieldNames() if not find_field(kept, there)]
        if _mentions(text, [*added.fieldNames(), *gone]):
            yield _Demand(f"{of} on columns that are not the input's", None, way_out)
        else:  # to Delta, null breaks it too
            yield _Demand(of, ~F.coalesce(F.expr(text), F.lit(False)), way_out)


def _not_null(output: OutputTable, kept: StructType) -> Iterator[_Demand]:
    assert output.schema is not None  # it is there
    for path in _not_null_paths(output.schema):
        column = ".".join(map(quoted, path))
        way_out = f"ALTER TABLE {output.location.sql} ALTER COLUMN {column} DROP NOT NULL"
        of = f"the column {'.'.join(path)}, which is NOT NULL"
        if find_field(kept, path[0]):
            yield _Demand(of, F.col(column).isNull(), way_out)
        elif path[0].lower() not in ALWAYS_THERE:
            yield _Demand(f"{of} and not the input's", None, way_out)


def _not_null_paths(schema: StructType, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in schema:
        path = (*above, field.name)
        if not field.nullable:
            yield path
        if isinstance(field.dataType, StructType):
            yield from _not_null_paths(field.dataType, path)


def _lengths(output: OutputTable, kept: StructType) -> Iterator[_Demand]:
    assert output.schema is not None  # it is there
    for field in output.schema:
        limit = re.fullmatch(r"(?:var)?char\((\d+)\)", field.metadata.get(LENGTH_LIMIT, ""))
        if not limit:
            continue
        column = quoted(field.name)
        way_out = f"ALTER TABLE {output.location.sql} ALTER COLUMN {column} TYPE STRING"
        of = f"the column {field.name} of type {limit.group()}"
        if find_field(kept, field.name):
            # Spark cuts off spaces that are too many
            length = F.length(F.rtrim(named(field.name)))
            yield _Demand(of, length > int(limit.group(1)), way_out)
        else:
            yield _Demand(f"{of} and not the input's", None, way_out)


def _generated(
    spark: SparkSession, output: OutputTable, kept: StructType, added: StructType
) -> Iterator[_Demand]:
    for field in _stored_fields(spark, output):
        if not find_field(kept, field.name):
            continue
        way_out = f"leave {field.name} out of an output of its own with --keep"
        if _IDENTITY in field.metadata:
            yield _Demand(f"the identity column {field.name}, which numbers itself", None, way_out)
        elif text := field.metadata.get(_GENERATED):
            of = f"the column {field.name}, which is generated as {text}"
            if _mentions(text, added.fieldNames()):
                yield _Demand(of, None, way_out)
            else:
                yield _Demand(of, ~named(field.name).eqNullSafe(F.expr(text)), way_out)


def _stored_fields(spark: SparkSession, output: OutputTable) -> Iterable[StructField]:
    """A table's columns with what Delta itself has noted of them, which no DataFrame shows.

    Nothing public does either. Where the JVM is not to be reached (Spark Connect), nothing is
    known of them, and a write fails that does not fit them.
    """
    assert output.detail is not None  # it is there
    if not output.detail.features & {"generatedColumns", "identityColumns"}:
        return []
    if compat.context_of(spark) is None:
        return []
    from delta.tables import DeltaTable

    table: Any = DeltaTable.forPath(spark, output.detail.path)
    snapshot = table._jdt.deltaLog().unsafeVolatileSnapshot()
    return StructType.fromJson(json.loads(snapshot.metadata().schemaString()))


def _mentions(expression: str, names: Sequence[str]) -> bool:
    """Whether an SQL expression has one of these names outside its string literals."""
    bare = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", " ", expression)
    words = re.findall(r"`((?:[^`]|``)+)`|(\w+)", bare)
    mentioned = {(in_ticks.replace("``", "`") or word).lower() for in_ticks, word in words}
    return not mentioned.isdisjoint(name.lower() for name in names)
