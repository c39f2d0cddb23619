"""Values as text that says all of each of them, and says the same in every session.

Spark's casts and its to_json go by the session: its time zone, ANSI mode, legacy settings. to_json
drops what is below a millisecond besides, and writes one character for all bytes that are no
UTF-8. Hashes of that would be equal for different values, and different for equal ones.
"""

from collections.abc import Iterable, Iterator

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    AtomicType,
    BinaryType,
    BooleanType,
    CharType,
    DataType,
    DecimalType,
    MapType,
    NumericType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
    VarcharType,
)

from phi3_batch.scoring.compat import VARIANT_TYPES, is_valid_utf8

# How Spark sees a column of text: CHAR and VARCHAR are types of their own in some sessions.
TEXT_TYPES = (StringType, CharType, VarcharType)
# What to_json writes in full, in any session.
_WHOLE_IN_JSON = (NumericType, BooleanType, BinaryType)
_REPLACEMENT = "\ufffd"
_DAY_MICROS = 24 * 60 * 60 * 1_000_000


def as_text(column: Column, kind: DataType) -> Column:
    """A plain value as a template inserts it.

    It is what a cast makes of it in a session with Spark's defaults and in UTC, whatever the
    session: instants are in UTC, and decimals have all their digits and no exponent.
    """
    if isinstance(kind, TimestampType):
        # not by way of local time, where an hour may come twice
        micros = F.unix_micros(column)
        of_day = F.pmod(micros, F.lit(_DAY_MICROS))
        days = ((micros - of_day) / _DAY_MICROS).cast("int")
        seconds = (of_day.cast("decimal(20)") / F.lit(1_000_000)).cast("decimal(18,6)")
        since = F.make_dt_interval(days, F.lit(0), F.lit(0), seconds)
        column = F.lit("1970-01-01").cast("timestamp_ntz") + since
    elif isinstance(kind, DecimalType):
        digits = "0." + "0" * kind.scale if kind.scale > 0 else "0"
        return F.call_function("format_number", column, F.lit(digits))
    elif isinstance(kind, VARIANT_TYPES):
        has_instants = F.schema_of_variant(column).contains("TIMESTAMP")
        in_utc = F.btrim(F.to_json(column, {"timeZone": "UTC"}), F.lit('"'))
        return F.when(has_instants, in_utc).otherwise(column.cast("string"))
    return column.cast("string")


def as_json(values: Iterable[tuple[str, Column, DataType]], *, nulls: bool) -> Column:
    """Values of any types as one JSON object, different ones for different values.

    Args:
        values: names, columns and their types.
        nulls: whether a null is written; it is left out otherwise.
    """
    columns = [_exact(column, kind).alias(name) for name, column, kind in values]
    # a variant's instants go by the option
    options = {"ignoreNullFields": str(not nulls).lower(), "timeZone": "UTC"}
    return F.to_json(F.struct(*columns), options)


def has_timestamps(kind: DataType) -> bool:
    """Whether a timestamp of either type is in a type."""
    return any(isinstance(leaf, TimestampType | TimestampNTZType) for leaf in _leaves(kind))


def _exact(column: Column, kind: DataType) -> Column:
    """A value as one that to_json writes in full."""
    if all(isinstance(leaf, _WHOLE_IN_JSON) for leaf in _leaves(kind)):
        return column
    match kind:
        case StringType() | CharType() | VarcharType():
            # Bytes that are no text are written as their numbers, behind a mark; so are the texts
            # that begin with the mark, which cannot be mistaken for them then.
            text = column.cast("string")
            is_itself = is_valid_utf8(text) & ~F.startswith(text, F.lit(_REPLACEMENT))
            numbers = F.concat(F.lit(_REPLACEMENT), F.hex(text))
            return F.when(is_itself, text).otherwise(numbers)
        case ArrayType():
            return F.transform(column, lambda item: _exact(item, kind.elementType))
        case MapType():
            column = F.transform_keys(column, lambda key, _: _exact(key, kind.keyType))
            return F.transform_values(column, lambda _, value: _exact(value, kind.valueType))
        case StructType():
            fields = [
                _exact(column.getField(part.name), part.dataType).alias(part.name) for part in kind
            ]
            return F.when(column.isNotNull(), F.struct(*fields))
        case AtomicType() if not isinstance(kind, VARIANT_TYPES):
            return as_text(column, kind)
    return column


def _leaves(kind: DataType) -> Iterator[DataType]:
    match kind:
        case ArrayType():
            yield from _leaves(kind.elementType)
        case MapType():
            yield from _leaves(kind.keyType)
            yield from _leaves(kind.valueType)
        case StructType():
            for part in kind:
                yield from _leaves(part.dataType)
        case _:
            yield kind
