"""Columns by name, as Spark SQL sees names: any characters, and no difference of case."""

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType


def named(name: str) -> Column:
    """The column of that name, whatever characters it has."""
    return F.col("`{}`".format(name.replace("`", "``")))


def find_field(table: StructType, name: str) -> StructField | None:
    """The field of that name, if there is one."""
    return next((field for field in table if field.name.lower() == name.lower()), None)
