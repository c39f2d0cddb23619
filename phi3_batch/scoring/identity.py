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
from pyspark.sql.types import ArrayType, MapType, StringType, StructType

from phi3_batch.scoring.columns import find_field, named
from phi3_batch.scoring.requests import are_in_parts, text_of

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


def row_digest(columns: Sequence[str]) -> Column:
    """A hash of a row's values in these columns, 64 bits."""
    return F.xxhash64(F.to_json(F.struct(*map(named, columns))))


def limited(rows: DataFrame, limit: int | None) -> DataFrame:
    """So many rows of a table, the same ones whoever asks; all of them where there is no limit."""
    return rows if limit is None else rows.orderBy(row_digest(rows.columns)).limit(limit)


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
    field = find_field(schema, name)
    assert field is not None  # the source was checked
    column = named(name)
    if isinstance(field.dataType, StringType):
        text = column.cast("binary")  # as it is, whether or not it is valid UTF-8
    elif isinstance(field.dataType, ArrayType) and isinstance(
        field.dataType.elementType, StructType | MapType
    ):
        # of a message, what a chat is made of, however the table stores it
        in_parts = are_in_parts(field.dataType)
        turns = F.transform(
            column,
            lambda turn: F.struct(
                turn["role"].alias("role"), text_of(turn, in_parts=in_parts).alias("content")
            ),
        )
        text = F.to_json(F.struct(turns), {"ignoreNullFields": "false"})
    else:
        text = F.to_json(F.struct(column), {"ignoreNullFields": "false"})
    return F.coalesce(F.sha2(text, 256), F.lit("null"))


def _digest(value: Mapping[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_HALF_DIGITS]
