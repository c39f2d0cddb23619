"""What this user's processes on a machine mean to take of its memory, so that it adds up.

A process that sizes a cache by what is free would count on memory that another one has counted on
a moment before, and not touched yet. So each says what it means to take, and what of that it does
not have yet is not free to the next.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from phi3_batch.machine import available_memory_bytes, process_memory, process_start
from phi3_batch.user_folder import open_private, places

_LOCK_TIMEOUT_S = 10  # others hold it for milliseconds


def claim_memory(decide: Callable[[int], int]) -> int:
    """Claim memory for as long as this process lives; a later claim takes the place of this one.

    Where nothing can be written, claims of others are not known, nor is this one to them.

    Args:
        decide: how many bytes to claim, of so many that are free and that nobody has claimed.

    Returns:
        What was decided.
    """
    for place in places("memory"):
        try:
            folder = open_private(place)
            with FileLock(folder / ".lock", timeout=_LOCK_TIMEOUT_S):
                claimed = decide(max(0, available_memory_bytes() - _outstanding_bytes(folder)))
                pid = os.getpid()
                text = json.dumps({"start": process_start(pid), "bytes": claimed})
                _file(folder, pid).write_text(text, encoding="utf-8")
                return claimed
        except (OSError, Timeout, NotImplementedError):  # the last of disks without locks
            continue
    return decide(available_memory_bytes())


def _outstanding_bytes(folder: Path) -> int:
    """What others have claimed and do not have yet; the claims of processes that are gone go."""
    total = 0
    for file in folder.glob("*.json"):
        pid = int(file.stem)
        try:
            claim = json.loads(file.read_text(encoding="utf-8"))
            is_alive = process_start(pid) == claim["start"]
            missing = claim["bytes"] - process_memory(pid)
        except (OSError, ValueError, KeyError, TypeError):  # it ended, or was killed as it wrote
            is_alive, missing = False, 0
        if not is_alive:
            file.unlink(missing_ok=True)
        elif pid != os.getpid():
            total += max(0, missing)
    return total


def _file(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.json"
