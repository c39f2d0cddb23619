"""A Spark Connect server with Delta Lake, a process of its own, and a client without a JVM."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from phi3_batch.scoring.session import get_session
from tests.conftest import REPOSITORY
from tests.faults.conftest import workplace as workplace

# the store of the tests that start processes, and the models over the embedded weights in it
from tests.processes.conftest import chat_uri as chat_uri
from tests.processes.conftest import environment as environment
from tests.processes.conftest import model_uri as model_uri
from tests.processes.conftest import store as store

# the environment whose Spark serves
_SERVER = Path(os.environ.get("PHI3_BATCH_SERVER", REPOSITORY / ".venv"))
_SETTINGS = {
    "spark.connect.grpc.binding.address": "127.0.0.1",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.task.cpus": "2",
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
}
_PATIENCE_S = 120


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server on two processors."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = str(_SERVER / "bin" / "python")
    code = "import pyspark; from phi3_batch.scoring import start"
    code += "; print(pyspark.__path__[0], start.delta_package())"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    home, package = asked.stdout.split()
    settings = {**_SETTINGS, "spark.connect.grpc.binding.port": port}
    command = [f"{home}/bin/spark-submit", "--master", "local[2]"]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer"]
    command += ["--packages", package]
    command += [part for one in settings.items() for part in ("--conf", "{}={}".format(*one))]
    environment = os.environ | {"PYSPARK_PYTHON": python, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["SPARK_HOME"] = home
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "spark-internal"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        _await(port, process, folder / "log")
        yield f"sc://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _await(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="session")
def spark(server: str, store: Path) -> Iterator[SparkSession]:
    """A session at the server, as a command gets one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_REMOTE", server)
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        yield get_session()
