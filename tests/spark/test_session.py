"""The local session that jobs make for themselves."""

import re
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from phi3_batch.machine import memory_bytes


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


def test_the_jvm_may_grow_to_a_quarter_of_the_machine(spark: SparkSession) -> None:
    most = spark.sparkContext._jvm.java.lang.Runtime.getRuntime().maxMemory()
    wanted = min(max(memory_bytes() / 4, 2**30), 8 * 2**30)
    assert 0.9 * wanted < most <= wanted  # Java leaves out a part that it copies into
