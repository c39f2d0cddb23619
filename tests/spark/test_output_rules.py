"""What an output table demands, and what it is replaced with: known before the first row."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from phi3_batch.errors import TableError
from phi3_batch.options import WriteMode
from phi3_batch.scoring.delta import constraints, tables
from phi3_batch.scoring.delta.tables import Location, OutputTable
from phi3_batch.scoring.rows import schema
from tests.spark.conftest import before
from tests.spark.test_score import MADRID, SPAIN, score

ADDED = schema.output_columns(keep_response=False)
Make = Callable[..., OutputTable]


@pytest.fixture
def make(spark: SparkSession, tmp_path: Path) -> Make:
    """Make an output table of some kept columns and those of scoring; opens it."""

    def make_table(kept: str, clauses: str = "", **other: str) -> OutputTable:
        declared = {field.name: field.dataType.simpleString() for field in ADDED} | other
        columns = ", ".join([kept, *(f"{name} {of}" for name, of in declared.items())])
        location = Location(str(tmp_path / "out"))
        spark.sql(f"CREATE TABLE {location.sql} ({columns}) USING delta {clauses}")
        return tables.open_output(spark, location)

    return make_table


def check(
    output: OutputTable, rows: DataFrame, begin: WriteMode | None = None, ids: tuple[str, ...] = ()
) -> None:
    constraints.check(output, rows, rows.schema, ADDED, begin, ids)


def scored(rows: DataFrame) -> DataFrame:
    """The rows as they would be written, each with an error."""
    added = [f"cast(null as {field.dataType.simpleString()}) {field.name}" for field in ADDED]
    return rows.selectExpr("*", *added).fillna({"request_id": "x"})


def test_every_demand_is_found_and_its_advice_works(spark: SparkSession, make: Make) -> None:
    output = make(
        "id BIGINT NOT NULL, name VARCHAR(3)",
        "TBLPROPERTIES ('delta.appendOnly' = 'true')",
        completion="VARCHAR(100)",
        error="STRUCT<code: STRING, message: STRING> NOT NULL",
        request_id="STRING NOT NULL",
    )
    sql = output.location.sql
    spark.sql(f"ALTER TABLE {sql} ADD CONSTRAINT early CHECK (name < 'abcd')")
    spark.sql(f"ALTER TABLE {sql} ADD CONSTRAINT all_scored CHECK (completion_tokens > 0)")
    rows = spark.createDataFrame(
        [(1, "ab "), (None, "abcdef"), (2, "abc ")], "id long, name string"
    )
    said = []
    while True:
        output = tables.open_output(spark, output.location)
        try:
            check(output, rows, ids=("id",))
            break
        except TableError as error:
            said.append(str(error))
            (advice,) = re.findall(r"ALTER TABLE .*?(?=,? or use another output|$)", said[-1])
            spark.sql(advice)
    assert "takes new rows only (delta.appendOnly), and --id changes those" in said[0]
    assert "and 1 rows of the input break it: leave them out, ALTER TABLE" in said[-1]
    assert [re.split(", and | has ", line)[1] for line in said[1:]] == [
        "the CHECK constraint all_scored (completion_tokens > 0) on columns that are not the"
        " input's",
        "the column error, which is NOT NULL and not the input's",
        "the column completion of type varchar(100) and not the input's",
        "the CHECK constraint early (name < 'abcd')",
        "the column id, which is NOT NULL",
        "the column name of type varchar(3)",
    ]
    scored(rows).write.format("delta").mode("append").save(output.location.path)


def test_a_table_that_takes_new_rows_only_takes_them(make: Make, spark: SparkSession) -> None:
    output = make("id BIGINT", "TBLPROPERTIES ('delta.appendOnly' = 'true')")
    rows = spark.createDataFrame([(1,)], "id long")
    check(output, rows, begin="append")
    with pytest.raises(TableError, match=r"--mode overwrite changes those that are there"):
        check(output, rows, begin="overwrite")


@pytest.mark.skipif(before("4.2"), reason="tables by path have no generated columns")
def test_columns_that_delta_makes_itself(make: Make, spark: SparkSession) -> None:
    output = make(
        "nr BIGINT GENERATED ALWAYS AS IDENTITY, id BIGINT,"
        " twice BIGINT GENERATED ALWAYS AS (id * 2)"
    )
    rows = spark.createDataFrame([(1, 2), (2, 5)], "id long, twice long")
    with pytest.raises(TableError, match=r"generated as id \* 2, and 1 rows of the input break"):
        check(output, rows)
    check(output, rows.limit(1))
    with pytest.raises(TableError, match="the identity column nr, which numbers itself"):
        check(output, rows.selectExpr("id", "id nr"))


def test_a_constraint_on_a_column_that_is_replaced_stays(spark: SparkSession, make: Make) -> None:
    output = make("id BIGINT, gone STRING NOT NULL")
    sql = output.location.sql
    spark.sql(f"ALTER TABLE {sql} ADD CONSTRAINT c CHECK (gone <> 'completion')")
    rows = spark.createDataFrame([(1,)], "id long")
    with pytest.raises(TableError, match=r"CHECK constraint c .* on columns that are not"):
        check(tables.open_output(spark, output.location), rows, begin="overwrite")
    spark.sql(f"ALTER TABLE {sql} DROP CONSTRAINT c")
    check(tables.open_output(spark, output.location), rows, begin="overwrite")


def test_overwriting_keeps_what_a_table_is(
    spark: SparkSession, model_uri: str, tmp_path: Path
) -> None:
    source, output = Location(str(tmp_path / "in")), Location(str(tmp_path / "out"))
    spark.sql(
        f"CREATE TABLE {source.sql} (Country VARCHAR(7) COMMENT 'of the question', prompt STRING,"
        " `my note` STRING DEFAULT 'x') USING delta TBLPROPERTIES ('delta.columnMapping.mode' ="
        " 'name', 'delta.feature.allowColumnDefaults' = 'supported')"
    )
    spark.sql(f"INSERT INTO {source.sql} VALUES ('Spain', '{SPAIN}', 'a')")
    spark.sql(
        f"CREATE TABLE {output.sql} (old INT, country STRING) USING delta PARTITIONED BY (country)"
        " COMMENT 'ours' TBLPROPERTIES ('delta.columnMapping.mode' = 'name', 'team' = 'a')"
    )
    assert score(model_uri, source.text, output.text, "--mode", "overwrite") == 0
    detail = spark.sql(f"DESCRIBE DETAIL {output.sql}").head()
    assert detail["partitionColumns"] == ["Country"]
    assert (detail["description"], detail["properties"]["team"]) == ("ours", "a")
    rows = spark.read.format("delta").load(output.text)
    assert [row["completion"] for row in rows.collect()] == [MADRID]
    assert [(field.name, field.metadata.get("comment")) for field in rows.schema][:3] == [
        ("Country", "of the question"),
        ("prompt", None),
        ("my note", None),
    ]


def test_a_layout_that_cannot_be_kept_is_said(make: Make, spark: SparkSession) -> None:
    output = make("id BIGINT, `a.b` STRING", "CLUSTER BY (id)")
    columns = StructType([*spark.range(1).schema, *ADDED])
    assert constraints.dropped_layout(None, columns) == ()
    (note,) = constraints.dropped_layout(output, columns)
    (advice,) = re.findall(r"ALTER TABLE .*\)", note)
    location = output.location
    spark.range(1).write.format("delta").mode("overwrite").save(location.path)
    assert tables.open_output(spark, location).detail.clustering == ()
    spark.sql(advice)
    assert tables.open_output(spark, location).detail.clustering == ("id",)


def test_a_partition_column_that_is_gone(make: Make, spark: SparkSession) -> None:
    output = make("id BIGINT, day DATE, hour INT", "PARTITIONED BY (day, hour)")
    columns = StructType([*spark.createDataFrame([], "DAY date, hour int").schema, *ADDED])
    assert constraints.kept_partitions(output, columns) == ("DAY", "hour")
    assert constraints.dropped_layout(output, columns) == ()
    columns = StructType([*spark.createDataFrame([], "day date").schema, *ADDED])
    assert constraints.kept_partitions(output, columns) == ()
    (note,) = constraints.dropped_layout(output, columns)
    assert "ends the partitioning of" in note


def test_a_table_that_this_delta_cannot_write(make: Make, spark: SparkSession) -> None:
    location = make("id BIGINT").location
    log = Path(location.path) / "_delta_log"
    for checksum in log.glob("*.crc"):
        checksum.unlink()
    [commit] = log.glob("*.json")
    actions = [json.loads(line) for line in commit.read_text().splitlines()]
    features = {"readerFeatures": [], "writerFeatures": ["appendOnly", "ofTheFuture"]}
    for action in actions:
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    commit.write_text("\n".join(json.dumps(action) for action in actions))
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    with pytest.raises(TableError, match=r"cannot be written by .* \(it uses ofTheFuture\)"):
        tables.open_output(spark, location)


@pytest.mark.skipif(before("4.0"), reason="Spark has no collations")
def test_columns_that_delta_does_not_store(spark: SparkSession) -> None:
    rows = spark.sql(
        "select 1 id, interval '1' day span, array(interval '1' day) spans, 'a' collate utf8_lcase"
        " text, array(struct('a' x, map('b', 1.5D) y)) fine, named_struct('a b', 1) spaced"
    )
    for name in ("span", "spans", "text"):
        with pytest.raises(TableError, match=f"does not store column '{name}', which is"):
            tables.check_types(rows, rows.select(name).schema)
    tables.check_types(rows, rows.select("id", "fine").schema)
    assert [field.name for field in tables.refused_names(rows.schema)] == ["spaced"]
