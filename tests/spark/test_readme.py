"""The README's examples, run as they stand there."""

import re
import shlex
from pathlib import Path
from typing import Any

import mlflow
import pytest
from pyspark.sql import SparkSession

import phi3_batch
from phi3_batch.cli import main
from phi3_batch.scoring.session import delta_package
from tests.conftest import REPOSITORY, SAMPLE_DATA, Sample

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which sample_data lies, and what is written is thrown away."""
    (tmp_path / "sample_data").symlink_to(SAMPLE_DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands(spark: SparkSession, checkout: Path, samples: list[Sample]) -> None:
    commands = re.findall(r"^phi3-batch .*sample_data.*$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    rows = spark.read.format("delta").load(str(checkout / "completions")).collect()
    assert {row["id"]: row["completion"] for row in rows} == {
        sample.id: sample.answer for sample in samples
    }


def test_the_python_example(spark: SparkSession, checkout: Path, samples: list[Sample]) -> None:
    example = PYTHON[0]
    prompts = spark.createDataFrame([(sample.prompt,) for sample in samples[:3]], "prompt string")
    prompts.createOrReplaceTempView("prompts")
    # the example's last expressions are what a notebook would show
    shown = re.sub(
        r"^(mlflow\.pyfunc\.load_model|spark\.table)", r"shown += \1", example, flags=re.M
    )
    names: dict[str, Any] = {"spark": spark, "shown": _Shown()}
    exec(shown, names)
    predicted, scored = names["shown"]
    assert str(predicted) in README
    assert [row["completion"] for row in scored.collect()] == [
        sample.answer for sample in samples[:3]
    ]
    spark.catalog.dropTempView("prompts")
    mlflow.end_run()


def test_the_chat_example_prints_what_it_says(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(PYTHON[1], {"mlflow": mlflow, "phi3_batch": phi3_batch})
    said = re.findall(r"^# (.*)$", PYTHON[1], re.MULTILINE)
    assert len(said) == 3
    assert capsys.readouterr().out.splitlines()[-3:] == said


class _Shown(list):
    def __iadd__(self, value: object) -> "_Shown":
        self.append(value)
        return self


def test_the_packages_of_spark_submit() -> None:
    assert f"--packages {delta_package()} " in README
