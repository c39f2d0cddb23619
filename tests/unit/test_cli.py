"""What the command line writes, and in how many pieces."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phi3_batch.cli import main
from phi3_batch.cli.console import print_field
from phi3_batch.scoring import session
from tests.conftest import REPOSITORY


class Writes(io.StringIO):
    """A stream that remembers what it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_an_error_is_one_write_which_no_line_of_another_process_can_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Spark's JVM and its workers have the same stderr
    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["build", str(tmp_path / "[red]none[/]"), str(tmp_path / "out")]) == 1
    (last,) = [piece for piece in stderr.pieces if piece.startswith("error:")]
    assert last.startswith(f"error: no folder {tmp_path}/[red]none[/]: give the folder")
    assert last.endswith("\n")


def test_a_field_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Writes()
    monkeypatch.setattr(sys, "stdout", stdout)
    print_field("rows", "5 [bold]")
    assert [piece for piece in stdout.pieces if piece] == ["rows        5 [bold]\n"]


def test_a_jvm_that_dies_between_two_questions_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get_session() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(session, "get_session", get_session)
    options = ["--model", "models:/phi3/1", "--input", "in", "--output", "out"]
    assert main(["score", *options]) == 1
    (line,) = [piece for piece in stderr.pieces if piece.startswith("error:")]
    assert line.startswith("error: Spark's driver JVM is gone (killed, or out of memory:")


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (PermissionError(13, "Permission denied", "/out"), "/out may not be read or written by"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(24, "Too many open files"), "too many files are open: raise the limit"),
        (OSError(30, "Read-only file system", "/out"), "/out is on a file system that is read-onl"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    refused: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_session() -> None:
        raise refused

    stderr = Writes()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(session, "get_session", get_session)
    options = ["--model", "models:/phi3/1", "--input", "in", "--output", "out"]
    assert main(["score", *options]) == 1
    (line,) = [piece for piece in stderr.pieces if piece.startswith("error:")]
    assert line.startswith(f"error: {said}")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_who_has_gone_ends_the_process_quietly(stream: str) -> None:
    """As ``| head`` does."""
    reading, writing = os.pipe()
    os.close(reading)
    code = """
import sys
from types import SimpleNamespace
from phi3_batch.cli import console
from phi3_batch.scoring.job.run import Progress

try:
    with sys.modules["phi3_batch.cli.score"]._display(SimpleNamespace(counts_tokens=True)) as show:
        show(Progress(rows=1, rows_done=0, requests_left=1))
except KeyboardInterrupt:
    console.err.print("interrupted: nobody reads this")
    sys.exit(console.UNREAD)
console.print_field("table", "nobody reads this")
print("not reached", file=sys.stderr)
"""
    others = {"stdout", "stderr"} - {stream}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        text=True,
        **{stream: writing, **dict.fromkeys(others, subprocess.PIPE)},  # type: ignore[call-overload]
    )
    os.close(writing)
    assert done.returncode == 141
    assert (done.stdout or "") + (done.stderr or "") == (
        "scoring: 0 of 1 rows\n" if stream == "stdout" else ""
    )
