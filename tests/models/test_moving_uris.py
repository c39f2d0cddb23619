"""A URI that comes to mean another model while a job starts means one model to all of the job."""

from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, Schema

from phi3_batch.errors import InvalidModelError
from phi3_batch.scoring.rows.model import FoundModel, find_model, load_model
from tests.conftest import REPOSITORY

NAME = "moving-uris"
SIGNATURE = ModelSignature(Schema([ColSpec("string", "prompt")]), Schema([ColSpec("string")]))


def log_version(run_id: str) -> ModelInfo:
    with mlflow.start_run(run_id=run_id):
        return mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(REPOSITORY / "tests/spark/other_models/first_only.py"),
            pip_requirements=["mlflow"],
            signature=SIGNATURE,
            registered_model_name=NAME,
        )


@pytest.fixture(scope="module")
def run_id(in_store: None) -> str:
    """A run that has logged the first version, which is in a stage and has an alias."""
    with mlflow.start_run() as run:
        pass
    log_version(run.info.run_id)
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    with pytest.warns(FutureWarning):  # MLflow would do away with stages, and has them
        MlflowClient().transition_model_version_stage(NAME, "1", "Production")
    return str(run.info.run_id)


def find_while_it_moves(uri: str, move: Callable[[], object]) -> FoundModel:
    """Look a model up, and move what its URI means as soon as MLflow has answered once."""
    look_up = Model.load
    with pytest.MonkeyPatch.context() as patch:

        def look_up_and_move(uri: str) -> Model:
            model = look_up(uri)
            move()
            return model

        patch.setattr(Model, "load", look_up_and_move)
        return find_model(uri)


@pytest.mark.parametrize(
    "suffix", ["/latest", "/Latest", "/Production", "/production", "@champion"]
)
def test_a_version_is_looked_up_once(run_id: str, suffix: str) -> None:
    found = find_model(f"models:/{NAME}{suffix}")
    name, version = found.resolved_uri.rsplit("/", 1)
    assert name == f"models:/{NAME}"
    assert version.isdigit()
    assert mlflow.models.get_model_info(found.resolved_uri).model_id == found.info.model_id


def test_what_is_registered_while_a_job_starts_is_not_the_job_s(run_id: str) -> None:
    newest = find_model(f"models:/{NAME}/latest").resolved_uri
    found = find_while_it_moves(f"models:/{NAME}/latest", lambda: log_version(run_id))
    assert found.resolved_uri == newest
    assert find_model(f"models:/{NAME}/latest").resolved_uri != newest
    model = load_model(found, {}, wrap_pipeline=str, pilot_prompts=list)
    assert model.served_uri == model.resolved_uri == newest


def test_what_a_run_logs_while_a_job_starts_is_not_the_job_s(run_id: str) -> None:
    found = find_while_it_moves(f"runs:/{run_id}/{NAME}", lambda: log_version(run_id))
    assert found.resolved_uri == f"models:/{found.info.model_id}"
    assert find_model(f"runs:/{run_id}/{NAME}").info.model_id != found.info.model_id


def test_a_stage_without_a_version_is_said(run_id: str) -> None:
    with pytest.raises(
        InvalidModelError, match="no model models:/moving-uris/Archived in sqlite:///"
    ):
        find_model(f"models:/{NAME}/Archived")
