"""The local session that jobs make for themselves."""

import re
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession


def artifact(jar: str) -> str:
    """A jar's name without its version."""
    return re.sub(r"-\d.*", "", jar)


def test_delta_lake_comes_without_what_spark_has(spark: SparkSession) -> None:
    sparks = {artifact(jar.name) for jar in Path(pyspark.__file__).parent.glob("jars/*.jar")}
    # Ivy names them group_artifact-version.jar
    fetched = [Path(jar).name.partition("_") for jar in spark.conf.get("spark.jars").split(",")]
    assert "io.delta" in {group for group, _, _ in fetched}
    assert "hadoop-client-api" in sparks
    assert not {artifact(name) for _, _, name in fetched} & sparks
