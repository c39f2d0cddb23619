"""Advice of ``log`` and ``build``, followed to the letter: the command that was refused works then.

Advice about options of a job is followed in spark/test_advice.py, doctor's in unit/test_doctor.py.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3_batch.build import check_options
from phi3_batch.cli import main
from phi3_batch.model_files import Checkpoint
from tests.conftest import TINY_CHECKPOINT, TINY_MODEL

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; returns its error line, or nothing where it went well."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.lower().startswith("error: ")]
        assert len(errors) == (code != 0), err
        return errors[0] if errors else ""

    return run


def test_names_of_models(run: Run) -> None:
    log = ("log", "prompt", TINY_MODEL)
    said = run(*log, "--alias", "best")
    assert "an alias needs a registered model name" in said
    assert run(*log, "--alias", "best", "--register", "advised") == ""

    said = run(*log, "--register", "advised", "--alias", "v1")
    assert "takes letters, digits, _ and -" in said
    assert run(*log, "--register", "advised", "--alias", "v-1_a") == ""

    said = run(*log, "--name", "a/b.c")
    for refused in said.rpartition("none of them of ")[2].split():
        assert run(*log, "--name", f"a{refused}b") != ""
    assert run(*log, "--name", "a_b c") == ""


def test_the_folder_of_a_repository_of_builds(run: Run, tmp_path: Path) -> None:
    build = shutil.copytree(TINY_MODEL, tmp_path / "cpu_and_mobile" / "cpu-int4-block-32")
    said = run("log", "prompt", tmp_path)
    meant = re.search(r"did you mean (.*)\?$", said)
    assert meant is not None, said
    assert Path(meant[1]) == build
    assert run("log", "prompt", meant[1]) == ""


def test_files_that_are_incomplete(run: Run, tmp_path: Path) -> None:
    build = shutil.copytree(TINY_MODEL, tmp_path / "build")
    [data] = build.glob("*.data")
    data.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "run 'git lfs pull' where it came from" in run("log", "prompt", build)
    data.unlink()
    assert "the build or the download is incomplete" in run("log", "prompt", build)
    shutil.copy(TINY_MODEL / data.name, data)  # what either of them leads to
    assert run("log", "prompt", build) == ""


def test_a_model_of_another_chat_format(run: Run, with_chatml: Callable[[Path], Path]) -> None:
    folder = with_chatml(TINY_MODEL)
    said = run("log", "chat", folder)
    advised = re.search(r"\(phi3-batch (log prompt)\)", said)
    assert advised is not None, said
    assert run(*advised[1].split(), folder) == ""
    assert "put the model's own chat_template.jinja there" in said
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role + m.content }}<|im_end|>{% endfor %}"
    )
    assert run("log", "chat", folder) == ""


def test_an_adapter_beside_the_weights(run: Run, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint")
    (checkpoint / "adapter_config.json").write_text("{}")
    said = run("log", "pipeline", checkpoint)
    assert "merge it into them" in said
    (checkpoint / said.rpartition("or remove ")[2]).unlink()
    Checkpoint.open(checkpoint)  # as the command does; to log it takes torch, and 15 s


def test_a_build(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "give the folder of a Phi-3 checkpoint" in run("build", "nowhere", "new")
    assert "give a new folder for the build" in run("build", TINY_CHECKPOINT, "taken")
    said = run("build", TINY_CHECKPOINT, "new", "--algorithm", "best")
    algorithm = re.search(r"one of (\S+), .*, (\S+?),? not ", said.replace("'", ""))
    assert algorithm is not None, said
    said = run("build", TINY_CHECKPOINT, "new", "--block-size", "33")
    size = re.search(r"one of (\d+), ", said)
    assert size is not None, said
    # the whole build takes half a minute, and is in engines/test_build.py
    check_options("new", algorithm=algorithm[1], block_size=int(size[1]))
