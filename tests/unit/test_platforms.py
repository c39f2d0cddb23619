"""What is said of the Spark, the Delta Lake and the MLflow that are there."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement

from phi3_batch import platforms
from phi3_batch.cli import main
from phi3_batch.errors import EnvironmentProblemError

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Have these packages be installed, and no others of a platform's."""

    def install(**packages: str) -> None:
        there = {name.replace("_", "-"): number for name, number in packages.items()}

        def version(name: str) -> str:
            if name not in there:
                raise PackageNotFoundError(name)
            return there[name]

        monkeypatch.setattr(platforms, "version", version)

    return install


@pytest.mark.parametrize(
    ("spark", "delta", "tested"),
    [
        ("3.5.7", "3.3.2", True),
        ("4.1.4", "4.1.0", True),
        ("4.1.1", "4.0.0", False),
        ("4.2.0", "4.4.0", True),
        ("4.3.0", "4.4.0", False),
        ("4.0.1", "4.4.0", False),
        ("4.2.0", "4.3.1", False),
    ],
)
def test_a_combination_is_tested_or_not(
    spark: str, delta: str, tested: bool, install: Install
) -> None:
    install(pyspark=spark, delta_spark=delta, mlflow="3.8.1")
    said = platforms.check()
    assert said.startswith(f"pyspark {spark}, delta-spark {delta}, mlflow 3.8.1: ")
    assert said.endswith(": tested together") is tested
    assert ("not tested together (tested is Spark with Delta Lake: 4.2 with 4.4" in said) != tested


def test_a_platform_may_bring_its_own(install: Install) -> None:
    install(databricks_connect="17.3.1", mlflow_skinny="3.0.1")
    assert platforms.check() == "databricks-connect 17.3.1, mlflow-skinny 3.0.1"
    assert platforms.find_mlflow() == "mlflow-skinny"
    install(pyspark_client="4.1.1", mlflow_skinny="3.0.1", mlflow="3.0.1")
    assert platforms.check() == "pyspark-client 4.1.1, mlflow 3.0.1"
    assert platforms.find_mlflow() == "mlflow"


@pytest.mark.parametrize(
    ("packages", "problem"),
    [
        ({"mlflow": "3.8.1"}, "pyspark is not installed: pip install 'phi3-batch[local]', or run"),
        ({"pyspark": "4.2.0"}, "mlflow is not installed: pip install 'phi3-batch[local]', or run"),
        (
            {"pyspark": "3.5.7", "mlflow": "2.21.3"},
            "mlflow 2.21.3 is too old: pip install 'mlflow>=3.0,<4'",
        ),
        (
            {"pyspark": "3.4.4", "mlflow": "3.0.1"},
            "pyspark 3.4.4 is too old: Spark 3.5 or later is needed",
        ),
        (
            {"pyspark": "4.2.0", "mlflow": "3.17.2", "delta_spark": "4.4.1"},
            "delta-spark 4.4.1 has no jar that could be fetched: pip install 'delta-spark==4.4.0'",
        ),
    ],
)
def test_what_fails_is_told_with_its_remedy(
    packages: dict[str, str], problem: str, install: Install
) -> None:
    install(**packages)
    with pytest.raises(EnvironmentProblemError) as raised:
        platforms.check()
    assert str(raised.value).startswith(problem)


def test_a_command_that_misses_a_package_says_so_in_one_line(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def get_session() -> None:
        raise ImportError("No module named 'pyspark'", name="pyspark")

    install(mlflow_skinny="3.0.1")
    monkeypatch.setattr("phi3_batch.scoring.session.get_session", get_session)
    assert main(["verify", "--input", "in", "--output", "out"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: pyspark is not installed: pip install 'phi3-batch[local]'")


def test_an_installation_leaves_what_a_platform_brings_alone() -> None:
    base = [
        needed.name
        for needed in map(Requirement, requires("phi3-batch") or [])
        if not needed.marker or needed.marker.evaluate({"extra": ""})
    ]
    assert "mlflow-skinny" in base
    assert not {"pyspark", "delta-spark", "mlflow", "torch", "matplotlib"} & {*base}
