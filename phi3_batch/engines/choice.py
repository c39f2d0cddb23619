"""Which runtime runs an ONNX build: what was said when it was logged, or what a machine says."""

import os
from typing import Literal, get_args

from phi3_batch.contract import ENGINE_VARIABLE
from phi3_batch.errors import InvalidParameterError

EngineChoice = Literal["auto", "openvino", "onnxruntime-genai"]


def check_choice(value: str, where: str = "engine") -> EngineChoice:
    """An engine's name, as it was given.

    Args:
        value: the name.
        where: it was given, for the message.

    Raises:
        InvalidParameterError: there is no such engine.
    """
    for name in get_args(EngineChoice):
        if value == name:
            checked: EngineChoice = name
            return checked
    raise InvalidParameterError(
        f"{where} must be one of {', '.join(get_args(EngineChoice))}, not {value!r}"
    )


def choose(logged: str) -> EngineChoice:
    """The choice that holds here: this machine's, or else that of the logged model.

    Raises:
        InvalidParameterError: the environment variable names no engine.
    """
    value = os.environ.get(ENGINE_VARIABLE)
    return check_choice(value, ENGINE_VARIABLE) if value else check_choice(logged)
