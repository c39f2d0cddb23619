"""The OpenVINO engine before it is loaded: what it refuses, and how much memory it takes.

The figures were measured on builds of 4, 8 and 32 layers of Phi-3-mini's shapes and on the embedded
model, on 2 cores. They are peaks of one process.
"""

from phi3_batch.engines.base import Engine
from phi3_batch.engines.kv_budget import useful_bytes
from phi3_batch.engines.spec import ONNX_PROCESS_BYTES, EngineSpec
from phi3_batch.errors import EngineError, UnsupportedModelError
from phi3_batch.model_files import Manifest, ModelFolder
from phi3_batch.model_files.dimensions import FLOAT32_BYTES
from phi3_batch.model_files.longrope import find_switch
from phi3_batch.model_files.manifest import total_bytes

_FLOAT16_BYTES = 2


def refuse(folder: ModelFolder) -> str | None:
    """Why OpenVINO cannot run a build; its converter looks closer, and may refuse more."""
    if folder.quantization.bits != (4,):
        return "OpenVINO cannot run this model: some of its layers have weights of 8 bits"
    try:
        switch = find_switch(folder.graph)
    except UnsupportedModelError as error:
        return str(error)
    if switch is not None:
        return (
            "OpenVINO cannot run this model: its rotary embedding depends on how long a text is"
            " (LongRoPE)"
        )
    return None


def memory_bytes(folder: ModelFolder, tokens: int) -> int:
    """About what a process takes that runs a build with rows enough at a time.

    With less memory it runs fewer rows at a time; with more, up to 65,536 tokens of them. Where our
    own kernel multiplies, it takes less: the weights are in memory once, after they are converted.

    Args:
        folder: the build.
        tokens: of prompt and answer of the longest request; none has more than the context.
    """
    files_bytes = total_bytes(folder.path, folder.files)
    cache = useful_bytes(folder, _FLOAT16_BYTES, tokens)
    # weights as the file has them and as they are multiplied, which the embedding is not
    embedding = folder.vocab_size * folder.dimensions.hidden_size * FLOAT32_BYTES
    return ONNX_PROCESS_BYTES + files_bytes + max(0, files_bytes - embedding) + cache


def create(folder: ModelFolder, manifest: Manifest) -> Engine:
    """Load a build, converted or from the machine's cache of converted ones.

    Raises:
        UnsupportedModelError: it is one that cannot be converted, or no OpenVINO is there.
        EngineError: OpenVINO cannot be imported, or cannot load it.
    """
    if obstacle := OPENVINO.find_obstacle(folder):
        raise UnsupportedModelError(obstacle)
    # here, so that a model can be logged and looked at where no runtime is installed
    try:
        from phi3_batch.engines.ov.cache import converted_model
        from phi3_batch.engines.ov.engine import OpenVINOEngine
    except ImportError as error:
        raise EngineError(f"OpenVINO cannot be imported ({error})") from error
    try:
        with converted_model(folder, manifest) as path:
            return OpenVINOEngine(folder, path)
    except OSError as error:
        raise EngineError(f"OpenVINO's model cannot be written: {error}") from error


OPENVINO = EngineSpec(
    name="openvino",
    packages=("openvino-genai", "llvmlite"),
    machines=("x86_64",),  # it was tried on no other
    refuse=refuse,
    memory_bytes=memory_bytes,
    create=create,
    chooses_tokens=False,
)
