"""One engine per process, however often MLflow loads the model.

``mlflow.pyfunc.spark_udf`` loads the model again in every task; the weights, gigabytes of them,
must not be. The engine lives here, in a module that is imported once, and is found again by the
digest of its weights: MLflow may have put the same files in another folder by then.
"""

import logging
import threading
import time

from phi3_batch.engines.base import Engine
from phi3_batch.engines.checkpoint import Checkpoint, require_torch
from phi3_batch.engines.files import Manifest
from phi3_batch.engines.model_folder import ModelFolder
from phi3_batch.errors import EngineError

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_loaded: tuple[str, Engine] | None = None


def get_engine(folder: ModelFolder | Checkpoint, manifest: Manifest) -> Engine:
    """The engine of this process for a model, loaded when it is not the one loaded last.

    Only the last one is kept: two copies of the weights would be one too many on an executor.

    Args:
        folder: where the model's files are now. An ONNX build is run by onnxruntime-genai, a
            checkpoint by transformers.
        manifest: the digests of its files, as taken when the model was logged.

    Raises:
        EngineError: the runtime cannot load the model, or is missing.
        EnvironmentProblemError: torch or transformers is missing.
    """
    global _loaded
    with _lock:
        if _loaded is None or _loaded[0] != manifest.digest:
            _loaded = None  # let go of the old weights before the new ones are read
            started = time.monotonic()
            engine = _create_engine(folder)
            _logger.info("loaded %s in %.1f s", engine.name, time.monotonic() - started)
            _loaded = manifest.digest, engine
        return _loaded[1]


def _create_engine(folder: ModelFolder | Checkpoint) -> Engine:
    # imported here, so that a model can be logged and looked at where no runtime is installed
    if isinstance(folder, Checkpoint):
        require_torch()
        from phi3_batch.engines.transformers import TransformersEngine

        return TransformersEngine(folder)
    try:
        from phi3_batch.engines.onnxruntime_genai import OnnxRuntimeGenAIEngine
    except ImportError as error:
        raise EngineError(f"onnxruntime-genai cannot be imported ({error})") from error
    return OnnxRuntimeGenAIEngine(folder)
