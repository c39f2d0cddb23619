"""One engine per process, however often MLflow loads the model.

``mlflow.pyfunc.spark_udf`` loads the model again in every task; the weights, gigabytes of them,
must not be. The engine lives here, in a module that is imported once, and is found again by the
digest of its weights: MLflow may have put the same files in another folder by then.
"""

import logging
import threading
import time

from phi3_batch.contract import tell_loaded_engine
from phi3_batch.engines import registry
from phi3_batch.engines.base import Engine
from phi3_batch.model_files import Checkpoint, Manifest, ModelFolder

_logger = logging.getLogger(__name__)


class Process:
    """What a process keeps from one call to the next: the engine that was loaded last.

    Two copies of the weights would be one too many on an executor.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # by what was asked for: the weights' digest, and the choice of engine
        self._loaded: tuple[tuple[str, str], Engine] | None = None

    def engine(
        self,
        folder: ModelFolder | Checkpoint,
        manifest: Manifest,
        logged_choice: str = registry.AUTO,
        *,
        chooses_tokens: bool = False,
    ) -> Engine:
        """The engine for a model, loaded when it is not the one that was loaded last.

        Args:
            folder: where the model's files are now. A checkpoint is run by transformers, whatever
                the choice is.
            manifest: the digests of its files, as taken when the model was logged; they are
                compared.
            logged_choice: of the runtime for an ONNX build, unless the environment has another.
                "auto" is the fastest on this machine that can run the model.
            chooses_tokens: whether it has to be able to.

        Raises:
            InvalidModelError: a file is not the one of the manifest, or is written to meanwhile.
            EngineError: the runtime cannot load the model, or is missing.
            EnvironmentProblemError: torch or transformers is missing.
            InvalidParameterError: there is no such engine.
        """
        choice = registry.choose(logged_choice)
        wanted = manifest.digest, choice
        with self._lock:
            loaded = self._loaded
            can = loaded and (loaded[1].chooses_tokens or not chooses_tokens)
            if loaded is None or loaded[0] != wanted or not can:
                # let go of the old weights before the new ones are read
                loaded = self._loaded = None
                started = time.monotonic()
                with manifest.checked(folder.path):
                    engine = registry.create(
                        folder, manifest, choice, chooses_tokens=chooses_tokens
                    )
                _logger.info("loaded %s in %.1f s", engine.name, time.monotonic() - started)
                self._loaded = wanted, engine
                tell_loaded_engine(engine.name)
                return engine
            return loaded[1]

    def reset(self) -> None:
        """Let go of the engine."""
        with self._lock:
            self._loaded = None


this_process = Process()
