"""Folders of this user alone, in which a process leaves what later ones rely on.

Whoever can write to such a folder, or put another in its place, could plant weights there, or the
word that damaged ones are sound. So each is looked at on its whole way from the root, as OpenSSH
looks at its keys (StrictModes), and one that others can reach is not used.
"""

import functools
import grp
import logging
import os
import pwd
import stat
from pathlib import Path

import platformdirs

_logger = logging.getLogger(__name__)


def places(name: str) -> list[Path]:
    """Where a folder may be, the best first: Spark's workers often have no home to write to."""
    own = f"phi3_batch-{name}-{os.getuid()}"
    # of a container, the first may lie in folders of another user; and not by tempfile, which in
    # Spark's workers has a folder that ends with their executor
    roots = dict.fromkeys([os.environ.get("TMPDIR", "/tmp"), "/var/tmp"])  # noqa: S108
    temporary = [Path(root, own) for root in roots]
    return [platformdirs.user_cache_path("phi3_batch") / name, *temporary]


def open_private(place: Path) -> Path:
    """The folder at a place, made if it is not there, by a name without symbolic links.

    Raises:
        PermissionError: others can write to it or replace it; one line of the log says so.
        OSError: it cannot be made.
    """
    place = place.absolute()
    _make(place)
    folder = place.resolve()
    for path in dict.fromkeys([*place.parents, place, *folder.parents, folder]):
        _check(path, is_last=path == folder)
    return folder


def belongs_to_us(path: Path) -> bool:
    """Whether a file or folder is there, is this user's, and is no symbolic link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)


def _make(folder: Path) -> None:
    # not by parents=True, which would leave the folders above it open to a group
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise


def _check(path: Path, *, is_last: bool) -> None:
    status = path.lstat()
    # who owns the root folder can change anything; in a container, that is not always root
    trusted = {os.getuid()} if is_last else {0, os.getuid(), Path("/").stat().st_uid}
    if status.st_uid not in trusted:
        _refuse(path, "it belongs to another user")
    mode = status.st_mode
    open_to_others = mode & stat.S_IWOTH or (
        mode & stat.S_IWGRP and not _has_this_user_alone(status.st_gid)
    )
    # in a sticky folder, as /tmp is, nobody else can rename or remove what is ours
    is_safe = stat.S_ISLNK(mode) or (mode & stat.S_ISVTX and not is_last)
    if open_to_others and not is_safe:
        _refuse(path, "others can write to it")


def _has_this_user_alone(group_id: int) -> bool:
    """Whether a group is the one that many systems give each user, for a umask of 002."""
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(group_id)
    except KeyError:
        return False
    is_own = group_id == user.pw_gid and group.gr_name == user.pw_name
    return is_own and set(group.gr_mem) <= {user.pw_name}


def _refuse(path: Path, reason: str) -> None:
    said = f"nothing is kept in {path}, for {reason}"
    _warn_once(f"{said}; XDG_CACHE_HOME or TMPDIR names another place")
    raise PermissionError(said)


@functools.cache
def _warn_once(line: str) -> None:
    _logger.warning(line)
