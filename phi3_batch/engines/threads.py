"""How many threads an engine may use."""

import os

from phi3_batch.errors import EngineError


def thread_count() -> int:
    """Threads for one engine: OMP_NUM_THREADS where it is set, else the process's processors.

    Spark sets OMP_NUM_THREADS to ``spark.task.cpus`` in its Python workers.

    Raises:
        EngineError: OMP_NUM_THREADS is set to something else than a positive number.
    """
    setting = os.environ.get("OMP_NUM_THREADS")
    if setting is None:
        return len(os.sched_getaffinity(0))
    outermost = setting.split(",")[0].strip()  # OpenMP takes a list, one number a nesting level
    if not outermost.isdecimal() or int(outermost) == 0:
        raise EngineError(f"OMP_NUM_THREADS must be a positive number, not {setting!r}")
    return int(outermost)
