"""One local Spark session and one MLflow store for all Spark tests of a process."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlflow
import pyarrow as pa
import pyspark
import pytest
import transformers
from packaging.version import Version
from pyspark.sql import DataFrame, SparkSession

from phi3_batch.models.log import log_chat_model, log_pipeline_model, log_prompt_model
from phi3_batch.scoring.session import get_session
from tests.conftest import TINY_CHECKPOINT, TINY_MODEL, Sample
from tests.delta_files import write_table
from tests.faults.conftest import workplace as workplace
from tests.worker_log import WORKER_SITE

REGISTERED = "phi3-tiny"


def before(version: str) -> bool:
    """Whether this is an older Spark."""
    return Version(pyspark.__version__) < Version(version)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a sqlite store, its artifacts, and all that Spark leaves behind."""
    folder = tmp_path_factory.mktemp("store")
    before, cwd = mlflow.get_tracking_uri(), Path.cwd()
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield folder
    mlflow.set_tracking_uri(before)
    os.chdir(cwd)


@pytest.fixture(scope="session")
def worker_log(store: Path) -> Path:
    log = store / "workers.log"
    log.touch()
    return log


@pytest.fixture(scope="session")
def event_log(store: Path) -> Path:
    """The folder of Spark's event log."""
    folder = store / "events"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session", autouse=True)
def spark(store: Path, worker_log: Path, event_log: Path) -> Iterator[SparkSession]:
    settings = {"enabled": "true", "dir": event_log.as_uri(), "compress": "false"}
    defaults = "".join(f"spark.eventLog.{name} {value}\n" for name, value in settings.items())
    (store / "spark-defaults.conf").write_text(defaults)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKER_LOG", str(worker_log))
        patch.setenv("PYTHONPATH", str(WORKER_SITE))
        patch.setenv("SPARK_CONF_DIR", str(store))
        session = get_session()
        yield session
        session.stop()


@pytest.fixture
def environment(store: Path) -> dict[str, str]:
    """The environment of a process that uses the store, and another Spark."""
    ours = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"}
    ours.pop("SPARK_CONF_DIR")
    return ours


@pytest.fixture(scope="session")
def model_uri(store: Path) -> str:
    """The prompt model over the embedded weights, registered, by its alias."""
    log_prompt_model(TINY_MODEL, registered_model_name=REGISTERED, alias="champion")
    return f"models:/{REGISTERED}@champion"


@pytest.fixture(scope="session")
def chat_uri(store: Path) -> str:
    """The chat model over the embedded weights, registered, by its alias."""
    log_chat_model(TINY_MODEL, registered_model_name="phi3-tiny-chat", alias="champion")
    return "models:/phi3-tiny-chat@champion"


@pytest.fixture(scope="session")
def pipeline_uri(store: Path) -> str:
    """The pipeline model of the embedded checkpoint, registered, by its version."""
    info = log_pipeline_model(TINY_CHECKPOINT, registered_model_name="phi3-tiny-pipeline")
    return f"models:/phi3-tiny-pipeline/{info.registered_model_version}"


@pytest.fixture(scope="session")
def plain_pipeline_uri(store: Path) -> str:
    """The embedded checkpoint, as somebody logged it who had never heard of us."""
    path = str(TINY_CHECKPOINT)
    pipeline = transformers.pipeline("text-generation", model=path, tokenizer=path)
    with mlflow.start_run():
        info = mlflow.transformers.log_model(
            pipeline,
            name="plain",
            task="llm/v1/chat",
            model_config={"max_new_tokens": 200},
            pip_requirements=["torch", "transformers"],
        )
    return info.model_uri


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[..., str]:
    """Write prompts as a Delta table with the columns id and prompt; returns its path."""

    def write(prompts: Sequence[str | None], name: str = "prompts", files: int = 1) -> str:
        return write_table(tmp_path / name, with_ids(prompts), files=files)

    return write


def with_ids(prompts: Sequence[str | None]) -> pa.Table:
    """A table of prompts with the columns id, a number, and prompt."""
    columns = {
        "id": pa.array(range(len(prompts)), pa.int64()),
        "prompt": pa.array(prompts, pa.string()),
    }
    return pa.table(columns)


@pytest.fixture
def read(spark: SparkSession) -> Callable[[str], DataFrame]:
    """Read a Delta table by path, afresh."""
    return lambda path: spark.read.format("delta").load(path)


@pytest.fixture(scope="session")
def answers(samples: list[Sample]) -> dict[str, str]:
    """What the embedded model answers to each sample prompt."""
    return {sample.prompt: sample.answer for sample in samples}
