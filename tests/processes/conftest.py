"""What the tests that start processes share: a store with a model, and a look at the output."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from phi3_batch.models.log import log_chat_model, log_prompt_model
from tests.conftest import TINY_MODEL


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an MLflow store of its own, used by this process while the tests run."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield folder
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def model_uri(store: Path) -> str:
    """The prompt model over the embedded weights, registered, by its alias."""
    log_prompt_model(TINY_MODEL, registered_model_name="phi3-tiny", alias="champion")
    return "models:/phi3-tiny@champion"


@pytest.fixture(scope="session")
def chat_uri(store: Path) -> str:
    """The chat model over the embedded weights, by its version."""
    info = log_chat_model(TINY_MODEL, registered_model_name="phi3-tiny-chat")
    return f"models:/phi3-tiny-chat/{info.registered_model_version}"


@pytest.fixture
def environment(store: Path) -> dict[str, str]:
    """The environment of a process that uses the store."""
    return os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"}


@pytest.fixture
def read() -> Callable[[Path], pd.DataFrame]:
    """Read a Delta table of one commit: the Parquet files of its folder."""
    return lambda path: pd.read_parquet(path)
