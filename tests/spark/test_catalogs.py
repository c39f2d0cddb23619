"""Tables of another catalog than the session's, by names of three parts."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from phi3_batch.cli import main
from phi3_batch.scoring import compat
from tests.spark.conftest import before
from tests.spark.test_score import MADRID, SPAIN, score

pytestmark = pytest.mark.skipif(before("4.0"), reason="a table is replaced by its path")


def find_tables(spark: SparkSession) -> SparkSession:
    """Have a session's catalog `second` keep tables where its own one does, as Delta's needs it."""
    with suppress(Py4JJavaError):  # which makes the catalog, with nothing behind it
        spark.sql("USE second")
    catalogs = spark._jsparkSession.sessionState().catalogManager()
    catalogs.catalog("second").setDelegateCatalog(catalogs.catalog("spark_catalog"))
    spark.sql("USE spark_catalog.default")
    return spark


@pytest.fixture
def second(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A schema in a catalog that was configured after Spark had started."""
    setting = "spark.sql.catalog.second"
    spark.conf.set(setting, "org.apache.spark.sql.delta.catalog.DeltaCatalog")
    new_session = compat.new_session
    monkeypatch.setattr(compat, "new_session", lambda of: find_tables(new_session(of)))
    find_tables(spark).sql("CREATE SCHEMA second.sales")
    yield "second.sales"
    spark.sql("DROP SCHEMA second.sales CASCADE")
    spark.conf.unset(setting)


def test_tables_of_a_second_catalog(
    spark: SparkSession, model_uri: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = f"{second}.prompts", f"{second}.`answers`"
    asked = spark.createDataFrame([(1, SPAIN), (2, None)], "id long, prompt string")
    asked.write.format("delta").saveAsTable(source)
    assert score(model_uri, source, output) == 0
    replaced = ("--mode", "overwrite", "--id", "id", "--delete-removed")
    assert score(model_uri, source, output, *replaced) == 0
    spark.sql(f"DELETE FROM {source} WHERE id = 2")
    spark.sql(f"INSERT INTO {source} VALUES (3, '{SPAIN}')")
    assert score(model_uri, source, output, *replaced[2:]) == 0
    assert "1 new, 0 changed, 0 failed before, 1 unchanged, 1 removed" in capsys.readouterr().out
    assert main(["verify", "--input", source, "--output", output]) == 0
    rows = spark.table(output).collect()
    assert {row["id"]: row["completion"] for row in rows} == {1: MADRID, 3: MADRID}


def test_a_table_that_ends_with_the_session_is_refused(
    model_uri: str,
    second: str,
    write_prompts: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_prompts([SPAIN])
    for name in ("answers", "default.answers", "spark_catalog.default.answers"):
        assert score(model_uri, source, name) == 1
        assert "this Spark session forgets its tables when it ends" in capsys.readouterr().err
