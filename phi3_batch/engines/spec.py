"""What the rest of the package knows of an engine before its runtime is imported."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Generic, TypeVar

from phi3_batch.engines.base import Engine
from phi3_batch.model_files import Checkpoint, Manifest, ModelFolder

Folder = TypeVar("Folder", ModelFolder, Checkpoint)

# Python with pandas, pyarrow and MLflow, and a runtime for ONNX
ONNX_PROCESS_BYTES = 300_000_000


@dataclass(frozen=True, slots=True)
class EngineSpec(Generic[Folder]):
    """An engine, for those who choose one, tell what it will take, or make it.

    Attributes:
        name: in ``--engine``, in PHI3_BATCH_ENGINE and in messages.
        packages: distributions that it imports, and that are not everywhere.
        machines: processors that there are packages for, as :func:`platform.machine` names them.
            Empty where that is all of them.
        refuse: why it cannot run a folder, as far as that can be told without loading it; None
            where nothing is known against it.
        memory_bytes: about what a process takes at its peak that runs a folder, good to a fifth;
            called with the folder, and the tokens of prompt and answer of the longest request.
        create: loads a folder; called with the digests of its files too. Raises EngineError where
            the runtime cannot, or is not there.
        libraries: files of this package that are compiled when it is installed.
        chooses_tokens: whether it can follow what needs all logits of a token: constraints,
            penalties, log-probabilities.
    """

    name: str
    packages: tuple[str, ...]
    machines: tuple[str, ...]
    refuse: Callable[[Folder], str | None]
    memory_bytes: Callable[[Folder, int], int]
    create: Callable[[Folder, Manifest], Engine]
    libraries: tuple[Path, ...] = ()
    chooses_tokens: bool = True

    def find_obstacle(self, folder: Folder) -> str | None:
        """Why it cannot run a folder on this machine; None where nothing is known against it."""
        return self.find_missing() or self.refuse(folder)

    def find_missing(self) -> str | None:
        """What it needs that this machine has not; None where all is there."""
        machine = platform.machine()
        if self.machines and machine not in self.machines:
            return f"there is no {self.name} for {machine}"
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                return f"{package} is not installed"
        for library in self.libraries:
            if not library.exists():
                return f"its {library.name} was not compiled: install phi3-batch with pip"
        return None
