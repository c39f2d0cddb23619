"""The random model as OpenVINO reads it, converted once by the product's own converter."""

from pathlib import Path

from random_phi3 import HERE

from phi3_batch.engines import ModelFolder
from phi3_batch.engines.openvino import write_model
from phi3_batch.engines.openvino_graph import CONVERTER_VERSION, convert

CONVERTED = HERE / ".models" / f"phi3-mini-8-layers-openvino-{CONVERTER_VERSION}"
PACKED = CONVERTED.with_name(f"{CONVERTED.name}-packed")


def openvino_model(folder: ModelFolder, *, packed: bool = False) -> Path:
    """The folder that openvino_genai loads, made at the first call.

    ``packed`` as the product's converter has it: then only the product can run it.
    """
    converted = PACKED if packed else CONVERTED
    if not converted.exists():
        part = converted.with_suffix(".part")
        part.mkdir(exist_ok=True)
        write_model(convert(folder, packed=packed), folder, part)
        part.rename(converted)
    return converted
