"""Texts of the command line that no plan shows: a system message, a template, stop strings.

Spark writes the literals of a plan into its event log, its web pages and its errors. These texts
are columns of a table of one row instead, beside the rows to score; what is shown is their names.
"""

import hashlib
from collections.abc import Iterable

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

_DIGITS = 16


def hide(text: str) -> Column:
    """What stands for a text, in rows that :func:`with_texts` has put it beside."""
    return F.col(_name(text))


def with_texts(spark: SparkSession, rows: DataFrame, texts: Iterable[str]) -> DataFrame:
    """Rows with these texts beside each of them, for :func:`hide`."""
    by_name = {_name(text): text for text in texts}
    if not by_name:
        return rows
    shape = StructType([StructField(name, StringType(), nullable=False) for name in by_name])
    return rows.crossJoin(F.broadcast(spark.createDataFrame([tuple(by_name.values())], shape)))


def _name(text: str) -> str:
    return f"__phi3_batch_text_{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"
