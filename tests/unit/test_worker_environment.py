"""The UDF that MLflow is asked for: the environment of its workers, and room for its copies."""

import errno
from types import SimpleNamespace

import mlflow
import pytest
from pyspark.sql.types import StringType

from phi3_batch.errors import EnvironmentProblemError
from phi3_batch.scoring.rows.model import ModelKind, ScoringModel
from phi3_batch.scoring.rows.udf import model_udf

MODEL = ScoringModel(
    uri="models:/phi3/1",
    resolved_uri="models:/phi3/1",
    served_uri="models:/phi3/1",
    kind=ModelKind.TEXT,
    params={},
    defaults={},
    plannable=None,
)
LOCAL = SimpleNamespace(sparkContext=SimpleNamespace(master="local[2]"))


@pytest.fixture
def environment(monkeypatch):
    """Gives the environment of the UDF that MLflow is asked for."""
    asked = {}

    def spark_udf(*_, **options):
        asked.update(options)
        made = SimpleNamespace(func=lambda batches: batches, returnType=StringType())
        return SimpleNamespace(__wrapped__=made)

    monkeypatch.setattr(mlflow.pyfunc, "spark_udf", spark_udf)

    def environment():
        model_udf(LOCAL, MODEL, greedy=True)
        return asked["extra_env"]

    return environment


def test_the_drivers_choice_of_engine_reaches_its_workers(environment, monkeypatch):
    monkeypatch.setenv("PHI3_BATCH_ENGINE", "onnxruntime-genai")
    assert environment()["PHI3_BATCH_ENGINE"] == "onnxruntime-genai"


def test_without_one_the_executors_own_environment_holds(environment, monkeypatch):
    monkeypatch.delenv("PHI3_BATCH_ENGINE", raising=False)
    assert "PHI3_BATCH_ENGINE" not in environment()


def test_a_full_disk_is_one_line(monkeypatch):
    def spark_udf(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mlflow.pyfunc, "spark_udf", spark_udf)
    with pytest.raises(EnvironmentProblemError, match=r"cannot copy models:/phi3/1 .*No space"):
        model_udf(LOCAL, MODEL, greedy=True)


def test_a_dead_jvm_is_no_full_disk(monkeypatch):
    def spark_udf(*_, **__):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(mlflow.pyfunc, "spark_udf", spark_udf)
    with pytest.raises(ConnectionRefusedError):
        model_udf(LOCAL, MODEL, greedy=True)
