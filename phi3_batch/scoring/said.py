"""What errors of Spark, the JVM and MLflow say, in one line that quotes nobody's data."""

import re
from collections.abc import Iterator
from typing import Any

from pyspark.errors import AnalysisException, PySparkException

from phi3_batch.scoring import compat

JVM_IS_GONE = "Spark's driver JVM is gone (killed, or out of memory: spark.driver.memory)"

# Parameters of Spark's and Delta's messages that name things and quote no row. Others may: the
# value that a constraint refuses, the `expression` that a cast cannot read, which is that value.
_NAMES = frozenset(
    {
        "ansiConfig",
        "colName",
        "column",
        "columnName",
        "config",
        "constraintName",
        "fieldName",
        "file",
        "fileName",
        "format",
        "functionName",
        "path",
        "paths",
        "relationName",
        "sourceType",
        "tableName",
        "targetType",
        "version",
    }
)
_LEFT_OUT = "…"
# Errors of the JVM's own whose messages are about files and connections
_ABOUT_FILES = ("java.io.", "java.nio.", "java.net.", "org.apache.hadoop.")


def first_line(error: Exception) -> str:
    """What an error says, without its stack, its SQL state, and values of rows."""
    if isinstance(error, compat.JVM_EXCEPTIONS):
        return _of_jvm(error)
    # an analysis or a parser has seen no row
    if isinstance(error, PySparkException) and not isinstance(error, AnalysisException):
        if not compat.condition(error):
            return type(error).__name__
        return _without_values(compat.message(error), error.getMessageParameters(), error)
    return _first(str(error)) or type(error).__name__


def _of_jvm(error: Any) -> str:
    """The innermost exception that has Spark's form of a message, else the innermost's class."""
    try:
        thrown = list(_causes(error.java_exception))
        for cause in reversed(thrown):
            try:
                parameters = dict(cause.getMessageParameters())
                condition = compat.condition_in_jvm(cause)
            except compat.JVM_ERRORS:  # not one of Spark's or Delta's
                continue
            if condition:
                return _without_values(cause.getMessage(), parameters, error)
        name = thrown[-1].getClass().getName()
        if name.startswith(_ABOUT_FILES):
            return _first(thrown[-1].toString())
        return str(name)
    except compat.JVM_GONE_ERRORS:  # the JVM has died since
        return type(error).__name__


def _causes(thrown: Any) -> Iterator[Any]:
    while thrown is not None:
        yield thrown
        thrown = thrown.getCause()


def _without_values(message: str, parameters: Any, error: Exception) -> str:
    values = [value for name, value in (parameters or {}).items() if name not in _NAMES and value]
    for value in sorted(values, key=len, reverse=True):
        message = message.replace(value, _LEFT_OUT)
    return _first(message) or type(error).__name__


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"\s*SQLSTATE: \w+.*", "", lines[0]) if lines else ""
