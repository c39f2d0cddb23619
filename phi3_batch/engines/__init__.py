"""Engines: token ids and parameters in, completions out. One adapter for each runtime."""

from phi3_batch.engines.base import Engine, Limits
from phi3_batch.engines.cache import get_engine
from phi3_batch.engines.checkpoint import Checkpoint
from phi3_batch.engines.choice import EngineChoice, check_choice, choose
from phi3_batch.engines.files import Manifest
from phi3_batch.engines.model_folder import ModelFolder

__all__ = [
    "Checkpoint",
    "Engine",
    "EngineChoice",
    "Limits",
    "Manifest",
    "ModelFolder",
    "check_choice",
    "choose",
    "get_engine",
]
