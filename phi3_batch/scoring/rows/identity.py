"""What makes a request, a run and a chunk the same: hashes, and nothing kept beside the tables.

A row's ``request_id`` is a hash of all that shapes its completion: the settings of the run (the
model, the parameters, the template) and the row's own values. A run's fingerprint is a hash of
the settings and of the input, at its version. Both come out the same on every machine, so that a
run begun on one is resumed on another.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DataType,
    DoubleType,
    FloatType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from phi3_batch.scoring.compat import VARIANT_TYPES
from phi3_batch.scoring.rows.columns import find_field, typed
from phi3_batch.scoring.rows.requests import TURNS_TYPE, has_turns, turns_of
from phi3_batch.scoring.rows.values import TEXT_TYPES, as_json, as_text, has_timestamps

# Hexadecimal digits. 128 bits of SHA-256 for requests, that many that no two of any table meet;
# 64 bits each for the settings and the input, of which a table sees a handful.
_REQUEST_DIGITS = 32
_HALF_DIGITS = 16

# Chunks halve the requests as often as it takes to have this many in each or fewer, but no more
# often than to get _MOST_CHUNKS. The more there are in each, the less time goes into planning
# chunks and into the ends of batches, which run empty there, and the more a cluster's tasks have.
# The fewer, the less a killed driver costs: two chunks on one machine. Small tables are cut finer,
# into up to four.
_REQUESTS_PER_CHUNK = 512
_IN_A_SMALL_TABLE = 256
_CHUNKS_OF_A_SMALL_TABLE = 4
_MOST_CHUNKS = 256


def settings_digest(settings: Mapping[str, str]) -> str:
    """The half of a fingerprint that says how rows are scored."""
    return _digest(settings)


def fingerprint(settings: str, table: Mapping[str, object]) -> str:
    """What one run is known by.

    Args:
        settings: from :func:`settings_digest`.
        table: what is scored and what is kept of it; plain values.
    """
    return f"{settings}-{_digest(table)}"


def settings_of(run: str) -> str:
    """The settings' half of a fingerprint."""
    return run.partition("-")[0]


def request_id(schema: StructType, columns: Sequence[str], settings: str) -> Column:
    """The hash of each row's request.

    Args:
        schema: of the table.
        columns: names of those whose values are the request.
        settings: from :func:`settings_digest`.
    """
    digests = [_value_digest(schema, name) for name in columns]
    return F.substring(F.sha2(F.concat_ws("/", F.lit(settings), *digests), 256), 1, _REQUEST_DIGITS)


def rendering(schema: StructType, columns: Sequence[str]) -> dict[str, str]:
    """The setting that keeps request ids of these columns apart from an earlier release's.

    These left out what is below a millisecond, went by the session's time zone, took a float for
    the double of the same digits, and a variant's JSON for its text. Other columns keep their ids.
    """
    fields = [find_field(schema, name) for name in columns]
    of_all = (TimestampType, TimestampNTZType, FloatType)
    changed: tuple[type[DataType], ...] = (*of_all, *VARIANT_TYPES)
    is_changed = any(field and isinstance(field.dataType, changed) for field in fields)
    return {"values": "exact, in UTC"} if is_changed else {}


def sampling(schema: StructType, limit: int | None) -> dict[str, object]:
    """What a fingerprint says of the rows that :func:`limited` takes."""
    # earlier releases took others where there are timestamps, by the session's time zone
    is_changed = limit is not None and has_timestamps(schema)
    return {"limit": limit, **({"sample": "exact, in UTC"} if is_changed else {})}


def row_digest(schema: StructType, columns: Sequence[str]) -> Column:
    """A hash of a row's values in these columns, 64 bits."""
    values = [(name, *typed(schema, name)) for name in columns]
    return F.xxhash64(as_json(values, nulls=False))


def limited(rows: DataFrame, limit: int | None) -> DataFrame:
    """So many rows of a table, the same ones whoever asks; all of them where there is no limit."""
    if limit is None:
        return rows
    return rows.orderBy(row_digest(rows.schema, rows.columns)).limit(limit)


def chunk_count(requests: int) -> int:
    """In how many chunks so many requests are scored: a power of two."""
    count = 1
    while count < _MOST_CHUNKS:
        is_small = count < _CHUNKS_OF_A_SMALL_TABLE
        if requests <= count * (_IN_A_SMALL_TABLE if is_small else _REQUESTS_PER_CHUNK):
            break
        count *= 2
    return count


def bucket_of(request: Column) -> Column:
    """A number from 0 for each request, which says its chunk for whatever number of chunks.

    That number is a power of two, so ``chunk = bucket % chunks``.
    """
    return F.pmod(F.xxhash64(request), F.lit(_MOST_CHUNKS)).cast("int")


def _value_digest(schema: StructType, name: str) -> Column:
    """A hash of what is sent of a column: of its text, or of its value to the last digit."""
    column, kind = typed(schema, name)
    if isinstance(kind, TEXT_TYPES):
        text = column.cast("binary")  # as it is, whether or not it is valid UTF-8
    elif has_turns(kind):
        text = as_json([("col1", turns_of(column, kind), TURNS_TYPE)], nulls=True)
    elif isinstance(kind, FloatType):
        # a parameter is a double, and that of a float is none of the same digits
        text = as_json([(name, column.cast("double"), DoubleType())], nulls=True)
    elif isinstance(kind, VARIANT_TYPES):
        text = as_json([(name, as_text(column, kind), StringType())], nulls=True)
    else:
        text = as_json([(name, column, kind)], nulls=True)
    return F.coalesce(F.sha2(text, 256), F.lit("null"))


def _digest(value: Mapping[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_HALF_DIGITS]
