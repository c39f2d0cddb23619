"""Whether this machine can do the work: each part is tried, not only looked at."""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from phi3_batch.environment import check_java, check_python
from phi3_batch.errors import EnvironmentProblemError, Phi3BatchError

_PACKAGES = ("pyspark", "delta-spark", "mlflow", "onnxruntime-genai", "pandas", "pyarrow")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# resident size of Phi-3-mini's int4 build while it runs, weights and KV cache (see the README)
_PHI3_MINI_GIB = 4


class Finding(NamedTuple):
    """What one check found."""

    name: str
    ok: bool
    text: str


def check_all() -> Iterator[Finding]:
    """Run every check, yielding each finding as it is known; none of them raises."""
    yield _try("python", check_python)
    java = _try("java", lambda: str(check_java()))
    yield java
    yield _try("packages", _packages)
    yield _try("processors", lambda: f"{len(os.sched_getaffinity(0))} for this process")
    yield _try("memory", _memory)
    yield _try("model store", _model_store)
    yield _try("delta", _delta) if java.ok else Finding("delta", False, "not tried without Java")


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Phi3BatchError as problem:
        return Finding(name, False, str(problem))


def _packages() -> str:
    try:
        return ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    except PackageNotFoundError as missing:
        raise EnvironmentProblemError(f"{missing.name} is not installed") from missing


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _CGROUP_LIMIT.exists() and (limit := _CGROUP_LIMIT.read_text().strip()) != "max":
        total = min(total, int(limit))
    gib = total / 2**30
    if gib < _PHI3_MINI_GIB:
        raise EnvironmentProblemError(
            f"{gib:.1f} GiB: too little for Phi-3-mini, which takes about {_PHI3_MINI_GIB} GiB"
        )
    return f"{gib:.1f} GiB"


def _model_store() -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        mlflow.MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise EnvironmentProblemError(
            f"{mlflow.get_registry_uri()} does not answer ({reason}): set MLFLOW_TRACKING_URI"
        ) from error
    return f"{mlflow.get_registry_uri()} answers"


def _delta() -> str:
    from phi3_batch.scoring.session import delta_package, get_session

    get_session()
    return f"Spark runs with {delta_package()}"
