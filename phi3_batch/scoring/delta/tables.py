"""Where rows come from and go to: Delta tables by name or path, and files for a first try."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from phi3_batch.errors import TableError
from phi3_batch.scoring import compat, session
from phi3_batch.scoring.delta import input_files
from phi3_batch.scoring.rows.columns import is_plain, named
from phi3_batch.scoring.rows.values import as_json
from phi3_batch.scoring.said import JVM_IS_GONE, first_line

# Delta keeps these out of column names unless a table has column mapping
_REFUSED_BY_DELTA = re.compile(r"[ ,;{}()\n\t=]")
# Of a table's columns, what does not go into the output with them: the type that a string column
# was declared with, char(N) or varchar(N), and its default
LENGTH_LIMIT = "__CHAR_VARCHAR_TYPE_STRING"
_NOT_CARRIED = {LENGTH_LIMIT, "CURRENT_DEFAULT", "EXISTS_DEFAULT"}
_COLUMN_MAPPING, _MAPPED = "columnMapping.mode", ("name", "id")
_SESSION_CATALOG = "spark_catalog"
_DELTA_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
# What every Delta Lake can write that this package runs with
_FEATURES = {
    "allowColumnDefaults",
    "appendOnly",
    "changeDataFeed",
    "checkConstraints",
    "clustering",
    "columnMapping",
    "deletionVectors",
    "domainMetadata",
    "generatedColumns",
    "identityColumns",
    "invariants",
    "rowTracking",
    "timestampNtz",
    "v2Checkpoint",
}
# Spark's conditions for a name or path that is not there, or is there and is no Delta table
_NOT_A_DELTA_TABLE = (
    "PATH_NOT_FOUND",
    "TABLE_OR_VIEW_NOT_FOUND",
    "SCHEMA_NOT_FOUND",
    "DELTA_MISSING_DELTA_TABLE",
    "EXPECT_TABLE_NOT_VIEW",
    "_LEGACY_ERROR_TEMP_1013",  # the same, before 4.0
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
        return input_files.file_format(self.text)

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
        delta_id: of the Delta table; None for files and views.
    """

    location: Location
    rows: DataFrame
    version: int | None
    path: str | None
    identity: str
    delta_id: str | None = None


@dataclass(frozen=True, slots=True)
class TableDetail:
    """What Delta says of a table.

    Attributes:
        id: of the table.
        path: where its data is.
        partitions: columns that it is partitioned by.
        clustering: columns that it is clustered by.
        properties: of the table, its CHECK constraints among them.
        features: that it uses of Delta.
    """

    id: str
    path: str
    partitions: tuple[str, ...]
    clustering: tuple[str, ...]
    properties: Mapping[str, str]
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class OutputTable:
    """Where completions go.

    Attributes:
        schema: what the table looks like now; None when it is not there yet.
        path: where its data is; for a named table that is not there yet, None.
        version: the latest; None when it is not there yet.
        detail: what Delta says of it; None when it is not there yet.
        takes_any_name: whether it has column mapping, or will have it.
    """

    location: Location
    schema: StructType | None
    path: str | None
    version: int | None
    detail: TableDetail | None = None
    takes_any_name: bool = False


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
            rows = input_files.read_files(spark, location.path, location.file_format)
            path = normal_path(location.path)
            return InputTable(location, rows, None, path, content_digest(rows))
        delta = _describe(spark, location)
        if delta is not None:
            version = latest_version(spark, location) if version is None else version
            rows = read_version(spark, location, version)
            identity = f"{delta.id}@{version}"
            return InputTable(location, rows, version, delta.path, identity, delta.id)
        if location.is_path:
            raise TableError(f"no Delta table at {location.text} ({input_files.WHICH_FILES})")
        if Path(location.text).exists() and not spark.catalog.tableExists(location.text):
            if Path(location.text).is_file():
                raise TableError(f"no table {location.text} ({input_files.WHICH_FILES})")
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
        delta = _describe(spark, location)
        if delta is not None:
            _check_features(spark, location, delta)
            return OutputTable(
                location,
                read_table(spark, location).schema,
                delta.path,
                latest_version(spark, location),
                delta,
                takes_any_name=delta.properties.get(f"delta.{_COLUMN_MAPPING}") in _MAPPED,
            )
        default = f"spark.databricks.delta.properties.defaults.{_COLUMN_MAPPING}"
        mapped = spark.conf.get(default, None) in _MAPPED
        if location.is_path:
            path = normal_path(location.path)
            return OutputTable(location, None, path, None, takes_any_name=mapped)
        if spark.catalog.tableExists(location.text):
            raise TableError(f"output {location.text} exists and is not a Delta table")
        if _is_forgotten(spark, location.text):
            raise TableError(
                f"output {location.text} is a table's name, and this Spark session forgets its"
                f" tables when it ends: give a path, such as ./{location.text}"
            )
        return OutputTable(location, None, None, None, takes_any_name=mapped)


def _is_forgotten(spark: SparkSession, name: str) -> bool:
    """Whether a table of that name ends with the session: there is no metastore, and no catalog."""
    if spark.conf.get("spark.sql.catalogImplementation") != "in-memory":
        return False
    first, dot, _ = name.partition(".")
    first = first.strip("`")
    is_catalog = dot and spark.conf.get(f"spark.sql.catalog.{first}", None)
    catalog = first if is_catalog else spark.catalog.currentCatalog()
    # Unity Catalog's may be in its place
    kind = spark.conf.get(f"spark.sql.catalog.{_SESSION_CATALOG}", None)
    return catalog == _SESSION_CATALOG and kind == _DELTA_CATALOG


def table_path(spark: SparkSession, location: Location) -> str:
    """Where the data of a Delta table is that is there."""
    if location.is_path:
        return normal_path(location.path)
    delta = _describe(spark, location)
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


def refused_names(fields: Iterable[StructField]) -> list[StructField]:
    """The columns that Delta does not store for their names, or for names within them."""
    return [field for field in fields if any(map(_REFUSED_BY_DELTA.search, _names(field)))]


def without_limits(rows: DataFrame) -> DataFrame:
    """The rows, without what their table demands of new ones: an output is a table of its own."""
    if not any(_NOT_CARRIED & field.metadata.keys() for field in rows.schema):
        return rows
    columns = []
    for field in rows.schema:
        left = {key: value for key, value in field.metadata.items() if key not in _NOT_CARRIED}
        columns.append(named(field.name).alias(field.name, metadata=left))
    return rows.select(*columns)


def check_types(rows: DataFrame, fields: Iterable[StructField]) -> None:
    """See that Delta stores columns of these types; those that not every one does are tried.

    Raises:
        TableError: it does not.
    """
    for field in fields:
        if _is_stored(field.dataType):
            continue
        with tempfile.TemporaryDirectory(prefix="phi3-batch-") as folder:
            trial = rows.select(named(field.name).alias("column"), F.lit(0).alias("other")).limit(0)
            try:
                trial.write.format("delta").save(f"file://{folder}/table")
            except compat.SPARK_ERRORS as error:
                raise TableError(
                    f"Delta does not store column {field.name!r}, which is"
                    f" {field.dataType.simpleString()}: leave it out with --keep"
                ) from error


def _is_stored(of: DataType) -> bool:
    """Whether every Delta Lake stores values of a type."""
    if isinstance(of, StructType):
        names = {name.lower() for name in of.fieldNames()}
        return len(names) == len(of) and all(_is_stored(field.dataType) for field in of)
    if isinstance(of, ArrayType):
        return _is_stored(of.elementType)
    if isinstance(of, MapType):
        return _is_stored(of.keyType) and _is_stored(of.valueType)
    return is_plain(of)


def _names(field: StructField) -> Iterator[str]:
    """The names of a column and of all within it."""
    yield field.name
    inner = [field.dataType]
    while inner:
        of = inner.pop()
        if isinstance(of, StructType):
            for each in of:
                yield from _names(each)
        elif isinstance(of, ArrayType):
            inner.append(of.elementType)
        elif isinstance(of, MapType):
            inner += [of.keyType, of.valueType]


def normal_path(path: str) -> str:
    """A path in one form, so that two names of one place compare equal."""
    parts = urlsplit(path)
    if parts.scheme in ("", "file"):
        return os.path.realpath(parts.path)
    return path.rstrip("/")


def content_digest(rows: DataFrame) -> str:
    """A hash of all rows, whatever their order."""
    values = [(field.name, named(field.name), field.dataType) for field in rows.schema]
    row = F.xxhash64(as_json(values, nulls=True))
    summed = rows.agg(F.count(F.lit(1)), F.sum(row.cast("decimal(20)"))).head()
    assert summed is not None  # an aggregate of no rows is a row too
    return f"{summed[0]} rows, {summed[1]}"


def _describe(spark: SparkSession, location: Location) -> TableDetail | None:
    """What Delta says of a table; None when there is no Delta table of that name or path."""
    try:
        detail = spark.sql(f"DESCRIBE DETAIL {location.sql}").head()
    except AnalysisException as error:
        if compat.condition(error).startswith(_NOT_A_DELTA_TABLE):
            return None
        raise
    assert detail is not None  # one row for a table
    if detail["format"] != "delta":
        return None
    return TableDetail(
        id=detail["id"],
        path=normal_path(detail["location"]),
        partitions=tuple(detail["partitionColumns"]),
        clustering=tuple(detail["clusteringColumns"]),
        properties=detail["properties"],
        features=frozenset(detail["tableFeatures"]),
    )


def _check_features(spark: SparkSession, location: Location, detail: TableDetail) -> None:
    """Raise a TableError for a table that this Delta Lake reads and cannot write."""
    if detail.features <= _FEATURES:
        return
    try:  # a statement that changes nothing, and makes no commit
        spark.sql(f"DELETE FROM {location.sql} WHERE false")  # noqa: S608 (a quoted name)
    except compat.SPARK_ERRORS as error:
        if "DELTA_UNSUPPORTED_FEATURES" in str(error) or "PROTOCOL" in str(error):
            unknown = ", ".join(sorted(detail.features - _FEATURES))
            raise TableError(
                f"output {location.text} cannot be written by this version of Delta Lake (it uses"
                f" {unknown}): use another output"
            ) from error


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
    except compat.JOB_ERRORS as error:
        if session.has_ended():  # where the error is but what it left behind
            raise TableError(f"cannot {verb} {location.text}: {JVM_IS_GONE}") from None
        is_no_name = isinstance(error, ParseException) and not location.is_path
        hint = f"; for a folder give ./{location.text}" if is_no_name else ""
        raise TableError(f"cannot {verb} {location.text}: {first_line(error)}{hint}") from None
