"""A standalone Spark cluster of one machine, as processes of their own."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark

_SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
CORES = 2  # of a worker


@contextmanager
def standalone_cluster(folder: Path, workers: int = 1) -> Iterator[str]:
    """A master and workers of two cores each; gives the URL.

    Args:
        folder: where logs and the folders of the workers go.
        workers: how many.
    """
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(role: str, *arguments: str, says: str) -> str:
        log = folder / f"spark-{len(processes)}.log"
        command = [str(_SPARK_CLASS), f"org.apache.spark.deploy.{role}", "--host", "127.0.0.1"]
        with log.open("wb") as out:
            processes.append(subprocess.Popen([*command, *arguments], env=environment, stderr=out))
        deadline = time.monotonic() + 60
        while not (found := re.search(says, log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return found.group()

    try:
        ports = ("--port", "0", "--webui-port", "0")
        url = start("master.Master", *ports, says=r"spark://127\.0\.0\.1:\d+")
        size = ("--cores", str(CORES), "--memory", "2g", "--webui-port", "0")
        for number in range(workers):
            place = ("--work-dir", str(folder / f"worker-{number}"))
            start("worker.Worker", *size, *place, url, says="Successfully registered with master")
        yield url
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()
