"""A model as OpenVINO reads it, converted once by the product's own converter."""

from pathlib import Path

from random_phi3 import HERE

from phi3_batch.engines.ov.engine import write_model
from phi3_batch.engines.ov.graph import CONVERTER_VERSION, convert
from phi3_batch.engines.ov.int4_kernel import Instructions
from phi3_batch.model_files import ModelFolder


def openvino_model(folder: ModelFolder, instructions: Instructions | None = None) -> Path:
    """The folder that openvino_genai loads, made at the first call.

    With ``instructions`` as the product's converter has it: then only the product can run it.
    """
    name = f"{folder.path.name}-openvino-{CONVERTER_VERSION}"
    converted = HERE / ".models" / (f"{name}-{instructions.name}" if instructions else name)
    if not converted.exists():
        part = converted.with_suffix(".part")
        part.mkdir(exist_ok=True)
        write_model(convert(folder, instructions), folder, part)
        part.rename(converted)
    return converted
