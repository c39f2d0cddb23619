"""The engines that there are, and which one runs a model.

What was said when the model was logged holds, unless the machine that runs it says otherwise.
"""

import logging
import os
from collections.abc import Sequence, Set
from itertools import pairwise

from phi3_batch.contract import ENGINE_VARIABLE
from phi3_batch.engines.base import Engine
from phi3_batch.engines.native.spec import NATIVE
from phi3_batch.engines.onnxruntime.spec import ONNXRUNTIME_GENAI
from phi3_batch.engines.ov.spec import OPENVINO
from phi3_batch.engines.spec import EngineSpec, Folder
from phi3_batch.engines.torch.spec import TRANSFORMERS
from phi3_batch.errors import EngineError, InvalidParameterError
from phi3_batch.machine import processor_flags
from phi3_batch.model_files import Checkpoint, Manifest, ModelFolder
from phi3_batch.words import first_line

ONNX_ENGINES: tuple[EngineSpec[ModelFolder], ...] = (NATIVE, OPENVINO, ONNXRUNTIME_GENAI)
CHECKPOINT_ENGINES: tuple[EngineSpec[Checkpoint], ...] = (TRANSFORMERS,)

AUTO = "auto"
CHOICES = (AUTO, *(spec.name for spec in ONNX_ENGINES))

_logger = logging.getLogger(__name__)


def check_choice(value: str, where: str = "engine") -> str:
    """An engine's name, as it was given.

    Args:
        value: the name.
        where: it was given, for the message.

    Raises:
        InvalidParameterError: there is no such engine.
    """
    if value not in CHOICES:
        raise InvalidParameterError(f"{where} must be one of {', '.join(CHOICES)}, not {value!r}")
    return value


def choose(logged: str) -> str:
    """The choice that holds here: this machine's (PHI3_BATCH_ENGINE), or that of the logged model.

    Raises:
        InvalidParameterError: the environment variable names no engine.
    """
    value = os.environ.get(ENGINE_VARIABLE)
    return check_choice(value, ENGINE_VARIABLE) if value else check_choice(logged)


def memory_bytes(folder: ModelFolder | Checkpoint, tokens: int, choice: str = AUTO) -> int:
    """About what a process takes at its peak that runs a model, by the engine that will run it.

    Args:
        folder: the model.
        tokens: of prompt and answer of the longest request.
        choice: of the engine, for a build.
    """
    if isinstance(folder, Checkpoint):
        return _find(CHECKPOINT_ENGINES, folder).memory_bytes(folder, tokens)
    return _find(_chosen(choice), folder).memory_bytes(folder, tokens)


def create(
    folder: ModelFolder | Checkpoint, manifest: Manifest, choice: str, *, chooses_tokens: bool
) -> Engine:
    """Load a model by the first engine that can.

    Args:
        folder: the model.
        manifest: the digests of its files.
        choice: of the engine, for a build.
        chooses_tokens: whether it has to be able to.

    Raises:
        EngineError: none can; what the last one said.
        EnvironmentProblemError: torch or transformers is missing.
    """
    if isinstance(folder, Checkpoint):
        return _create(CHECKPOINT_ENGINES, folder, manifest)
    specs = [spec for spec in _chosen(choice) if spec.chooses_tokens or not chooses_tokens]
    if not specs:
        raise EngineError(
            f"{choice} chooses tokens by itself, so choices, json_schema, regex, logprobs,"
            " repetition_penalty, min_tokens and logit_bias need another engine: set"
            f" {ENGINE_VARIABLE} to auto"
        )
    return _create(specs, folder, manifest)


def fastest(choice: str = AUTO) -> EngineSpec[ModelFolder]:
    """What a choice comes to on this machine, for a build that every engine can run."""
    return _chosen(choice)[0]


def _chosen(choice: str) -> Sequence[EngineSpec[ModelFolder]]:
    """The engines that a choice leaves, the fastest on this machine first."""
    if choice != AUTO:
        return [spec for spec in ONNX_ENGINES if spec.name == choice]
    if _native_is_fastest(processor_flags()):
        return ONNX_ENGINES
    return sorted(ONNX_ENGINES, key=lambda spec: spec is not OPENVINO)


def _native_is_fastest(flags: Set[str]) -> bool:
    """Whether a processor is of a kind on which that was measured.

    Of the others, OpenVINO has code for AMX, and for what came between AVX2 and AVX-512 VNNI.
    """
    if "avx512_vnni" in flags:
        return "amx_tile" not in flags
    return "avx2" in flags and not flags & {"avx512f", "avx_vnni"}


def _find(specs: Sequence[EngineSpec[Folder]], folder: Folder) -> EngineSpec[Folder]:
    """The one that will run a folder, as far as that can be told without loading it."""
    return next((spec for spec in specs if not spec.find_obstacle(folder)), specs[-1])


def _create(specs: Sequence[EngineSpec[Folder]], folder: Folder, manifest: Manifest) -> Engine:
    for spec, following in pairwise(specs):
        try:
            return spec.create(folder, manifest)
        except EngineError as error:
            _logger.warning("%s runs the model: %s", following.name, first_line(error))
    return specs[-1].create(folder, manifest)
