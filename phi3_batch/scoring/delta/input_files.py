"""JSONL, CSV and Parquet files: read exactly as they are, or refused with the line that is wrong.

Spark's own readers do the reading. What they would guess at or silently change is found before,
by a pass over the lines, in order, on Spark's workers.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa  # type: ignore[import-untyped]
from pyspark.cloudpickle import register_pickle_by_value
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, StructField, StructType

from phi3_batch.errors import TableError
from phi3_batch.scoring import compat
from phi3_batch.scoring.delta import lines as lines_module
from phi3_batch.scoring.delta.lines import OTHER_CONTENT, examine_csv, examine_json
from phi3_batch.scoring.rows.columns import named
from phi3_batch.scoring.rows.requests import text_of_parts

_FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
# of text files; what Spark unpacks wherever it runs
_COMPRESSED = (".gz", ".bz2")
WHICH_FILES = (
    f"files are read whose names end in {', '.join(_FORMATS)}, those of text with"
    f" {' or '.join(_COMPRESSED)} behind that too; a folder of them as FOLDER/*.jsonl"
)

_CONTENT = "content"  # of a message

_NO_COLUMN = "__phi3_batch_corrupt_record"
_GLOB_CHARACTER = re.compile(r"[]\[{}*?\\]")
_SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar"}
_FOUND = pa.schema([("file", pa.string()), ("block", pa.int64()), ("facts", pa.string())])

_JSON_RULE = "mend it or leave it out; each line is one JSON object, in UTF-8"
_CSV_RULE = (
    "mend it; a CSV file is in UTF-8 and has as many fields in each record as in its first line,"
    " and text that has a comma, a quote or a line break in it is in double quotes"
)

# what looks at the lines travels to the workers, whatever is installed there
register_pickle_by_value(lines_module)  # type: ignore[no-untyped-call]

_At = tuple[str, int]  # a file's name and a line


def file_format(name: str) -> str | None:
    """Spark's name for the format of a data file, by its ending; None for other names."""
    path = Path(name)
    if path.suffix.lower() in _COMPRESSED:
        unpacked = _FORMATS.get(Path(path.stem).suffix.lower())
        return None if unpacked == "parquet" else unpacked
    return _FORMATS.get(path.suffix.lower())


def read_files(spark: SparkSession, path: str, format_name: str) -> DataFrame:
    """The rows of files of one format.

    In messages, contents that are lists of parts come out as their text.

    Args:
        spark: the session.
        path: of a file or a folder of them, or a pattern.
        format_name: from :func:`file_format`.

    Raises:
        TableError: a line is not as its format wants it, or Spark would change what it says.
    """
    if urlsplit(path).scheme == "" and Path(path).exists():
        path = _GLOB_CHARACTER.sub(r"\\\g<0>", path)  # this very file, and not a pattern
    if format_name == "parquet":
        return _read_parquet(spark, path)
    return _read_json(spark, path) if format_name == "json" else _read_csv(spark, path)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a file that was looked at by itself.

    Attributes:
        file: its name.
        before: how many lines of the file come before the part.
        facts: what was found.
    """

    file: str
    before: int
    facts: Mapping[str, Any]


def _lines(spark: SparkSession, path: str) -> DataFrame:
    """The lines of text files as bytes, without a byte order mark; in order within a block."""
    text = spark.read.text(path, lineSep="\n")
    return text.select(
        F.col("_metadata.file_path").alias("file"),
        F.col("_metadata.file_block_start").alias("block"),
        F.col("value").cast("binary").alias("line"),
    )


def _in_one_block(lines: DataFrame) -> DataFrame:
    """The same lines with each file as one block."""
    numbered = lines.withColumn("number", F.monotonically_increasing_id())
    ordered = numbered.repartition("file").sortWithinPartitions("file", "block", "number")
    return ordered.select("file", F.lit(0).alias("block"), "line")


def _examine(
    lines: DataFrame, examine: Callable[[Iterable[bytes]], Mapping[str, Any]], rule: str
) -> list[_Part]:
    """What was found in each block, in order.

    Raises:
        TableError: a line is broken.
    """

    def of_blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = (
            row
            for batch in batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        for (file, block), group in groupby(rows, key=itemgetter(0, 1)):
            facts = json.dumps(examine(line for _, _, line in group))
            found = {"file": file, "block": block, "facts": facts}
            yield pa.RecordBatch.from_pylist([found], schema=_FOUND)

    found = lines.mapInArrow(of_blocks, "file string, block long, facts string").collect()
    parts: list[_Part] = []
    before = Counter[str]()
    for file, _, facts_json in sorted(found):
        name, facts = Path(unquote(file)).name, json.loads(facts_json)
        parts.append(_Part(name, before[file], facts))
        before[file] += facts["lines"]
    broken = [part for part in parts if part.facts["problem"]]
    if broken:
        line, what, _ = broken[0].facts["problem"]
        count = sum(part.facts["problem"][2] for part in broken)
        others = f" ({count:,} lines are broken)" if count > 1 else ""
        number = broken[0].before + line
        raise TableError(f"line {number:,} of {broken[0].file} {what}{others}: {rule}")
    return parts


def _read_json(spark: SparkSession, path: str) -> DataFrame:
    columns = _columns(_examine(_lines(spark, path), examine_json, _JSON_RULE))
    if not columns:
        raise TableError(f"{_name(path)} has no row that says what its columns are")
    read = partial(
        spark.read.json,
        path,
        mode="FAILFAST",
        lineSep="\n",
        columnNameOfCorruptRecord=_NO_COLUMN,  # a column of Spark's name is the user's own
    )
    rows = read()
    loose = StructType(
        [
            _with_loose_content(field, *columns[field.name][OTHER_CONTENT])
            if OTHER_CONTENT in columns[field.name]
            else field
            for field in rows.schema
            if field.name in columns
        ]
    )
    changed = [field.name for field in loose if field not in rows.schema.fields]
    if not changed:
        return rows
    contents = {name: _with_text_content(name, loose[name].dataType) for name in changed}
    return read(schema=loose).withColumns(contents)


def _columns(parts: Iterable[_Part]) -> dict[str, dict[str, _At]]:
    """The kinds of values of each column, and where each is first.

    Raises:
        TableError: Spark would take two columns for one, or make text of lists or objects.
    """
    columns: dict[str, dict[str, _At]] = {}
    for part in parts:
        for column, kinds in part.facts["columns"].items():
            first = columns.setdefault(column, {})
            for kind, line in kinds.items():
                first.setdefault(kind, (part.file, part.before + line))
    names: dict[str, str] = {}
    for name, kinds in columns.items():
        other = names.setdefault(name.lower(), name)
        if other != name:
            raise TableError(
                f"columns {other!r} and {name!r} of the input differ only in the case of letters:"
                " rename one"
            )
        plain = {kind: at for kind, at in kinds.items() if kind != OTHER_CONTENT}
        nested = [kind for kind in ("a list", "an object") if kind in plain]
        if nested and len(plain) > 1:
            (file, line), kind = plain.pop(nested[0]), nested[0]
            other_kind, (other_file, other_line) = next(iter(plain.items()))
            raise TableError(
                f"column {name!r} is {kind} in line {line:,} of {file} and {other_kind} in"
                f" line {other_line:,} of {other_file}: it has to be the same everywhere"
            )
    return columns


def _with_loose_content(field: StructField, file: str, line: int) -> StructField:
    """A column of messages whose contents are read as whatever each of them is."""
    turns = field.dataType
    if not isinstance(turns, ArrayType) or not isinstance(turns.elementType, StructType):
        return field
    if not compat.VARIANT_TYPES:
        raise TableError(
            f"column {field.name!r} has a content that is no text in line {line:,} of {file}:"
            f" Spark {version('pyspark')} cannot read such contents beside texts, 4.0 and later can"
        )
    [variant] = compat.VARIANT_TYPES
    parts = [
        StructField(part.name, variant() if part.name == _CONTENT else part.dataType)
        for part in turns.elementType
    ]
    return StructField(field.name, ArrayType(StructType(parts)))


def _with_text_content(name: str, loose: DataType) -> Column:
    """Messages with texts as contents: strings, and what lists of text parts come to."""
    assert isinstance(loose, ArrayType)
    assert isinstance(loose.elementType, StructType)
    names = loose.elementType.fieldNames()

    def text(content: Column) -> Column:
        is_string = F.schema_of_variant(content) == "STRING"
        parts = F.try_variant_get(content, "$", "array<struct<type:string,text:string>>")
        string = F.try_variant_get(content, "$", "string")
        return F.when(is_string, string).otherwise(text_of_parts(parts))

    return F.transform(
        named(name),
        lambda turn: F.when(
            turn.isNotNull(),
            F.struct(
                *(
                    (text(turn[part]) if part == _CONTENT else turn[part]).alias(part)
                    for part in names
                )
            ),
        ),
    )


def _read_csv(spark: SparkSession, path: str) -> DataFrame:
    files = _examine(_in_one_block(_lines(spark, path)), examine_csv, _CSV_RULE)
    with_header = [(part.file, part.facts["header"]) for part in files if part.facts["header"]]
    if not with_header:
        raise TableError(f"{_name(path)} has no line with the names of its columns")
    first, header = with_header[0]
    for file, other in with_header:
        if other != header:
            raise TableError(f"{file} and {first} do not have the same columns in the same order")
    _check_header(first, header)
    rows = spark.read.csv(path, header=True, multiLine=True, escape='"')
    lengths = [F.coalesce(F.length(named(name)), F.lit(0)) for name in rows.columns]
    read = rows.agg(F.count(F.lit(1)), F.coalesce(F.sum(sum(lengths, F.lit(0))), F.lit(0))).head()
    there = [sum(part.facts[count] for part in files) for count in ("records", "characters")]
    if list(read or ()) != there:
        raise TableError(f"{_name(path)} cannot be read as it is: write it as JSONL or Parquet")
    return rows


def _check_header(file: str, header: Sequence[str]) -> None:
    """Raise a TableError for names that Spark would change, and for another separator."""
    lower = [name.lower() for name in header]
    for name in header:
        if name and lower.count(name.lower()) > 1:
            raise TableError(f"{file} has two columns {name!r}: rename one")
    for separator, word in _SEPARATORS.items():
        if len(header) == 1 and separator in header[0]:
            raise TableError(
                f"the columns of {file} seem to have a {word} between them: write it with commas"
            )


def _read_parquet(spark: SparkSession, path: str) -> DataFrame:
    try:
        return spark.read.parquet(path, mergeSchema=True)
    except AnalysisException as error:
        if compat.condition(error) == "UNABLE_TO_INFER_SCHEMA":
            raise TableError(f"{_name(path)} has no Parquet file in it") from error
        raise


def _name(path: str) -> str:
    return re.sub(r"\\(.)", r"\1", Path(path).name)
