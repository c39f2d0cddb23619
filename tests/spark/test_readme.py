"""The examples of the README and the tutorial, run as they stand there."""

import re
import shlex
from pathlib import Path
from typing import Any

import mlflow
import pytest
from pyspark.sql import SparkSession

from phi3_batch.cli import main
from phi3_batch.scoring.start import delta_package
from tests.conftest import REPOSITORY, SAMPLE_DATA, Sample
from tests.spark.conftest import before

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
CLUSTER = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")


def python_in(page: str) -> str:
    """A page's one example in Python."""
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return str(example)


def commands_in(page: str) -> list[list[str]]:
    """The arguments of its commands about the embedded model."""
    lines = re.findall(r"^phi3-batch (.*sample_data.*)$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture
def checkout(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which sample_data lies, and what is written is thrown away."""
    (tmp_path / "sample_data").symlink_to(SAMPLE_DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands(spark: SparkSession, checkout: Path, samples: list[Sample]) -> None:
    commands = commands_in(README)
    assert len(commands) == 2
    for command in commands:
        assert main(command) == 0
    rows = spark.read.format("delta").load(str(checkout / "completions")).collect()
    assert {row["id"]: row["completion"] for row in rows} == {
        sample.id: sample.answer for sample in samples
    }


def test_the_tutorial_s_commands(checkout: Path) -> None:
    commands = commands_in(TUTORIAL)
    assert [command[0] for command in commands] == [
        "log",
        "plan",
        "score",
        "verify",
        "log",
        "score",
        "promote",
    ]
    for command in commands:
        assert main(command) == 0, command


def test_the_python_example(spark: SparkSession, checkout: Path, samples: list[Sample]) -> None:
    example = python_in(README)
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
    exec(python_in(TUTORIAL), {})
    said = re.findall(r"^# (.*)$", python_in(TUTORIAL), re.MULTILINE)
    assert len(said) == 3
    assert capsys.readouterr().out.splitlines()[-3:] == said


class _Shown(list):
    def __iadd__(self, value: object) -> "_Shown":
        self.append(value)
        return self


@pytest.mark.skipif(before("4.2"), reason="the page shows the newest")
def test_the_packages_of_spark_submit() -> None:
    assert f"--packages {delta_package()} " in CLUSTER
