"""Temporary folders of processes, and what is left of those that were killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from phi3_batch import scratch
from tests.conftest import REPOSITORY

OWNER = """
import sys, tempfile
from phi3_batch import scratch
with scratch.temporary_files_here():
    inside = tempfile.mkdtemp()
open(f"{inside}/weights", "w").write("x")
print(scratch.process_folder(), tempfile.gettempdir(), flush=True)
sys.stdin.read()
"""


class Owner:
    """A process with a folder of its own, and a copy of a model in it."""

    def __init__(self, place: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        folder, self.temporary_folder = self.process.stdout.readline().split()
        self.folder = Path(folder)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_what_a_killed_process_has_left_goes_with_the_next_one(tmp_path: Path) -> None:
    killed, living = Owner(tmp_path), Owner(tmp_path)
    assert killed.folder.parent == tmp_path == Path(killed.temporary_folder)
    assert [file.name for file in killed.folder.glob("*/*")] == ["weights"]
    killed.kill()
    others = tmp_path / "phi3-batch-tmp-of-others"  # without our lock
    others.mkdir()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(killed.folder)

    following = Owner(tmp_path)
    assert not killed.folder.exists()
    assert living.folder.exists()
    assert others.exists()
    assert (tmp_path / "elsewhere").exists()
    for owner in (living, following):
        owner.process.communicate("")
        assert not owner.folder.exists()


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write in /tmp could name any folder of ours."""
    home, place = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, place):
        folder.mkdir()
    (home / scratch._LOCK).touch()
    (place / "link").symlink_to(home)
    scratch.remove_left_over(place)
    assert (home / scratch._LOCK).exists()


def test_the_temporary_folder_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_own_folders", {})
    with scratch.temporary_files_here() as outer:
        with scratch.temporary_files_here() as inner:
            assert outer == inner == Path(tempfile.gettempdir())
        assert Path(tempfile.gettempdir()) == outer
    assert tempfile.gettempdir() == str(tmp_path)
