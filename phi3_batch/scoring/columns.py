"""Columns by name, as Spark SQL sees names: any characters, and no difference of case."""

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructField, StructType


def named(name: str) -> Column:
    """The column of that name, whatever characters it has."""
    return F.col("`{}`".format(name.replace("`", "``")))


def find_field(table: StructType, name: str) -> StructField | None:
    """The field of that name, if there is one; as it is spelled before any other case of it."""
    by_name = [field for field in table if field.name.lower() == name.lower()]
    return next((field for field in by_name if field.name == name), next(iter(by_name), None))


def typed(table: StructType, name: str) -> tuple[Column, DataType]:
    """The column of that name in a table that has it, by the table's own spelling, and its type."""
    field = find_field(table, name)
    assert field is not None  # who calls has looked
    return named(field.name), field.dataType
