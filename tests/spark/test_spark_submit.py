"""jobs/score_batch.py under pyspark's own spark-submit, locally and on a cluster."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyspark
import pytest
from pyspark.sql import DataFrame

from phi3_batch.scoring.session import delta_package
from tests.conftest import REPOSITORY, SAMPLE_DATA, Sample
from tests.spark.conftest import WORKER_SITE
from tests.spark.test_score import engine_loads

SPARK_HOME = Path(pyspark.__file__).parent
CORES = 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A standalone master and a worker of two cores, as processes of their own; gives the URL."""
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}
    spark_class = [str(SPARK_HOME / "bin" / "spark-class")]
    log = tmp_path / "master.log"

    def start(role: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [*spark_class, f"org.apache.spark.deploy.{role}", "--host", "127.0.0.1"]
        with log.open("ab") as out:
            return subprocess.Popen([*command, *arguments], env=environment, stderr=out)

    def await_line(pattern: str) -> str:
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return found.group()

    processes = [start("master.Master", "--port", "0", "--webui-port", "0")]
    try:
        url = await_line(r"spark://127\.0\.0\.1:\d+")
        options = ("--cores", str(CORES), "--memory", "2g", "--webui-port", "0")
        processes.append(start("worker.Worker", *options, "--work-dir", str(tmp_path), url))
        await_line("Successfully registered with master")
        yield url
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


@pytest.fixture
def submit(
    store: Path, model_uri: str, samples: list[Sample], tmp_path: Path
) -> Callable[..., tuple[Path, list[str]]]:
    """Score the samples under spark-submit; gives the output and the engine loads in workers."""
    long_answers = [sample for sample in samples if len(sample.answer) > 20]

    def submit(master: str, *settings: str) -> tuple[Path, list[str]]:
        output, worker_log = tmp_path / "out", tmp_path / "workers.log"
        watched = {"WORKER_LOG": str(worker_log), "PYTHONPATH": str(WORKER_SITE)}
        # a cluster's executors have an environment of their own
        settings += tuple(f"spark.executorEnv.{name}={value}" for name, value in watched.items())
        command = [
            str(Path(sys.executable).with_name("spark-submit")),
            *("--master", master, "--packages", delta_package()),
            *(part for setting in settings for part in ("--conf", setting)),
            str(REPOSITORY / "jobs" / "score_batch.py"),
            *("--model", model_uri, "--output", str(output)),
            *("--input", str(SAMPLE_DATA / "prompts.jsonl")),
        ]
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            **watched,
        }
        done = subprocess.run(command, cwd=store, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "scored      335 rows" in done.stdout
        assert not any(sample.answer[:20] in done.stdout + done.stderr for sample in long_answers)
        return output, engine_loads(worker_log)

    return submit


def test_locally(
    submit: Callable[..., tuple[Path, list[str]]],
    read: Callable[[str], DataFrame],
    samples: list[Sample],
) -> None:
    output, loads = submit(f"local[{CORES}]")
    assert_all_answered(read(str(output)), samples)
    assert len(loads) == 1  # two would mean two tasks at a time, each with its own weights


def test_on_a_standalone_cluster(
    cluster: str,
    submit: Callable[..., tuple[Path, list[str]]],
    read: Callable[[str], DataFrame],
    samples: list[Sample],
) -> None:
    output, loads = submit(
        cluster,
        f"spark.executor.cores={CORES}",
        "spark.executor.memory=1g",
        "spark.driver.host=127.0.0.1",
    )
    assert_all_answered(read(str(output)), samples)
    assert len(loads) == 1


def assert_all_answered(completions: DataFrame, samples: list[Sample]) -> None:
    answers = {row["id"]: row["completion"] for row in completions.collect()}
    assert answers == {sample.id: sample.answer for sample in samples}
