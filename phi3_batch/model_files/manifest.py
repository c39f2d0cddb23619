"""The files that make a model: which they are, whether they are whole, and their digests."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import known_files

# What tells one state of a file from another: device, inode, size, and when the content and the
# inode were last changed. The last cannot be set, so it also tells of a time that was put back.
_State = tuple[int, int, int, int, int]

# For so long a file system's clock may stand still, and a change that follows another at once
# leaves no trace in the times: of Linux's own, and of those that know times in whole seconds.
_TICK_NS = 10**8
_COARSE_TICK_NS = 2 * 10**9

_ADVICE = "copy it again, or log the model again"
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Manifest:
    """Name, size in bytes and SHA-256 of each file that makes the model."""

    files: Mapping[str, tuple[int, str]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the whole: the same for the same model, wherever it lies."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(size for size, _ in self.files.values())

    @classmethod
    def of(cls, path: Path, names: Iterable[str]) -> "Manifest":
        """Digest files of a folder; takes seconds for gigabytes."""
        files = {}
        for name in names:
            with (path / name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = (path / name).stat().st_size, sha256
        return cls(files)

    def check(self, path: Path) -> None:
        """Compare a folder with the manifest, and digest its files unless that was done before.

        Seconds for gigabytes, once on a machine: later calls find the files as they were then.

        Raises:
            InvalidModelError: a file is missing, or is not the one of the manifest.
        """
        self._check(path)

    @contextmanager
    def checked(self, path: Path) -> Iterator[None]:
        """Read in the ``with`` block what :meth:`check` has found to be whole.

        Raises:
            InvalidModelError: as of :meth:`check`; at the end, too, if a file was written to.
        """
        before = self._check(path)
        yield
        _require_unchanged(path, before, self._states(path))

    def _check(self, path: Path) -> dict[str, _State]:
        began_ns = time.time_ns()
        states = self._states(path)
        for name, (size, _) in self.files.items():
            _, _, found, _, _ = states[name]
            if found != size:
                raise InvalidModelError(
                    f"{path / name} has {found} bytes, {size} when it was logged: the copy is"
                    f" damaged, {_ADVICE}"
                )
        finding = hashlib.sha256(f"{self.digest} {sorted(states.items())}".encode()).hexdigest()
        if known_files.is_known(finding):
            return states
        for name, (_, sha256) in self.of(path, self.files).files.items():
            if sha256 != self.files[name][1]:
                raise InvalidModelError(
                    f"{path / name} is not the file that was logged (its SHA-256 is another): the"
                    f" copy is damaged, {_ADVICE}"
                )
        _require_unchanged(path, states, self._states(path))
        if all(_shows_changes(changed_ns, began_ns) for *_, changed_ns in states.values()):
            known_files.remember(finding)
        return states

    def _states(self, path: Path) -> dict[str, _State]:
        states = {}
        for name in self.files:
            require_file(path, name)
            found = (path / name).stat()
            states[name] = (
                *(found.st_dev, found.st_ino, found.st_size),
                *(found.st_mtime_ns, found.st_ctime_ns),
            )
        return states

    def to_json(self) -> str:
        """The form in which it travels with a logged model."""
        return json.dumps(self.files, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            files = json.loads(text).items()
            return cls({name: (int(size), str(sha256)) for name, (size, sha256) in files})
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from error


def _require_unchanged(
    path: Path, before: Mapping[str, _State], after: Mapping[str, _State]
) -> None:
    for name, state in before.items():
        if after[name] != state:
            raise InvalidModelError(f"{path / name} was written to while it was read: try again")


def _shows_changes(changed_ns: int, since_ns: int) -> bool:
    """Whether a file that was last changed at one time would show a change after another."""
    tick_ns = _TICK_NS if changed_ns % 10**9 else _COARSE_TICK_NS
    return changed_ns + tick_ns < since_ns


def total_bytes(path: Path, names: Iterable[str]) -> int:
    """Size of files of a folder together."""
    return sum((path / name).stat().st_size for name in names)


def require_file(path: Path, name: str) -> None:
    """Raise an InvalidModelError unless a folder has a file, with something in it."""
    file = path / name
    if not file.is_file() or file.stat().st_size == 0:
        raise InvalidModelError(
            f"{path} has no {name}, or an empty one: the build or the download is incomplete"
        )
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InvalidModelError(
                f"{file} is a git-LFS pointer, not the file: run 'git lfs pull' where it came from"
            )
