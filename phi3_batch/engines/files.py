"""The files that make a model: which they are, whether they are whole, and their digests."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phi3_batch.errors import InvalidModelError

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

    def check_sizes(self, path: Path) -> None:
        """Compare a folder with the manifest by size, which is quick and finds copies cut short.

        Raises:
            InvalidModelError: a file is missing or has another size.
        """
        for name, (size, _) in self.files.items():
            require_file(path, name)
            found = (path / name).stat().st_size
            if found != size:
                raise InvalidModelError(
                    f"{path / name} has {found} bytes, {size} when it was logged:"
                    " the copy is damaged"
                )

    def to_json(self) -> str:
        """The form in which it travels with a logged model."""
        return json.dumps(self.files, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what :meth:`to_json` wrote."""
        return cls({name: (size, sha256) for name, (size, sha256) in json.loads(text).items()})


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
