"""Folders that are costly to make, kept on local disk for every process of the machine.

A folder is made once, under a lock, and appears whole or not at all. Each time it is used it is
compared with the checksums that were taken when it was made: weights with a wrong byte in them
would give wrong answers, and nothing else would say so. They guard against disks, not against
people: who can write here can write checksums too. So they need not be cryptographic, which would
take eight times as long. Against people there is :mod:`user_folder`.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

from phi3_batch.user_folder import belongs_to_us, open_private

_logger = logging.getLogger(__name__)

_CHECKSUMS = "checksums.json"
_PART = ".part"  # of a folder's name while it is made
_LOCK = ".lock"
# longer than it takes to convert the largest Phi-3 on a slow disk
LOCK_TIMEOUT_S = 600.0


class FolderCache:
    """A folder of folders, of a limited size.

    Args:
        root: where they are; made when it is not there, for this user alone.
        limit_bytes: what all of them may take together; those unused for longest go first.
        lock_timeout_s: how long others may take to make one.
    """

    def __init__(
        self, root: Path, limit_bytes: int, lock_timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        self._root = root
        self._limit_bytes = limit_bytes
        self._lock_timeout_s = lock_timeout_s

    def get(self, key: str, make: Callable[[Path], None], size_bytes: int) -> Path:
        """The folder of a key, made if it is not there or damaged.

        Args:
            key: what the folder's content follows from, fit for a file name.
            make: writes the content into the empty folder it is given.
            size_bytes: about what that takes.

        Raises:
            OSError: the disk is full or read-only, or others can write to the place.
        """
        self._root = open_private(self._root)
        folder = self._root / key
        if _is_sound(folder):
            return folder
        try:
            with FileLock(self._root / _LOCK, timeout=self._lock_timeout_s):
                if not _is_sound(folder):  # nobody else has made it meanwhile
                    self._make(folder, make, size_bytes)
        except (Timeout, NotImplementedError) as error:  # the latter of disks without locks
            raise OSError(f"{self._root} cannot be locked") from error
        return folder

    def _make(self, folder: Path, make: Callable[[Path], None], size_bytes: int) -> None:
        for left_over in self._root.glob(f"*{_PART}"):  # of a process that was killed
            _remove(left_over)
        if folder.exists():
            _logger.warning("%s is damaged, and is made again", folder)
            _remove(folder)
        self._evict(size_bytes)
        # the folder must not take the last of a disk that others write to
        if shutil.disk_usage(self._root).free < 2 * size_bytes:
            raise OSError(f"{self._root} has no room for {size_bytes / 1e9:.1f} GB")
        part = folder.with_name(folder.name + _PART)
        try:
            part.mkdir()
            make(part)
            made = _checksums(part, sorted(file.name for file in part.iterdir()))
            (part / _CHECKSUMS).write_text(json.dumps(made), encoding="utf-8")
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _evict(self, needed_bytes: int) -> None:
        """Remove what was not used for longest, until there is room below the limit."""
        folders = [file.parent for file in self._root.glob(f"*/{_CHECKSUMS}")]
        folders.sort(key=lambda folder: (folder / _CHECKSUMS).stat().st_mtime)
        sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
        total = sum(sizes) + needed_bytes
        for folder, size in zip(folders, sizes, strict=True):
            if total <= self._limit_bytes:
                break
            _remove(folder)  # a process that has mapped its files keeps them
            total -= size


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # which none of ours is; rmtree's own words are lost in Python 3.13
        raise OSError(f"{folder} is a symbolic link: remove it")
    shutil.rmtree(folder)


def _is_sound(folder: Path) -> bool:
    """Whether a folder is there and as it was made; one that is counts as used."""
    checksums = folder / _CHECKSUMS
    try:
        made = json.loads(checksums.read_text(encoding="utf-8"))
        # others may have left it there before the place was this user's alone
        if not all(map(belongs_to_us, [folder, checksums, *(folder / name for name in made)])):
            return False
        if _checksums(folder, made) != made:
            return False
    except (OSError, ValueError):
        return False
    if os.access(checksums, os.W_OK):
        os.utime(checksums)
    return True


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """XXH3 of files, by their names; takes as long as it takes to read them."""
    checksums = {}
    for name in names:
        with (folder / name).open("rb") as file:
            checksums[name] = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    return checksums
