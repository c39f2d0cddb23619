"""What a logged model carries: its weights or where they are, their digests, and its engine."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mlflow.pyfunc.model import PythonModelContext

from phi3_batch import scratch
from phi3_batch.engines import Engine, choose, registry, this_process
from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Checkpoint, Manifest, ModelFolder
from phi3_batch.model_files.folder import TEMPLATE_FILES
from phi3_batch.models.reference import Reference
from phi3_batch.words import first_line

MODEL_ARTIFACT = "phi3-mini-onnx"
CHECKPOINT_ARTIFACT = "checkpoint"
MANIFEST_ARTIFACT = "manifest"
ENGINE_ARTIFACT = "engine"
REFERENCE_ARTIFACT = "reference"  # in place of the weights

_T = TypeVar("_T")
# MLflow's class that unpacks models on executors, and knows where to
_DISTRIBUTOR = "_SparkDirectoryDistributor"


@dataclass(frozen=True, slots=True)
class LoggedWeights:
    """The weights of a logged model, checked and not read yet.

    Attributes:
        folder: where they are.
        manifest: their digests, as taken when the model was logged.
        engine_choice: what runs them, as said then; "auto" for a checkpoint, which has one engine.
    """

    folder: ModelFolder | Checkpoint
    manifest: Manifest
    engine_choice: str

    @classmethod
    def open(
        cls,
        context: PythonModelContext,
        artifact: str,
        open_folder: Callable[[str], ModelFolder | Checkpoint],
    ) -> "LoggedWeights":
        """Check a model's files against what was logged; seconds for gigabytes, once on a machine.

        Args:
            context: where MLflow has put the model's artifacts.
            artifact: the one that is the folder of the weights.
            open_folder: opens it.

        Raises:
            InvalidModelError: a file is missing or damaged.
            InvalidParameterError: the environment asks for an engine that there is not.
        """
        manifest = _read(context, MANIFEST_ARTIFACT, Manifest.from_json)
        if REFERENCE_ARTIFACT in context.artifacts:
            path = str(_read(context, REFERENCE_ARTIFACT, Reference).fetch(manifest))
        else:
            path = context.artifacts[artifact]
            _own_if_unpacked(Path(path))
        manifest.check(Path(path))  # first: what is damaged may look like anything
        has_engine = ENGINE_ARTIFACT in context.artifacts
        logged = _read(context, ENGINE_ARTIFACT, str) if has_engine else "auto"
        choose(logged)  # now, so that a job hears of a wrong name before its first row
        folder = open_folder(path)
        unknown = set(folder.files) - set(manifest.files)
        if unknown <= set(TEMPLATE_FILES) and manifest.files.keys().isdisjoint(TEMPLATE_FILES):
            # logged without a chat template, or by a release that did not read it
            known = tuple(name for name in folder.files if name not in unknown)
            folder = replace(folder, files=known)
        elif unknown:
            raise InvalidModelError(
                f"{folder.path / min(unknown)} was not there when the model was logged: the copy is"
                " damaged, copy it again, or log the model again"
            )
        return cls(folder, manifest, logged)

    def engine(self, *, chooses_tokens: bool) -> Engine:
        """The engine of this process, which reads the weights when it is first asked for.

        Args:
            chooses_tokens: whether it has to be able to.

        Raises:
            EngineError: no runtime can load the model.
        """
        return this_process.engine(
            self.folder, self.manifest, self.engine_choice, chooses_tokens=chooses_tokens
        )

    def memory_bytes(self, tokens: int) -> int:
        """About what a process takes that runs the model, for requests of so many tokens."""
        return registry.memory_bytes(self.folder, tokens, choose(self.engine_choice))


def _read(context: PythonModelContext, artifact: str, parse: Callable[[str], _T]) -> _T:
    file = Path(context.artifacts[artifact])
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidModelError(
            f"{file} is damaged ({first_line(error)}): copy it again, or log the model again"
        ) from error


def _own_if_unpacked(path: Path) -> None:
    """Have a worker's copy of the model removed by the next worker, once this one is gone.

    On a cluster MLflow unpacks the model for each worker process, and never removes it.
    """
    distributor = getattr(sys.modules.get("mlflow.utils._spark_utils"), _DISTRIBUTOR, None)
    for unpacked in getattr(distributor, "_extracted_dir_paths", {}).values():
        if path.is_relative_to(unpacked):
            scratch.own(Path(unpacked))
            scratch.remove_left_over(Path(unpacked).parent)
