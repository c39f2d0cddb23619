"""Every option and argument of every command, with values that nobody should give.

Each is one line and exit code 1 or 2, before Spark starts and before anything is written. The
options are those that the commands declare: a new one without hostile values fails here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer

from phi3_batch.cli import app, main
from phi3_batch.scoring import session
from tests.conftest import SAMPLE_DATA, TINY_CHECKPOINT, TINY_MODEL

SMOKE = str(SAMPLE_DATA / "smoke.jsonl")
JOB = {"--model": "models:/phi3/1", "--input": "in", "--output": "out"}
# What each command needs besides the value that is tried.
SOUND: dict[tuple[str, ...], dict[str, str]] = {
    ("score",): JOB,
    ("plan",): JOB,
    ("verify",): {"--input": "in", "--output": "out"},
    ("promote",): {"name": "phi3", "version": "1", "--smoke": SMOKE},
    ("build",): {"checkpoint": str(TINY_CHECKPOINT), "model_dir": "new"},
    ("doctor",): {},
    ("log", "prompt"): {"model_dir": str(TINY_MODEL)},
    ("log", "chat"): {"model_dir": str(TINY_MODEL)},
    ("log", "pipeline"): {"checkpoint": str(TINY_CHECKPOINT)},
}

NO_TEXT = ["caf\udce9", "a\0b"]
NO_NAME = [*NO_TEXT, "", " ", "a\nb", "\u2028"]
NO_PATH = [*NO_NAME, "x" * 300, "x" * 5000]
NO_NUMBER = ["", " ", "many", "nan", "inf", "-inf", "1e400", "0x10", "9" * 5000]
NO_COUNT = [*NO_NUMBER, "1.5", "-1", "9" * 30]
NO_FOLDER = [*NO_PATH, "nowhere", "a_file", "a_folder", "a_file/below"]
NO_COLUMNS = [*NO_NAME, ",", "a,,b", "a,", "a,a"]
HOSTILE = {
    "model": NO_NAME,
    "input": NO_PATH,
    "output": NO_PATH,
    "column": NO_NAME,
    "user_template": [*NO_TEXT, "", "no column", "{", "}", "{}", "{{a}}", "{a!r}", "{a:>9}"],
    "system": NO_TEXT,
    "keep": [value for value in NO_COLUMNS if value],  # none is none to keep
    "ids": NO_COLUMNS,
    "limit": [*NO_COUNT, "0", str(2**31)],
    "mode": [*NO_NAME, "replace", "ERROR"],
    "max_tokens": [*NO_COUNT, "0", str(2**31)],
    "temperature": [*NO_NUMBER, "-0.5"],
    "top_p": [*NO_NUMBER, "0", "1.01", "-0.5"],
    "top_k": [*NO_COUNT, str(2**31)],
    "stop": [*NO_TEXT, ""],
    "seed": [*NO_COUNT, str(2**63)],
    "n": [*NO_COUNT, "0", "129"],
    "repetition_penalty": [*NO_NUMBER, "0", "-1"],
    "min_tokens": [*NO_COUNT, "257"],
    "logit_bias": [*NO_TEXT, "", "a", "a=", "a=b", "=1", "a=nan", "a=101", "a=-101"],
    "choices": [*NO_COLUMNS, "a, "],
    "choices_by": [*NO_NAME, "generate", "chance"],
    "json_schema": [*NO_PATH, "nowhere", "a_folder", "a_file", "a_file/below", "latin1", "deep"],
    "regex": NO_TEXT,
    "param": [*NO_NAME, "n", "n=2", "=col:", "=col:a", "n=col:"],
    "max_hours": [*NO_NUMBER, "-0.5"],
    "max_output_tokens": [*NO_COUNT, "0"],
    "report": [*NO_PATH, ".", "a_folder", "nowhere/report.html", "a_file/below", "/proc/a.html"],
    "executors": [*NO_COUNT, "0"],
    "version": [*NO_COUNT, "0"],
    "smoke": [*NO_PATH, "nowhere", "a_folder", "a_file", "a_file/below", "deep", "latin1", "empty"],
    "alias": [*NO_NAME, "latest", "V1", "two words", "a/b", "ü" * 300],
    "max_error_rate": [*NO_NUMBER, "-0.1", "1.1"],
    "algorithm": [*NO_NAME, "GPTQ", "gptq"],
    "calibration": [*NO_PATH, "nowhere", "a_folder", "a_file/below", "latin1", "empty"],
    "text": [*NO_PATH, "nowhere", "a_folder", "a_file/below", "latin1", "empty"],
    "block_size": [*NO_COUNT, "0", "33"],
    "accuracy_level": [*NO_COUNT, "5"],
    "register": [*NO_NAME, "a/b", "a:b", "x" * 5000],
    "name": [*NO_NAME, "a/b", "a:b", "x" * 5000],
    "engine": [*NO_NAME, "cuda"],
    "by_reference": [*NO_FOLDER, "no-such-store://x/y", "runs:/nowhere/weights"],
    ("build", "model_dir"): [*NO_PATH, ".", "a_file", "a_folder/..", "a_file/below", "/proc"],
    ("log", "prompt", "model_dir"): NO_FOLDER,
    ("log", "chat", "model_dir"): NO_FOLDER,
    "checkpoint": NO_FOLDER,
}


def declared() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command with each option and argument that takes a value.

    Of plan those that score has not: the others are declared once, and read by one function.
    """

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*words, name))
        for param in command.params:
            if not getattr(param, "is_flag", False):
                yield words, param

    found = list(walk(typer.main.get_command(app), ()))
    of_score = {param.name for command, param in found if command == ("score",)}
    return (case for case in found if case[0] != ("plan",) or case[1].name not in of_score)


def words_with(command: tuple[str, ...], param: Any, value: str) -> list[str]:
    """The command line with one value in place of a sound one."""
    given = SOUND[command] | {param.opts[0]: value}
    options = [f"{name}={given[name]}" for name in given if name.startswith("-")]
    arguments = [given[name] for name in given if not name.startswith("-")]
    if param.name == "alias" and command[0] == "log":
        options.append("--register=phi3")
    return [*command, *options, "--", *arguments]


@pytest.fixture
def folder(in_store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are called: with a file, a folder and some smoke files."""
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("no JSON\n")
    Path("a_folder").mkdir()
    Path("deep").write_text("[" * 100_000)
    Path("latin1").write_bytes(b'{"prompt": "caf\xe9", "contains": "x"}\n')
    Path("empty").write_text("\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "param"),
    [pytest.param(*case, id=" ".join([*case[0], case[1].opts[0]])) for case in declared()],
)
def test_hostile_values_are_one_line_before_anything_is_done(
    command: tuple[str, ...],
    param: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def get_session() -> None:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(session, "get_session", get_session)
    key = (*command, param.name)
    values: Sequence[str] = HOSTILE[key] if key in HOSTILE else HOSTILE[param.name]
    before = sorted(folder.rglob("*")), len(mlflow.search_runs(search_all_experiments=True))
    for value in values:
        code = main(words_with(command, param, value))
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.lower().startswith("error: ")]
        hints = ("Usage: ", "Try ", "looking at ", "loading ", "scoring ")
        rest = [line for line in err.splitlines() if line and not line.startswith(hints)]
        assert (code in (1, 2), errors) == (True, rest), (value[:80], code, err)
        assert len(errors) == 1, (value[:80], err)
    after = sorted(folder.rglob("*")), len(mlflow.search_runs(search_all_experiments=True))
    assert after == before
