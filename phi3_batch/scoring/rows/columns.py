"""Columns by name, as Spark SQL sees names: any characters, and no difference of case."""

import csv
import io
import shlex
from collections.abc import Iterable, Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructField, StructType

from phi3_batch.scoring.rows.values import as_json

# What the names of a job's own columns begin with, beside the input's.
OURS = "__phi3_batch_"

_PLAIN_TYPES = {
    "binary",
    "boolean",
    "byte",
    "date",
    "decimal",
    "double",
    "float",
    "integer",
    "long",
    "short",
    "string",
    "timestamp",
    "timestamp_ntz",
}


def quoted(name: str) -> str:
    """A name as SQL has it, whatever characters it has."""
    return "`{}`".format(name.replace("`", "``"))


def named(name: str) -> Column:
    """The column of that name, whatever characters it has."""
    return F.col(quoted(name))


def find_field(table: StructType, name: str) -> StructField | None:
    """The field of that name, if there is one; as it is spelled before any other case of it."""
    by_name = [field for field in table if field.name.lower() == name.lower()]
    return next((field for field in by_name if field.name == name), next(iter(by_name), None))


def typed(table: StructType, name: str) -> tuple[Column, DataType]:
    """The column of that name in a table that has it, by the table's own spelling, and its type."""
    field = find_field(table, name)
    assert field is not None  # who calls has looked
    return named(field.name), field.dataType


def is_plain(of: DataType) -> bool:
    """Whether values of a type are one value each, of a type that every Delta Lake stores."""
    return of.typeName() in _PLAIN_TYPES and "collate" not in of.simpleString()


def split_names(text: str) -> tuple[str, ...]:
    """``A,B,…`` as the command line takes it; a name with a comma goes between backticks.

    Raises:
        csv.Error: it cannot be read.
    """
    return tuple(next(csv.reader([text], quotechar="`", strict=True)))


def join_names(names: Iterable[str]) -> str:
    """What :func:`split_names` reads, as a shell takes it."""
    line = io.StringIO()
    csv.writer(line, quotechar="`", lineterminator="").writerow(names)
    return shlex.quote(line.getvalue())


def values_digest(fields: Sequence[StructField]) -> Column:
    """A hash of a row's values in these columns, 64 bits; for one session to compare."""
    parts: list[Column] = []
    for field in fields:
        column = named(field.name)
        if is_plain(field.dataType):
            parts += [column.isNull(), column]  # the hash function itself passes over nulls
        else:
            parts.append(as_json([(field.name, column, field.dataType)], nulls=True))
    return F.xxhash64(F.lit(0), *parts)
