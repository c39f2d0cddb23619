"""The OpenVINO packages, imported here and nowhere else, so that nobody is told of it.

``import openvino`` reports itself to Google Analytics by the package openvino_telemetry, and
leaves an identifier in the user's home. Where that package is missing it does neither.
"""

import sys
from typing import Any, TypeAlias

_TELEMETRY = "openvino_telemetry"

_absent = _TELEMETRY not in sys.modules  # else somebody has imported it, and it has reported
if _absent:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # so that its import fails
try:
    import openvino
    import openvino_genai
    from openvino.frontend.onnx import ConversionExtension
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig
    from openvino_genai.py_openvino_genai import GenerationHandle
finally:
    if _absent:
        del sys.modules[_TELEMETRY]

# the operators that graphs are made of, and what the package has no types for
ops = openvino.opset13
Node: TypeAlias = Any
Output: TypeAlias = Any

__all__ = [
    "ContinuousBatchingPipeline",
    "ConversionExtension",
    "GenerationConfig",
    "GenerationHandle",
    "Node",
    "Output",
    "openvino",
    "openvino_genai",
    "ops",
]
