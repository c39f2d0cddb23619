"""Weights that a logged model refers to: fetched once on a machine, checked, and shared there.

The logged model has their digests and where they are, in place of gigabytes that MLflow and Spark
would copy to each process.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow

from phi3_batch.errors import EnvironmentProblemError, InvalidModelError
from phi3_batch.folder_cache import FolderCache
from phi3_batch.model_files import Manifest
from phi3_batch.user_folder import places
from phi3_batch.words import first_line

# four of Phi-3-mini's size
_LIMIT_BYTES = 12 * 10**9
# what the machine's other processes wait while one of them fetches
_LOCK_TIMEOUT_S = 3600
_PIECE_BYTES = 16 * 2**20
_STAGING = "fetching-"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where weights are.

    Attributes:
        uri: a folder: a path, or any URI that MLflow fetches artifacts from.
    """

    uri: str

    @classmethod
    def to(cls, uri: str) -> "Reference":
        """The same from everywhere: a path is made absolute."""
        return cls(uri if urlsplit(uri).scheme else str(Path(uri).absolute()))

    @property
    def _folder(self) -> Path | None:
        """Where it is a path."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("", "file"):
            return None
        return Path(unquote(parts.path) if parts.scheme else self.uri)

    def check(self, logged: Path, names: Iterable[str]) -> None:
        """See that the files are there, by their names and sizes.

        Args:
            logged: the folder that is logged.
            names: of its files.

        Raises:
            InvalidModelError: they are not.
        """
        sizes = self._sizes()
        for name in names:
            size = (logged / name).stat().st_size
            if sizes.get(name) != size:
                found = f"with {sizes[name]:,} bytes" if name in sizes else "not at all"
                raise InvalidModelError(
                    f"{self.uri} has {name} {found}, and {logged} has it with {size:,}: copy the"
                    " folder there before it is logged by reference"
                )

    def fetch(self, manifest: Manifest) -> Path:
        """The weights on this machine, fetched unless they are there; one process at a time does.

        A fetch that was cut goes on, by the byte from a path and by the file from elsewhere.

        Args:
            manifest: of what was logged.

        Raises:
            InvalidModelError: a file is not there, or is not the one that was logged.
            EnvironmentProblemError: there is no room for them, or no place of this user's alone.
        """
        key = manifest.digest[:32]
        for root in places("weights"):
            make = partial(self._make, manifest, root / f"{_STAGING}{key}")
            cache = FolderCache(root, _LIMIT_BYTES, _LOCK_TIMEOUT_S)
            try:
                return cache.get(key, make, manifest.size_bytes)
            except OSError as error:
                problem = error
        raise EnvironmentProblemError(
            f"the weights at {self.uri} cannot be kept on this machine"
            f" ({problem.strerror or problem}): XDG_CACHE_HOME names another place"
        )

    def _make(self, manifest: Manifest, staging: Path, target: Path) -> None:
        for other in staging.parent.glob(f"{_STAGING}*"):  # of a fetch that was given up
            if other != staging:
                shutil.rmtree(other)
        staging.mkdir(exist_ok=True)
        for name, (size, sha256) in manifest.files.items():
            file = staging / name
            if not file.exists() or file.stat().st_size != size:
                self._get(name, file)
            with file.open("rb") as read:
                found = hashlib.file_digest(read, "sha256").hexdigest()
            if found != sha256:
                file.unlink()
                raise InvalidModelError(
                    f"{name} at {self.uri} is not the file that was logged (its SHA-256 is"
                    " another): put that one there, or log the model again"
                )
        for name in manifest.files:
            (staging / name).rename(target / name)
        staging.rmdir()

    def _get(self, name: str, file: Path) -> None:
        folder = self._folder
        if folder is None:
            self._download(name, file)
            return
        try:
            source = (folder / name).open("rb")
        except OSError as error:
            raise InvalidModelError(self._missing(name, error.strerror or str(error))) from error
        with source, file.open("ab") as target:
            if target.tell() >= (folder / name).stat().st_size:  # of another file of that name
                target.truncate(0)
            source.seek(target.tell())
            shutil.copyfileobj(source, target, _PIECE_BYTES)

    def _download(self, name: str, file: Path) -> None:
        with tempfile.TemporaryDirectory(dir=file.parent.parent, prefix=_STAGING) as scratch:
            try:
                got = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{self.uri.rstrip('/')}/{name}", dst_path=scratch
                )
            except OSError as error:
                if error.errno:  # of the disk
                    raise
                raise InvalidModelError(self._missing(name, type(error).__name__)) from error
            except Exception as error:  # of a store's own client
                raise InvalidModelError(self._missing(name, first_line(error))) from error
            Path(got).rename(file)

    def _missing(self, name: str, why: str) -> str:
        return f"{name} cannot be fetched from {self.uri}, where the weights should be: {why}"

    def _sizes(self) -> dict[str, int]:
        folder = self._folder
        if folder is not None:
            if not folder.is_dir():
                raise InvalidModelError(f"{self.uri} is no folder: copy the weights there first")
            return {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        try:
            found = mlflow.artifacts.list_artifacts(artifact_uri=self.uri)
        except Exception as error:  # of a store's own client
            raise InvalidModelError(
                f"{self.uri} cannot be listed ({first_line(error)}): copy the weights there first,"
                " and see that this machine can read them"
            ) from error
        sizes = {file.path.rpartition("/")[2]: file.file_size for file in found}
        return {name: size for name, size in sizes.items() if size is not None}  # of no folder
