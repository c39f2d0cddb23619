"""Temporary files of this process in a folder of its own, which outlives no process for long.

MLflow copies a model into the temporary folder, some gigabytes, and removes it when its process
ends; a process that is killed removes nothing, and a Spark worker never does. Here a folder has an
owner, which holds a lock in it as long as it lives, and whoever needs one next removes those whose
owner is gone. Folders without our lock are never touched.
"""

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "phi3-batch-tmp-"
_LOCK = ".phi3-batch-lock"

_owned: dict[Path, FileLock] = {}  # a lock that is forgotten is released
_own_folders: dict[int, Path] = {}  # by process: a fork needs another one
_guard = threading.Lock()
_users, _tempdir_before = 0, tempfile.tempdir


def process_folder() -> Path:
    """The folder of this process, made when it is first asked for, removed when it ends.

    Raises:
        OSError: there is no place for it.
    """
    with _guard:
        folder = _own_folders.get(os.getpid())
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            atexit.register(_remove_own, folder, os.getpid())
            own(folder)
            remove_left_over(folder.parent)
            _own_folders[os.getpid()] = folder
        return folder


@contextlib.contextmanager
def temporary_files_here() -> Iterator[Path]:
    """Have :mod:`tempfile`, and with it MLflow, use the folder of this process.

    Raises:
        OSError: there is no place for it.
    """
    global _users, _tempdir_before
    folder = process_folder()
    with _guard:
        if _users == 0:
            _tempdir_before, tempfile.tempdir = tempfile.tempdir, str(folder)
        _users += 1
    try:
        yield folder
    finally:
        with _guard:
            _users -= 1
            if _users == 0:
                tempfile.tempdir = _tempdir_before


def own(folder: Path) -> None:
    """Let a folder be removed, by whoever comes next, when this process has ended.

    On a disk without locks nothing is marked, and nothing will be removed.
    """
    if folder in _owned:
        return
    # locked before it has its name, so that nobody ever sees it unlocked
    lock = FileLock(folder / f"{_LOCK}.new", thread_local=False)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire(timeout=0)
        (folder / f"{_LOCK}.new").rename(folder / _LOCK)
        _owned[folder] = lock


def remove_left_over(place: Path) -> None:
    """Remove the folders in a place whose owners are gone: this user's, and no links."""
    for file in place.glob(f"*/{_LOCK}"):
        folder = file.parent
        with contextlib.suppress(OSError, NotImplementedError, Timeout):  # it has an owner
            is_ours = folder.lstat().st_uid == os.getuid() and stat.S_ISDIR(folder.lstat().st_mode)
            if is_ours and folder not in _owned and not file.is_symlink():
                with FileLock(file, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _remove_own(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork that ends before its parent
        shutil.rmtree(folder, ignore_errors=True)
