"""jobs/score_batch.py under pyspark's own spark-submit, on a cluster of one machine."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from phi3_batch.scoring.start import delta_package
from tests.conftest import REPOSITORY, SAMPLE_DATA, Sample, deep
from tests.standalone import CORES, standalone_cluster
from tests.worker_log import WORKER_SITE, engine_loads


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    with standalone_cluster(tmp_path) as url:
        yield url


@pytest.mark.parametrize(
    ("form", "file", "options"),
    [
        pytest.param("model_uri", "prompts.jsonl", [], marks=deep, id="prompts"),
        pytest.param("chat_uri", "chats.jsonl", ["--keep-response"], id="chats"),
    ],
)
def test_on_a_standalone_cluster(
    form: str,
    file: str,
    options: list[str],
    request: pytest.FixtureRequest,
    cluster: str,
    environment: dict[str, str],
    samples: list[Sample],
    read: Callable[[Path], pd.DataFrame],
    tmp_path: Path,
) -> None:
    output, worker_log = tmp_path / "out", tmp_path / "workers.log"
    settings = {
        "spark.executor.cores": CORES,
        "spark.executor.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        # a cluster's executors have an environment of their own
        "spark.executorEnv.WORKER_LOG": worker_log,
        "spark.executorEnv.PYTHONPATH": WORKER_SITE,
    }
    command = [
        str(Path(sys.executable).with_name("spark-submit")),
        *("--master", cluster, "--packages", delta_package()),
        *(part for setting in settings.items() for part in ("--conf", "{}={}".format(*setting))),
        str(REPOSITORY / "jobs" / "score_batch.py"),
        *("--model", request.getfixturevalue(form), "--output", str(output)),
        *("--input", str(SAMPLE_DATA / file), *options),
    ]
    pythons = dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | pythons, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "scored      335 rows" in done.stdout
    completions = read(output)
    assert dict(zip(completions["id"], completions["completion"], strict=True)) == {
        sample.id: sample.answer for sample in samples
    }
    if form == "chat_uri":  # what was configured when the model was logged came along
        assert {response["model"] for response in completions["response"]} == {"phi3-chat"}
    # two would mean two tasks at a time, each with its own copy of the weights
    assert len(engine_loads(worker_log)) == 1
    # at its own log level, Spark would show the beginnings of completions
    beginnings = [sample.answer[:20] for sample in samples if len(sample.answer) > 20]
    assert not any(text in done.stdout + done.stderr for text in beginnings)
