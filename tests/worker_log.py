"""Reading what phi3_batch logs in Spark's Python workers."""

from pathlib import Path

# on the workers' PYTHONPATH, with a file named by WORKER_LOG, it writes down what is logged there
WORKER_SITE = Path(__file__).resolve().parent / "worker_site"


def engine_loads(worker_log: Path) -> list[str]:
    """Process ids of the workers that loaded an engine, one for each load."""
    if not worker_log.exists():
        return []
    lines = worker_log.read_text().splitlines()
    return [line.split()[0] for line in lines if line.split()[1:2] == ["loaded"]]
