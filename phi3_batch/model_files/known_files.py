"""What this machine has found out about files once, and need not find out again.

A finding is an empty file in a folder of this user's, by a name that follows from what was found.
So it is there whole or not at all, whoever writes at the same time.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from phi3_batch import user_folder

_LIMIT = 1000  # findings; those unused for longest go first

# for processes that can leave nothing on disk
_found: set[str] = set()


def is_known(finding: str) -> bool:
    """Whether a finding was remembered, by this process or an earlier one of this user."""
    if finding in _found:
        return True
    for folder in _folders():
        with contextlib.suppress(OSError):
            if user_folder.belongs_to_us(folder / finding):
                os.utime(folder / finding)  # it was used now
                _found.add(finding)
                return True
    return False


def remember(finding: str) -> None:
    """Keep a finding for later processes, where there is a place for it.

    Args:
        finding: fit for a file name.
    """
    _found.add(finding)
    for folder in _folders():
        with contextlib.suppress(OSError):  # a full disk, or another process that tidies up too
            (folder / finding).touch(mode=0o600)
            oldest = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)[:-_LIMIT]
            for file in oldest:
                file.unlink()
            return


def _folders() -> Iterator[Path]:
    for place in user_folder.places("known-files"):
        with contextlib.suppress(OSError):
            yield user_folder.open_private(place)
