"""A clock around the engines' calls, in every Python process that has this folder on its path.

Python imports this module by itself. Spark's workers are started by the JVM, and no code of the
benchmark runs in them otherwise. The seconds of each call become a line of the file ENGINE_CLOCK.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ENGINES = {
    "phi3_batch.engines.native.engine": "NativeEngine",
    "phi3_batch.engines.ov.engine": "OpenVINOEngine",
}


class ClockingFinder(MetaPathFinder):
    """Finds an engine's module as it is, and puts the clock on it when it has been run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where an engine's module is; of all others it knows nothing."""
        if name not in ENGINES:
            return None
        engine = ENGINES.pop(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None  # it is installed
        assert spec.loader is not None  # it is a file
        load = spec.loader.exec_module

        def load_and_clock(module: ModuleType) -> None:
            load(module)
            put_clock_on(getattr(module, engine))

        spec.loader.exec_module = load_and_clock  # type: ignore[method-assign]
        return spec


def put_clock_on(engine: Any) -> None:
    """Note what each call of an engine takes."""
    generate = engine.generate

    def clocked(self: Any, requests: Sequence[Any]) -> Any:
        started = time.perf_counter()
        completions = generate(self, requests)
        with Path(os.environ["ENGINE_CLOCK"]).open("a", encoding="utf-8") as clock:
            clock.write(f"{time.perf_counter() - started}\n")
        return completions

    engine.generate = clocked


sys.meta_path.insert(0, ClockingFinder())
