"""The engine of onnxruntime-genai before it is loaded: how much memory it takes.

The figures were measured on builds of 4 and 8 layers of Phi-3-mini's shapes and on the embedded
model, on 2 cores. They are peaks of one process.
"""

from phi3_batch.engines.base import Engine
from phi3_batch.engines.onnxruntime.kv_capacity import cache_capacity
from phi3_batch.engines.spec import ONNX_PROCESS_BYTES, EngineSpec
from phi3_batch.errors import EngineError
from phi3_batch.model_files import Manifest, ModelFolder
from phi3_batch.model_files.dimensions import FLOAT32_BYTES
from phi3_batch.model_files.manifest import total_bytes


def memory_bytes(folder: ModelFolder, tokens: int) -> int:
    """About what a process takes at most that runs a build.

    Args:
        folder: the build, whose weights are in memory as they are in the files.
        tokens: of prompt and answer of the longest request, as if all of them were its prompt's;
            none has more than the context.
    """
    tokens, dimensions = min(tokens, folder.context_length), folder.dimensions
    cache = cache_capacity(tokens, folder.context_length) * dimensions.cache_bytes_per_token
    # while a prompt is read, its logits twice, and what a layer works with
    per_token = (2 * folder.vocab_size + 12 * dimensions.hidden_size) * FLOAT32_BYTES
    files_bytes = total_bytes(folder.path, folder.files)
    return ONNX_PROCESS_BYTES + files_bytes + cache + tokens * per_token


def create(folder: ModelFolder, manifest: Manifest) -> Engine:
    """Load a build.

    Raises:
        EngineError: onnxruntime-genai cannot be imported, or cannot load it.
    """
    # here, so that a model can be logged and looked at where no runtime is installed
    try:
        from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
    except ImportError as error:
        raise EngineError(f"onnxruntime-genai cannot be imported ({error})") from error
    return OnnxRuntimeGenAIEngine(folder)


ONNXRUNTIME_GENAI = EngineSpec(
    name="onnxruntime-genai",
    packages=("onnxruntime", "onnxruntime-genai"),
    machines=(),
    refuse=lambda folder: None,  # it is the reference: what it cannot run, it says when it loads
    memory_bytes=memory_bytes,
    create=create,
)
