"""Spark, Delta Lake and MLflow: which versions are there, and what is known of them together."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from packaging.version import Version

from phi3_batch.errors import EnvironmentProblemError

# Spark with the Delta Lake that goes with it, on which all tests pass.
TESTED: Mapping[str, str] = MappingProxyType(
    {"4.2": "4.4", "4.1": "4.1", "4.0": "4.0", "3.5": "3.3"}
)
_OLDEST_SPARK, _OLDEST_MLFLOW = Version("3.5"), Version("3.0")
# The jar of this Delta Lake was never published.
_NO_JAR = "4.4.1"

# Each is there under one of these names.
_SPARK = ("pyspark", "pyspark-client", "databricks-connect")
_MLFLOW = ("mlflow", "mlflow-skinny")


def check() -> str:
    """See whether Spark, Delta Lake and MLflow can be worked with.

    Returns:
        Their versions, and whether they were tested together.

    Raises:
        EnvironmentProblemError: one is missing, or known to fail.
    """
    spark, mlflow = _find(_SPARK), _find(_MLFLOW)
    if mlflow is None or spark is None:
        missing = "mlflow" if mlflow is None else "pyspark"
        raise EnvironmentProblemError(
            f"{missing} is not installed: pip install 'phi3-batch[local]', or run this where the"
            " platform brings it"
        )
    if Version(mlflow[1]) < _OLDEST_MLFLOW:
        raise EnvironmentProblemError(
            f"{mlflow[0]} {mlflow[1]} is too old: pip install '{mlflow[0]}>={_OLDEST_MLFLOW},<4'"
        )
    if Version(spark[1]) < _OLDEST_SPARK:
        raise EnvironmentProblemError(
            f"{spark[0]} {spark[1]} is too old: Spark {_OLDEST_SPARK} or later is needed"
        )
    delta = _find(("delta-spark",))
    if delta and delta[1] == _NO_JAR:
        raise EnvironmentProblemError(
            f"delta-spark {_NO_JAR} has no jar that could be fetched: pip install"
            " 'delta-spark==4.4.0'"
        )
    said = ", ".join(f"{name} {number}" for name, number in filter(None, (spark, delta, mlflow)))
    of_spark, of_delta = _minor(spark[1]), _minor(delta[1]) if delta else None
    # a platform's Delta Lake is no package of Python
    if of_delta is None or TESTED.get(of_spark) == of_delta:
        return said if of_delta is None else f"{said}: tested together"
    pairs = ", ".join(f"{one} with {other}" for one, other in TESTED.items())
    return f"{said}: not tested together (tested is Spark with Delta Lake: {pairs})"


def find_mlflow() -> str:
    """The name under which MLflow is installed, ``mlflow`` or ``mlflow-skinny``."""
    found = _find(_MLFLOW)
    return found[0] if found else _MLFLOW[0]


def _find(names: tuple[str, ...]) -> tuple[str, str] | None:
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            pass
    return None


def _minor(number: str) -> str:
    return ".".join(number.split(".")[:2])
