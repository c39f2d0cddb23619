"""One engine per process, however often MLflow loads the model.

``mlflow.pyfunc.spark_udf`` loads the model again in every task; the weights, gigabytes of them,
must not be. The engine lives here, in a module that is imported once, and is found again by the
digest of its weights: MLflow may have put the same files in another folder by then.
"""

import logging
import platform
import threading
import time

from phi3_batch.contract import tell_loaded_engine
from phi3_batch.engines.base import Engine, first_line
from phi3_batch.engines.checkpoint import Checkpoint, require_torch
from phi3_batch.engines.choice import EngineChoice, choose
from phi3_batch.engines.files import Manifest
from phi3_batch.engines.model_folder import ModelFolder
from phi3_batch.errors import EngineError, UnsupportedModelError

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
# by what was asked for: the weights' digest, and the choice of engine
_loaded: tuple[tuple[str, EngineChoice], Engine] | None = None


def get_engine(
    folder: ModelFolder | Checkpoint, manifest: Manifest, logged_choice: str = "auto"
) -> Engine:
    """The engine of this process for a model, loaded when it is not the one loaded last.

    Only the last one is kept: two copies of the weights would be one too many on an executor.

    Args:
        folder: where the model's files are now. A checkpoint is run by transformers, whatever the
            choice is.
        manifest: the digests of its files, as taken when the model was logged; they are compared.
        logged_choice: of the runtime for an ONNX build, unless the environment has another. "auto"
            is OpenVINO, the faster one, wherever it can run the model, and else
            onnxruntime-genai.

    Raises:
        InvalidModelError: a file is not the one of the manifest, or is written to meanwhile.
        EngineError: the runtime cannot load the model, or is missing.
        EnvironmentProblemError: torch or transformers is missing.
        InvalidParameterError: there is no such engine.
    """
    global _loaded
    choice = choose(logged_choice)
    wanted = manifest.digest, choice
    with _lock:
        if _loaded is None or _loaded[0] != wanted:
            _loaded = None  # let go of the old weights before the new ones are read
            started = time.monotonic()
            with manifest.checked(folder.path):
                engine = _create_engine(folder, manifest, choice)
            _logger.info("loaded %s in %.1f s", engine.name, time.monotonic() - started)
            _loaded = wanted, engine
            tell_loaded_engine(engine.name)
        return _loaded[1]


# Runtimes are imported below, not above, so that a model can be logged and looked at where none
# is installed.


def _create_engine(
    folder: ModelFolder | Checkpoint, manifest: Manifest, choice: EngineChoice
) -> Engine:
    if isinstance(folder, Checkpoint):
        require_torch()
        from phi3_batch.engines.transformers import TransformersEngine

        return TransformersEngine(folder)
    if choice == "onnxruntime-genai":
        return _create_onnxruntime_genai(folder)
    try:
        return _create_openvino(folder, manifest)
    except EngineError as error:
        if choice == "openvino":
            raise
        _logger.warning("onnxruntime-genai runs the model: %s", first_line(error))
    return _create_onnxruntime_genai(folder)


def _create_openvino(folder: ModelFolder, manifest: Manifest) -> Engine:
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise UnsupportedModelError(f"OpenVINO was tried on x86-64 alone, and this is {machine}")
    try:
        from phi3_batch.engines.openvino import OpenVINOEngine
        from phi3_batch.engines.openvino_cache import converted_model
    except ImportError as error:
        raise EngineError(f"OpenVINO cannot be imported ({error})") from error
    try:
        with converted_model(folder, manifest) as path:
            return OpenVINOEngine(folder, path)
    except OSError as error:
        raise EngineError(f"OpenVINO's model cannot be written: {error}") from error


def _create_onnxruntime_genai(folder: ModelFolder) -> Engine:
    try:
        from phi3_batch.engines.onnxruntime_genai import OnnxRuntimeGenAIEngine
    except ImportError as error:
        raise EngineError(f"onnxruntime-genai cannot be imported ({error})") from error
    return OnnxRuntimeGenAIEngine(folder)
