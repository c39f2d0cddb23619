"""Input columns of whatever names: those of ours, and those that are awkward to write."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from phi3_batch.cli import main
from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.scoring.delta.incremental import check_ids, resolve_ids
from phi3_batch.scoring.rows.columns import values_digest
from tests.spark.conftest import before
from tests.spark.test_score import MADRID, OUTPUT_COLUMNS, SPAIN, score

Read = Callable[[str], DataFrame]

# Every name that a job gives to a column of its own, seen or hidden.
OUR_NAMES = [
    *(name.upper() for name in OUTPUT_COLUMNS if name != "request_id"),
    "request_id",
    "response",
    "__phi3_batch_Request_id",
    "__phi3_batch_refusal",
    "__phi3_batch_bucket",
    "__phi3_batch_copy",
    "__phi3_batch_inputs",
    "__phi3_batch_result",
    "__phi3_batch_there",
    "__phi3_batch_failed",
    "__rows_in",
    "__rows_out",
    "__asked",
    "__answered",
]


def verify(source: str, output: str) -> int:
    return main(["verify", "--input", source, "--output", output])


@pytest.fixture(scope="module")
def taken(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of a row whose columns have all of our names, and a prompt in each of them."""
    path = str(tmp_path_factory.mktemp("taken") / "prompts")
    columns = ", ".join(f"`{name}` string" for name in OUR_NAMES)
    row = (1, SPAIN, *[SPAIN] * len(OUR_NAMES))
    rows = spark.createDataFrame([row], f"id long, prompt string, {columns}")
    rows.write.format("delta").save(path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("--keep", "id,prompt,response,__rows_in,__asked"),
        ("--keep", "__rows_out,id", "--id", "__rows_out,ID", "--column", "COMPLETION"),
    ],
)
def test_input_columns_with_our_names_do_no_harm(
    options: tuple[str, ...], taken: str, model_uri: str, read: Read, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    assert score(model_uri, taken, output, *options) == 0
    assert [row["completion"] for row in read(output).collect()] == [MADRID]
    assert read(output).columns == [*options[1].split(","), *OUTPUT_COLUMNS]
    assert verify(taken, output) == 0


def test_columns_that_are_kept_may_not_have_our_names(
    taken: str, model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*options: str) -> str:
        assert score(model_uri, taken, str(tmp_path / "out"), *options) == 1
        return capsys.readouterr().err.splitlines()[-1]

    taken_name = "error: input column 'COMPLETION' has the name of an output column: rename it, or"
    advice = "leave it out with --keep id,prompt,response,__rows_in,__rows_out,__asked,__answered"
    assert said() == f"{taken_name} {advice}"
    assert said("--keep", "COMPLETION") == f"{taken_name} leave it out with --keep ''"
    assert "'__phi3_batch_bucket' has the name" in said("--keep", "__phi3_batch_BUCKET")
    hidden = "input column '__phi3_batch_copy' has a name that the job needs for itself"
    assert hidden in said("--keep", "id", "--column", "__phi3_batch_copy")
    assert said("--keep", "id,ID") == "error: --keep names ID twice"
    assert said("--keep", "`id") == (
        "error: --keep `id cannot be read (unexpected end of data); a name with a comma in it goes"
        " between backticks"
    )


def test_chats_made_of_columns_with_our_names(
    spark: SparkSession, chat_uri: str, read: Read, tmp_path: Path
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    row = spark.sql("select 'Spain' Error, 30 run_id, 'a' request_id, 1 MODEL")
    row.write.format("delta").save(source)
    template = ("--user-template", "What is the capital of {error}?", "--keep", "")
    param = ("--param", "max_tokens=col:run_id", "--keep-response")
    assert score(chat_uri, source, output, *template, *param) == 0
    assert [row["completion"] for row in read(output).collect()] == [MADRID]
    assert verify(source, output) == 0
    # an output is the input of another job
    again = str(tmp_path / "again")
    assert score(chat_uri, output, again, "--user-template", "{completion}", "--keep", "") == 0
    assert verify(output, again) == 0


def test_ids_of_any_name_and_type_and_kept_columns_that_change(
    spark: SparkSession,
    model_uri: str,
    read: Read,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    rows = spark.sql(
        f"""select * from values (double('NaN'), 1), (-0.0D, 2), (1.5D, 3), (2D, 4) as (`A.b`, n)
        join (select '{SPAIN}' prompt)"""
    ).selectExpr(
        "`A.b`",
        "named_struct('day', timestamp'2026-01-01 00:00:00.000001', 'x', cast(null as string)) At",
        "prompt",
        "n",
        "timestamp_micros(n) seen",
        "map('n', n) parts",
    )
    rows.write.format("delta").save(source)
    by_id = ("--id", "a.B,at")
    assert score(model_uri, source, output, *by_id) == 0
    before = {row["n"]: row for row in read(output).collect()}

    table = f"delta.`{source}`"
    for change in ("n = 10 WHERE n = 1", "seen = timestamp_micros(7) WHERE n = 2"):
        spark.sql(f"UPDATE {table} SET {change}")
    spark.sql(f"UPDATE {table} SET parts = map('n', 9), prompt = 'Hello' WHERE n = 3")
    spark.sql(f"UPDATE delta.`{output}` SET request_id = NULL WHERE n = 4")
    capsys.readouterr()
    assert verify(source, output) == 1
    assert "4 in, 4 out, 0 missing, 0 doubled, 0 orphaned, 4 out of date" in capsys.readouterr().out

    assert score(model_uri, source, output, *by_id, "--delete-removed") == 0
    said = capsys.readouterr().out
    assert "0 new, 2 changed, 0 failed before, 0 unchanged, 0 removed, 2 updated in kept" in said
    after = {row["n"]: row for row in read(output).collect()}
    assert (after[10]["completion"], after[10]["run_id"]) == (MADRID, before[1]["run_id"])
    assert after[2]["seen"] != before[2]["seen"]
    assert after[2]["scored_at"] == before[2]["scored_at"]
    assert (after[3]["parts"], after[3]["prompt"]) == ({"n": 9}, "Hello")
    assert after[4]["request_id"] == before[4]["request_id"]
    assert verify(source, output) == 0
    assert score(model_uri, source, output, *by_id) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.skipif(before("4.0"), reason="Spark has no variants")
def test_ids_that_cannot_be_gone_by(spark: SparkSession) -> None:
    kept = spark.sql("select 1 id, map(1, 2) m, array(parse_json('1')) v, struct(1 a) s").schema
    assert resolve_ids(kept, ("S", "ID")) == ("s", "id")
    with pytest.raises(TableError, match="--id m is map<int,int>, which Spark cannot compare"):
        resolve_ids(kept, ("m",))
    with pytest.raises(TableError, match="--id V is array<variant>"):
        resolve_ids(kept, ("V",))
    with pytest.raises(InvalidParameterError, match="--id names ID twice"):
        resolve_ids(kept, ("id", "ID"))
    ticked = spark.sql("select 1 id, 2 `a``b`").schema
    with pytest.raises(TableError, match="like 'a`b': leave it out with --keep id"):
        resolve_ids(ticked, ("id",))
    nulls = spark.sql("select * from values (1, null), (null, null), (1, 1) as (a, `b.c`)")
    with pytest.raises(TableError, match=r"2 rows of t have no a or no b\.c: an id names a row"):
        check_ids(nulls, ("a", "b.c"), "t")


def test_a_digest_of_values_tells_all_of_them_apart(spark: SparkSession) -> None:
    rows = spark.sql(
        "select * from values (null, 'a', array(1, null)), ('a', null, array(null, 1)),"
        " ('a', null, null), (null, 'a', array(1)), ('a', '', array(1)), ('', 'a', array(1))"
        " as (x, y, z)"
    )
    assert rows.select(values_digest(rows.schema)).distinct().count() == rows.count()
