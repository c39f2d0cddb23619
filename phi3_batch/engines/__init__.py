"""Engines: token ids and parameters in, completions out. A package for each runtime."""

from phi3_batch.engines.base import Engine
from phi3_batch.engines.process import this_process
from phi3_batch.engines.registry import check_choice, choose

__all__ = ["Engine", "check_choice", "choose", "this_process"]
