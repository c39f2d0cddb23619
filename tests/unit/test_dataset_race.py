import mlflow
import pytest
from mlflow.exceptions import MlflowException

from phi3_batch import tracking


@pytest.mark.parametrize(("refusals", "tries"), [(0, 1), (1, 2)])
def test_a_dataset_that_another_driver_enters_at_the_same_moment_is_found(
    monkeypatch, refusals, tries
):
    entered = []

    def log_input(dataset, context):
        entered.append((dataset, context))
        if len(entered) <= refusals:
            raise MlflowException(
                "(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name"
            )

    monkeypatch.setattr(mlflow, "log_input", log_input)
    tracking._log_dataset("rows")
    assert entered == [("rows", "scoring")] * tries


def test_a_store_that_refuses_a_dataset_is_not_asked_for_ever(monkeypatch):
    def log_input(dataset, context):
        raise MlflowException("no space left")

    monkeypatch.setattr(mlflow, "log_input", log_input)
    with pytest.raises(MlflowException, match="no space left"):
        tracking._log_dataset("rows")
