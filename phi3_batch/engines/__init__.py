"""Engines: token ids and parameters in, completions out. One adapter for each runtime."""

from phi3_batch.engines.base import Engine
from phi3_batch.engines.cache import get_engine
from phi3_batch.engines.model_folder import ModelFolder

__all__ = ["Engine", "ModelFolder", "get_engine"]
