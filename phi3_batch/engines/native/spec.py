"""The native engine before it is loaded: what it refuses, and how much memory it takes.

The figures were measured on builds of 8 and 32 layers of Phi-3-mini's shapes and on the embedded
model, on 2 cores. They are peaks of one process.
"""

from pathlib import Path

from phi3_batch.engines.base import Engine
from phi3_batch.engines.kv_budget import useful_bytes
from phi3_batch.engines.spec import ONNX_PROCESS_BYTES, EngineSpec
from phi3_batch.errors import EngineError, UnsupportedModelError
from phi3_batch.model_files import Manifest, ModelFolder
from phi3_batch.model_files.dimensions import FLOAT32_BYTES
from phi3_batch.model_files.manifest import total_bytes

KV_VALUE_BYTES = 2  # float16
LIBRARY = Path(__file__).with_name("libphi3.so")


def refuse(folder: ModelFolder) -> str | None:
    """Why the library cannot compute a build."""
    try:
        from phi3_batch.engines.native.graph import Graph, read_plan
    except ImportError as error:
        return f"onnx cannot be imported ({error})"
    try:
        read_plan(Graph(folder), folder)
    except UnsupportedModelError as error:
        return str(error)
    return None


def memory_bytes(folder: ModelFolder, tokens: int) -> int:
    """About what a process takes that runs a build with rows enough at a time.

    With less memory it runs fewer rows at a time; with more, up to 65,536 tokens of them. The
    weights are mapped: processes of a machine that run the same build have them once, and of an
    embedding in float32 what is used.

    Args:
        folder: the build.
        tokens: of prompt and answer of the longest request; none has more than the context.
    """
    cache = useful_bytes(folder, KV_VALUE_BYTES, tokens)
    embedding = folder.vocab_size * folder.dimensions.hidden_size * FLOAT32_BYTES
    weights = max(0, total_bytes(folder.path, folder.files) - embedding)
    return ONNX_PROCESS_BYTES + weights + cache


def create(folder: ModelFolder, manifest: Manifest) -> Engine:
    """Load a build, packed or from the machine's cache of packed ones.

    Raises:
        UnsupportedModelError: the library cannot compute it, or is not there.
        EngineError: the library cannot be loaded, or cannot load the build.
    """
    if obstacle := NATIVE.find_missing():
        raise UnsupportedModelError(obstacle)
    # here, so that a model can be logged and looked at where no runtime is installed
    from phi3_batch.engines.native.cache import packed_model
    from phi3_batch.engines.native.engine import NativeEngine

    try:
        return NativeEngine(folder, packed_model(folder, manifest))
    except OSError as error:
        raise EngineError(f"the native engine cannot load {folder.path}: {error}") from error


NATIVE = EngineSpec(
    name="native",
    packages=("onnx",),
    libraries=(LIBRARY,),
    machines=("x86_64",),  # it was tried on no other
    refuse=refuse,
    memory_bytes=memory_bytes,
    create=create,
)
