"""What the fault-injection tests share: a store with two models, and a place to run jobs in."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from tests.faults.harness import Workplace

# the store of the tests that start processes, and the model over the embedded weights in it
from tests.processes.conftest import environment as environment
from tests.processes.conftest import model_uri as model_uri
from tests.processes.conftest import store as store


@pytest.fixture(scope="session")
def noting_uri(store: Path) -> str:
    """The model of noting_model.py."""
    signature = ModelSignature(Schema([ColSpec("string", "prompt")]), Schema([ColSpec("string")]))
    info = mlflow.pyfunc.log_model(
        name="noting",
        python_model=str(Path(__file__).with_name("noting_model.py")),
        pip_requirements=["mlflow"],
        signature=signature,
    )
    return str(info.model_uri)


@pytest.fixture
def workplace(tmp_path: Path, environment: dict[str, str]) -> Iterator[Workplace]:
    place = Workplace(tmp_path, environment)
    yield place
    place.clear()
