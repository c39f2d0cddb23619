"""The example notebook for Databricks, executed here: the same code on local Spark."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
from pyspark.sql import SparkSession

from tests.conftest import REPOSITORY, SAMPLE_DATA, TINY_MODEL, Sample

NOTEBOOK = REPOSITORY / "databricks" / "notebooks" / "example.py"


class Widgets:
    """What ``dbutils.widgets`` does of it."""

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given

    def text(self, name: str, default: str) -> None:
        assert re.match(r"main\.phi3\.\w+$|/Volumes/", default)
        assert name in self._given

    def get(self, name: str) -> str:
        return self._given[name]


def test_the_notebook_runs(
    spark: SparkSession, store: Path, samples: list[Sample], tmp_path: Path, capsys: Any
) -> None:
    source = spark.createDataFrame(
        [(sample.id, sample.prompt) for sample in samples[:12]], "id string, prompt string"
    )
    source.write.format("delta").saveAsTable("notebook_prompts")
    smoke = tmp_path / "smoke.jsonl"
    lines = (SAMPLE_DATA / "smoke.jsonl").read_text(encoding="utf-8").splitlines()
    smoke.write_text("\n".join(line for line in lines if "prompt" in json.loads(line)))
    widgets = Widgets(
        {
            "weights": str(shutil.copytree(TINY_MODEL, tmp_path / "weights")),
            "smoke": str(smoke),
            "model": "main.phi3.phi3_mini",
            "input": "spark_catalog.default.notebook_prompts",  # a name of three levels
            "output": str(tmp_path / "completions"),
        }
    )
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = text.removeprefix("# Databricks notebook source\n").split("\n# COMMAND ----------\n")
    names: dict[str, Any] = {"spark": spark, "dbutils": SimpleNamespace(widgets=widgets)}
    try:
        for cell in cells:
            exec(compile(cell, NOTEBOOK.name, "exec"), names)
    finally:
        spark.sql("DROP TABLE notebook_prompts")
    said = capsys.readouterr().out
    assert "models:/main.phi3.phi3_mini/1 is models:/main.phi3.phi3_mini@champion" in said
    assert "12 of 12 rows, errors: {}" in said
    written = spark.read.format("delta").load(str(tmp_path / "completions")).collect()
    assert {row["id"]: row["completion"] for row in written} == {
        sample.id: sample.answer for sample in samples[:12]
    }
    held = Path(mlflow.artifacts.download_artifacts("models:/main.phi3.phi3_mini/1"))
    assert not list(held.rglob("*.onnx.data"))
