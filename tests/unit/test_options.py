"""Options: from Python as from the command line, and each with its help."""

from dataclasses import fields
from typing import Any

import pytest

from phi3_batch.cli import main
from phi3_batch.errors import InvalidParameterError
from phi3_batch.options import GENERATION, JobOptions
from phi3_batch.scoring.job.asked import ScoreOptions

TABLES = {"model": "models:/m/1", "input": "in", "output": "out"}


def asked(**options: Any) -> ScoreOptions:
    return ScoreOptions.of(JobOptions(**TABLES, **options))


@pytest.mark.parametrize(
    ("of_cli", "of_python"),
    [
        ({"keep": "a,`b,c`"}, {"keep": ["a", "b,c"]}),
        ({"keep": ""}, {"keep": []}),
        ({"ids": "a"}, {"ids": ("a",)}),
        ({"param": ["n=col:a", "stop=col:b"]}, {"param": {"n": "a", "stop": "b"}}),
        ({"stop": ["x"], "max_tokens": None}, {"stop": ("x",)}),
    ],
)
def test_python_says_the_same_as_the_command_line(
    of_cli: dict[str, Any], of_python: dict[str, Any]
) -> None:
    assert asked(**of_cli) == asked(**of_python)


def test_what_is_not_given_is_the_model_s_business() -> None:
    assert asked().generation == asked(stop=[]).generation == {}
    assert asked(temperature=0.0, n=2).generation == {"temperature": 0.0, "n": 2}
    assert set(GENERATION) < {each.name for each in fields(JobOptions)}


def test_lists_are_looked_at_too() -> None:
    with pytest.raises(InvalidParameterError, match="--id names column 'a' twice"):
        asked(ids=["a", "a"])
    with pytest.raises(InvalidParameterError, match="no column's name"):
        asked(keep=["a", " "])


def test_each_option_has_a_help_text_that_is_a_sentence() -> None:
    for each in fields(JobOptions):
        text = each.metadata["help"].text
        assert text.endswith("."), each.name
        assert text[0].isupper() or text[0].isdigit(), each.name


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    name, _, version = capsys.readouterr().out.strip().partition(" ")
    assert name == "phi3-batch"
    assert version[0].isdigit()
