"""The job as a process of its own: the demo, Ctrl-C, and a failed job's next try."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame

from tests.conftest import REPOSITORY, SAMPLE_DATA
from tests.spark.test_other_models import log
from tests.spark.test_score import score


@pytest.fixture
def environment(store: Path) -> dict[str, str]:
    return os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"}


def test_the_demo_shows_right_answers_and_runs_again(tmp_path: Path) -> None:
    for version in (1, 2):
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "jobs" / "demo.py")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f"models:/phi3-tiny/{version} " in done.stdout
        [spain] = [line for line in done.stdout.splitlines() if "Spain is Madrid." in line]
        assert spain.split()[-3:] == ["stop", "10", "7"]
        assert "errors      0" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr


def test_ctrl_c_ends_the_job_at_once_and_leaves_nothing(
    model_uri: str, environment: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_bytes((SAMPLE_DATA / "prompts.jsonl").read_bytes() * 30)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "phi3_batch", "score", "--model", model_uri]
    job = subprocess.Popen(
        [*command, "--input", str(source), "--output", str(output)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stderr is not None
    said = [next(line for line in job.stderr if line.startswith("scoring: "))]
    job.send_signal(signal.SIGINT)
    said += job.stderr.readlines()
    assert job.wait() == 130
    assert said[-1] == "interrupted: the output is as it was, the same command starts anew\n"
    assert all(line.startswith("scoring: ") for line in said[:-1])
    assert not list(output.glob("_delta_log/*.json"))


def test_after_a_failed_job_the_same_output_can_be_written(
    store: Path,
    write_prompts: Callable[..., str],
    read: Callable[[str], DataFrame],
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    prompts = write_prompts(["a", "b", *["filler"] * 700, "poison"])
    assert score(log("choking"), prompts, output) == 1
    assert score(log("first_only"), write_prompts(["a"], name="one"), output) == 0
    assert read(output).count() == 1
