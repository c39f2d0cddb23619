"""The random model as OpenVINO reads it, converted once by the product's own converter."""

from pathlib import Path

from random_phi3 import HERE

from phi3_batch.engines import ModelFolder
from phi3_batch.engines.openvino import write_model
from phi3_batch.engines.openvino_graph import CONVERTER_VERSION, convert

CONVERTED = HERE / ".models" / f"phi3-mini-8-layers-openvino-{CONVERTER_VERSION}"


def openvino_model(folder: ModelFolder) -> Path:
    """The folder that openvino_genai loads, made at the first call."""
    if not CONVERTED.exists():
        part = CONVERTED.with_suffix(".part")
        part.mkdir(exist_ok=True)
        write_model(convert(folder), folder, part)
        part.rename(CONVERTED)
    return CONVERTED
