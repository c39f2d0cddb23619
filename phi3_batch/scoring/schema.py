"""The columns that scoring adds, declared once, and how a model's result becomes them."""

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from phi3_batch.errors import RowErrorCode

_ERROR = StructType([StructField("code", StringType()), StructField("message", StringType())])

# What a model with usage returns for each row. Its UDF cannot return nulls (MLflow turns None into
# 'None' and fails on null numbers), so '' and 0 stand for them until `columns_from_usage`.
USAGE_RESULT = StructType(
    [
        StructField("completion", StringType()),
        StructField("finish_reason", StringType()),
        StructField("prompt_tokens", LongType()),
        StructField("completion_tokens", LongType()),
        StructField("total_tokens", LongType()),
        StructField("error", _ERROR),
    ]
)

# What is written for each row, behind the columns it came with.
OUTPUT = StructType(
    [
        *USAGE_RESULT,
        StructField("model", StringType()),
        StructField("run_id", StringType()),
        StructField("scored_at", TimestampType()),
    ]
)


def columns_from_usage(result: Column) -> dict[str, Column]:
    """Result columns from what a model with usage returned."""
    failed = result["error"]["code"] != ""

    def unless_failed(column: Column) -> Column:
        return F.when(~failed, column)

    return {
        "completion": unless_failed(result["completion"]),
        "finish_reason": unless_failed(result["finish_reason"]),
        # a prompt that was too long was still counted
        "prompt_tokens": F.nullif(result["prompt_tokens"], F.lit(0).cast("long")),
        "completion_tokens": unless_failed(result["completion_tokens"]),
        "total_tokens": unless_failed(result["total_tokens"]),
        "error": F.when(failed, result["error"]),
    }


def columns_from_text(text: Column) -> dict[str, Column]:
    """Result columns from what a model without usage returned: text, and nothing to count."""
    return _nulls() | {"completion": text}


def columns_from_bare_text(text: Column) -> dict[str, Column]:
    """Result columns from the bare form of our own model, which gives '' for a failed row."""
    reason = "the model, logged without params, gave no text and cannot say why"
    failed = text == ""
    error = error_struct(F.lit(RowErrorCode.ENGINE_ERROR.value), F.lit(reason))
    return _nulls() | {"completion": F.when(~failed, text), "error": F.when(failed, error)}


def columns_from_error(code: Column, message: Column) -> dict[str, Column]:
    """Result columns of a row that no model sees."""
    return _nulls() | {"error": error_struct(code, message)}


def error_struct(code: Column, message: Column) -> Column:
    """The ``error`` column from its two fields."""
    return F.struct(code.alias("code"), message.alias("message"))


def _nulls() -> dict[str, Column]:
    return {field.name: F.lit(None).cast(field.dataType) for field in USAGE_RESULT}
