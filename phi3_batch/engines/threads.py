"""How many threads an engine may use."""

import os

from phi3_batch.errors import EngineError
from phi3_batch.machine import processors


def thread_count() -> int:
    """Threads for one engine: the process's processors, or fewer where OMP_NUM_THREADS says so.

    Spark sets OMP_NUM_THREADS to ``spark.task.cpus`` in its Python workers, a number of slots: a
    container may have fewer processors, and threads that share one wait for each other.

    Raises:
        EngineError: OMP_NUM_THREADS is set to something else than a positive number.
    """
    setting = os.environ.get("OMP_NUM_THREADS")
    if setting is None:
        return processors()
    outermost = setting.split(",")[0].strip()  # OpenMP takes a list, one number a nesting level
    if not outermost.isdecimal() or int(outermost) == 0:
        raise EngineError(f"OMP_NUM_THREADS must be a positive number, not {setting!r}")
    return min(int(outermost), processors())
