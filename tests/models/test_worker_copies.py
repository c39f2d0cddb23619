"""What MLflow unpacks for a Spark worker on a cluster goes when the worker is gone."""

import shutil
import tempfile
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock, Timeout
from mlflow.models.model import ModelInfo
from mlflow.utils._spark_utils import _SparkDirectoryDistributor
from pyspark import SparkFiles

from phi3_batch import scratch


def test_a_worker_s_copy_is_removed_by_the_next_worker(
    logged: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    # as on an executor, to which Spark has sent the model
    monkeypatch.setattr(SparkFiles, "_is_running_on_worker", True)
    monkeypatch.setattr(SparkFiles, "_root_directory", str(tmp_path))
    model = mlflow.artifacts.download_artifacts(logged.model_uri)
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", model)
    unpacked = Path(_SparkDirectoryDistributor.get_or_extract(archive))
    assert unpacked.parent == place

    mlflow.pyfunc.load_model(str(unpacked))
    with pytest.raises(Timeout):
        FileLock(unpacked / scratch._LOCK, timeout=0).acquire()
    scratch.remove_left_over(place)
    assert unpacked.exists()

    scratch._owned.pop(unpacked).release()  # as when the process has ended
    scratch.remove_left_over(place)
    assert not unpacked.exists()
    assert Path(model).exists()
