"""Advice about options, followed to the letter: the command that was refused can be planned then.

What messages advise about an output that is there is followed in test_rivals.py and
test_output_rules.py.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from phi3_batch.scoring.job import forecast
from phi3_batch.scoring.job.forecast import Forecast
from tests.spark.test_score import score

Plan = Callable[..., str]


@pytest.fixture
def plan(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
) -> Plan:
    """Plan a job over a view of one row, given in SQL; returns the error, or nothing."""
    nothing_tried = Forecast(tokens=None, pilot=None, requests=0, executors=1, cores_each=1)
    monkeypatch.setattr(forecast, "make_forecast", lambda *_, **__: nothing_tried)

    def run(row: str, model: str, *options: str, output: str = "") -> str:
        if row:
            spark.sql(f"SELECT {row}").createOrReplaceTempView("asked")
        capfd.readouterr()
        code = score(model, "asked", output or str(tmp_path / "out"), "--dry-run", *options)
        last = (capfd.readouterr().err.splitlines() or [""])[-1]
        assert code == (1 if last.startswith("error: ") else 0)
        return last if code else ""

    return run


def advised(said: str, option: str) -> tuple[str, ...]:
    """The option that a message names, with its value."""
    words = shlex.split(said[said.index(option) :])
    return words[0], words[1]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("'Hi' prompt, 1 id, 'a' Model", ()),
        ("'Hi' prompt, 1 id, 'a' `my note`", ()),
        ("'Hi' model", ("--column", "model")),  # nothing else is there
        ("'Hi' prompt, 1 id, 2 `a``b`", ("--id", "id")),
    ],
    ids=["our name", "a space", "nothing else", "a tick"],
)
def test_columns_that_are_to_be_left_out(
    row: str, options: tuple[str, ...], plan: Plan, model_uri: str
) -> None:
    said = plan(row, model_uri, *options)
    assert "leave it out with --keep" in said
    assert plan("", model_uri, *options, *advised(said, "--keep")) == ""


def test_a_column_of_text_for_a_model_of_messages(
    plan: Plan, model_uri: str, chat_uri: str
) -> None:
    said = plan("'Hi' `it's`", chat_uri, "--column", "it's")
    assert "is string, not messages: make messages of it with" in said
    assert plan("", chat_uri, *advised(said, "--user-template")) == ""
    said = plan("'Hi' `a{b`", chat_uri, "--column", "a{b")
    assert "is string, not messages: rename it, and make" in said

    said = plan("'Hi' question", chat_uri)
    assert "name another with --column, or make messages with --user-template" in said
    assert plan("", chat_uri, "--user-template", "{question}") == ""
    turns = "array(struct('user' role, 'Hi' content)) turns"
    assert "name another with --column" in plan(turns, chat_uri)
    assert plan("", chat_uri, "--column", "turns") == ""

    system = ("--system", "Be brief.")
    assert "--system needs --user-template" in plan("'Hi' question", chat_uri, *system)
    assert plan("", chat_uri, *system, "--user-template", "{question}") == ""
    assert "write {{ or }} for a brace" in plan("", chat_uri, "--user-template", "{question} {")
    assert plan("", chat_uri, "--user-template", "{question} {{") == ""

    # a model of prompts over the same folder, which is told to log it as one of chats
    said = plan("", model_uri, "--user-template", "{question}")
    assert said.endswith("log the same folder with phi3-batch log chat")
    assert "name the prompts' column with --column" in plan("", model_uri)
    assert plan("", model_uri, "--column", "question") == ""


def test_names_of_tables_where_paths_are_meant(
    plan: Plan,
    model_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_prompts: Callable[..., str],
) -> None:
    write_prompts(["Hi"], name="in")
    monkeypatch.chdir(tmp_path)
    said = plan("'Hi' prompt", model_uri, output="answers")
    assert said.endswith("give a path, such as ./answers")
    assert plan("", model_uri, output="./answers") == ""
    assert plan("", model_uri, output="answers.csv").endswith(
        "give the path of a folder or a table's name"
    )
    said = plan("", model_uri, "--input", "in")
    assert said.endswith("for the folder of that name give ./in")
    assert plan("", model_uri, "--input", "./in") == ""
    same = {"output": str(tmp_path / "in")}
    assert plan("", model_uri, "--input", "./in", **same).endswith("give another table")


def test_options_that_go_with_others(plan: Plan, model_uri: str) -> None:
    for option in ("--retry-errors", "--delete-removed"):
        assert f"{option} needs --id" in plan("'Hi' prompt, 1 id", model_uri, option)
        assert plan("", model_uri, option, "--id", "id") == ""
    limited = ("--id", "id", "--delete-removed", "--limit", "1")
    assert "give one of them" in plan("", model_uri, *limited)
    assert plan("", model_uri, *limited[:3]) == ""
    assert plan("", model_uri, *limited[:2], *limited[3:]) == ""
    assert "name other columns" in plan("'Hi' prompt, map('a', 1) id, 2 b", model_uri, "--id", "id")
    assert plan("", model_uri, "--id", "b") == ""
    columns = ("--column", "prompt", "--id", "name")
    assert plan("'Hi' prompt, 1 id", model_uri, *columns).startswith(
        "error: --id name is not among"
    )
