"""Whether this machine can do the work: each part is tried, not only looked at."""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement

from phi3_batch import platforms
from phi3_batch.engines.registry import CHECKPOINT_ENGINES, ONNX_ENGINES
from phi3_batch.environment import REMOTE_VARIABLE, check_java, check_python
from phi3_batch.errors import EnvironmentProblemError, Phi3BatchError
from phi3_batch.machine import memory_bytes, processors
from phi3_batch.words import first_line

# resident size of Phi-3-mini's int4 build at most, while OpenVINO converts it: 5.4 GB, and 1.6 GB
# of KV cache for the 4,096 tokens that it has room for at least (docs/models.md)
_PHI3_MINI_GIB = 7


class Finding(NamedTuple):
    """What one check found."""

    name: str
    ok: bool
    text: str


def check_all() -> Iterator[Finding]:
    """Run every check, yielding each finding as it is known; none of them raises."""
    yield _try("python", check_python)
    is_remote = bool(os.environ.get(REMOTE_VARIABLE))
    java = _try("java", lambda: str(check_java()))
    if not is_remote:  # else it is the server that needs it
        yield java
    yield _try("packages", _packages)
    yield _try("platform", platforms.check)
    yield _try("engines", _engines)
    yield _try("processors", lambda: f"{processors()} for this process")
    yield _try("memory", _memory)
    yield _try("model store", _model_store)
    yield (
        _try("delta", _delta)
        if java.ok or is_remote
        else Finding("delta", False, "not tried without Java")
    )


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Phi3BatchError as problem:
        return Finding(name, False, str(problem))


def _packages() -> str:
    """Every package that phi3-batch requires is installed, in a version that it takes."""
    found = []
    for requirement in map(Requirement, requires("phi3-batch") or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError as missing:
            raise EnvironmentProblemError(
                f"{requirement.name} is not installed: pip install '{requirement}'"
            ) from missing
        if not requirement.specifier.contains(installed, prereleases=True):
            raise EnvironmentProblemError(
                f"{requirement.name} {installed} is not supported: pip install '{requirement}'"
            )
        found.append(f"{requirement.name} {installed}")
    return ", ".join(found)


def _engines() -> str:
    """One of the engines that run ONNX builds is there; what the others lack is said."""
    for_builds = {spec.name: spec.find_missing() for spec in ONNX_ENGINES}
    others = {spec.name: spec.find_missing() for spec in CHECKPOINT_ENGINES}
    said = "; ".join(
        f"{name} (not here: {lacks})" if lacks else name
        for name, lacks in (for_builds | others).items()
    )
    if all(for_builds.values()):
        raise EnvironmentProblemError(f"nothing runs an ONNX build: {said}")
    return said


def _memory() -> str:
    gib = memory_bytes() / 2**30
    if gib < _PHI3_MINI_GIB:
        raise EnvironmentProblemError(
            f"{gib:.1f} GiB: too little for Phi-3-mini, which takes about {_PHI3_MINI_GIB} GiB"
        )
    return f"{gib:.1f} GiB"


def _model_store() -> str:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # an answer now, not in minutes
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        mlflow.MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, OSError) as error:
        reason = first_line(error)
        raise EnvironmentProblemError(
            f"{mlflow.get_registry_uri()} does not answer ({reason}): set MLFLOW_TRACKING_URI"
        ) from error
    return f"{mlflow.get_registry_uri()} answers"


def _delta() -> str:
    from phi3_batch.scoring.compat import context_of
    from phi3_batch.scoring.session import get_session

    spark = get_session()
    if context_of(spark) is None:
        return f"Spark {spark.version} has it, over Spark Connect"  # an address may have a token
    from phi3_batch.scoring.start import delta_package

    return f"Spark runs with {delta_package()}"
