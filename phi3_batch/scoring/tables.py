"""Where rows come from and go to: Delta tables by name or path, and files for a first try."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, ParseException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import TableError
from phi3_batch.scoring.columns import named
from phi3_batch.scoring.values import as_json

WriteMode = Literal["error", "append", "overwrite"]

_FILE_FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
# Delta keeps these out of column names unless a table has column mapping
_REFUSED_BY_DELTA = re.compile(r"[ ,;{}()\n\t=]")
# Spark's conditions for a name or path that is not there, or is there and is no Delta table
_NOT_A_DELTA_TABLE = (
    "PATH_NOT_FOUND",
    "TABLE_OR_VIEW_NOT_FOUND",
    "SCHEMA_NOT_FOUND",
    "DELTA_MISSING_DELTA_TABLE",
    "EXPECT_TABLE_NOT_VIEW",
)


@dataclass(frozen=True, slots=True)
class Location:
    """A table as the user named it.

    A path has a slash or a scheme, or ends like a data file; all else is a table's name in the
    session's catalogs (``prompts``, ``sales.prompts``, ``main.sales.prompts``).
    """

    text: str

    @property
    def is_path(self) -> bool:
        """Whether it is a path, not a table's name."""
        return "/" in self.text or self.text in (".", "..") or self.file_format is not None

    @property
    def file_format(self) -> str | None:
        """Spark's name for the format of a data file; None for a Delta table."""
        return _FILE_FORMATS.get(Path(self.text).suffix.lower())

    @property
    def path(self) -> str:
        """The path, absolute: Delta's SQL takes a relative one for a table's name."""
        return self.text if urlsplit(self.text).scheme else str(Path(self.text).absolute())

    @property
    def sql(self) -> str:
        """The Delta table as SQL names it."""
        return "delta.`{}`".format(self.path.replace("`", "``")) if self.is_path else self.text


@dataclass(frozen=True, slots=True)
class InputTable:
    """Rows to score, pinned to what they are now.

    Attributes:
        rows: the DataFrame, read at ``version`` where there is one.
        version: of the Delta table; None for files and views.
        path: where the data is; None for views.
        identity: of these very rows: a Delta table's id and version, else a hash of all of them.
    """

    location: Location
    rows: DataFrame
    version: int | None
    path: str | None
    identity: str


@dataclass(frozen=True, slots=True)
class OutputTable:
    """Where completions go.

    Attributes:
        schema: what the table looks like now; None when it is not there yet.
        path: where its data is; for a named table that is not there yet, None.
        version: the latest; None when it is not there yet.
    """

    location: Location
    schema: StructType | None
    path: str | None
    version: int | None


def open_input(
    spark: SparkSession, location: Location, *, version: int | None = None
) -> InputTable:
    """Open the rows to score.

    Args:
        spark: the session.
        location: of the table or the files.
        version: of a Delta table; its newest, where none is given.

    Raises:
        TableError: there is no such table, view or file, or it cannot be read.
    """
    with _one_line_errors("read", location):
        if location.file_format:
            rows = _read_files(spark, location.path, location.file_format)
            path = normal_path(location.path)
            return InputTable(location, rows, None, path, content_digest(rows))
        delta = _delta_table(spark, location)
        if delta is not None:
            version = latest_version(spark, location) if version is None else version
            rows = read_version(spark, location, version)
            return InputTable(location, rows, version, delta.path, f"{delta.id}@{version}")
        if location.is_path:
            raise TableError(
                f"no Delta table at {location.text} (JSONL, CSV and Parquet files are read too,"
                " by their endings)"
            )
        if Path(location.text).exists() and not spark.catalog.tableExists(location.text):
            raise TableError(
                f"no table {location.text}: for the folder of that name give ./{location.text}"
            )
        rows = spark.table(location.text)
        return InputTable(location, rows, None, None, content_digest(rows))


def open_output(spark: SparkSession, location: Location) -> OutputTable:
    """Look at the table to write, without touching it.

    Raises:
        TableError: it is a file, a view or a table of another format, or cannot be reached.
    """
    if location.file_format:
        raise TableError(
            f"output {location.text} looks like a data file: completions go to a Delta table, so"
            " give the path of a folder or a table's name"
        )
    with _one_line_errors("write", location):
        delta = _delta_table(spark, location)
        if delta is not None:
            rows = read_table(spark, location)
            return OutputTable(location, rows.schema, delta.path, latest_version(spark, location))
        if location.is_path:
            return OutputTable(location, None, normal_path(location.path), None)
        if spark.catalog.tableExists(location.text):
            raise TableError(f"output {location.text} exists and is not a Delta table")
        if spark.conf.get("spark.sql.catalogImplementation") == "in-memory":
            raise TableError(
                f"output {location.text} is a table's name, and this Spark session forgets its"
                f" tables when it ends: give a path, such as ./{location.text}"
            )
        return OutputTable(location, None, None, None)


def table_path(spark: SparkSession, location: Location) -> str:
    """Where the data of a Delta table is that is there."""
    if location.is_path:
        return normal_path(location.path)
    delta = _delta_table(spark, location)
    return delta.path if delta else ""


def read_table(spark: SparkSession, location: Location) -> DataFrame:
    """A Delta table as it is now."""
    if location.is_path:
        return spark.read.format("delta").load(location.path)
    return spark.table(location.text)


def read_version(spark: SparkSession, location: Location, version: int) -> DataFrame:
    """A Delta table as it was at a version."""
    reader = spark.read.format("delta").option("versionAsOf", version)
    return reader.load(location.path) if location.is_path else reader.table(location.text)


def check_column_names(names: Sequence[str]) -> None:
    """Raise a TableError for names that Delta will not store."""
    refused = [name for name in names if _REFUSED_BY_DELTA.search(name)]
    if refused:
        raise TableError(
            f"Delta does not store columns named like {refused[0]!r} (spaces and ,;{{}}()= are"
            " refused): rename them, or leave them out with --keep"
        )


def normal_path(path: str) -> str:
    """A path in one form, so that two names of one place compare equal."""
    parts = urlsplit(path)
    if parts.scheme in ("", "file"):
        return os.path.realpath(parts.path)
    return path.rstrip("/")


def _read_files(spark: SparkSession, path: str, file_format: str) -> DataFrame:
    if file_format == "csv":
        return spark.read.csv(path, header=True, multiLine=True, escape='"')
    return spark.read.format(file_format).load(path)


def content_digest(rows: DataFrame) -> str:
    """A hash of all rows, whatever their order."""
    values = [(field.name, named(field.name), field.dataType) for field in rows.schema]
    row = F.xxhash64(as_json(values, nulls=True))
    summed = rows.agg(F.count(F.lit(1)), F.sum(row.cast("decimal(20)"))).head()
    assert summed is not None  # an aggregate of no rows is a row too
    return f"{summed[0]} rows, {summed[1]}"


@dataclass(frozen=True, slots=True)
class _DeltaTable:
    id: str
    path: str


def _delta_table(spark: SparkSession, location: Location) -> _DeltaTable | None:
    """What Delta says of a table; None when there is no Delta table of that name or path."""
    try:
        described = spark.sql(f"DESCRIBE DETAIL {location.sql}")
        detail = described.select("format", "id", "location").head()
    except AnalysisException as error:
        if (error.getCondition() or "").startswith(_NOT_A_DELTA_TABLE):
            return None
        raise
    assert detail is not None  # one row for a table
    if detail["format"] != "delta":
        return None
    return _DeltaTable(detail["id"], normal_path(detail["location"]))


def latest_version(spark: SparkSession, location: Location) -> int:
    """The newest version of a Delta table."""
    newest = spark.sql(f"DESCRIBE HISTORY {location.sql} LIMIT 1").select("version").head()
    assert newest is not None  # a Delta table has at least the version that made it
    return int(newest["version"])


@contextlib.contextmanager
def _one_line_errors(verb: str, location: Location) -> Iterator[None]:
    """Turn Spark's and the JVM's errors into one line for the user."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        is_no_name = isinstance(error, ParseException) and not location.is_path
        hint = f"; for a folder give ./{location.text}" if is_no_name else ""
        raise TableError(f"cannot {verb} {location.text}: {first_line(error)}{hint}") from error


def first_line(error: Exception) -> str:
    """What an error of Spark, the JVM or MLflow says, without its stack and its SQL state."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("An error occurred while calling") and len(lines) > 1:
        return lines[1].removeprefix(": ")
    return re.sub(r"\s*SQLSTATE: \w+.*", "", lines[0]) if lines else type(error).__name__
