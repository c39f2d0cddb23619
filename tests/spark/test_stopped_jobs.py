"""Jobs that are stopped or killed, or whose workers die: chunks stay whole, no row is blamed.

Many kills, and those of executors, are in tests/faults.
"""

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event

import mlflow
import pytest
from pyspark.sql import SparkSession

from tests.conftest import Sample
from tests.faults.harness import (
    SEED,
    Job,
    Workplace,
    chunk_commits,
    compare,
    distinct_rows,
    find_workers,
    processor_seconds,
    read_table,
    to_int,
    write_versions,
)
from tests.faults.test_signals import HOW_TO_GO_ON
from tests.spark.test_score import score
from tests.worker_log import engine_loads

ROWS = 900


@pytest.mark.parametrize(
    ("stop", "code", "last"),
    [
        (lambda job: job.process.terminate(), 143, f"interrupted: {HOW_TO_GO_ON}"),
        (
            Job.kill_jvm,
            1,
            rf"error: Spark's driver JVM is gone \([^)]*\); {HOW_TO_GO_ON}",
        ),
    ],
    ids=["SIGTERM", "its JVM is killed"],
)
def test_a_job_that_is_stopped_leaves_whole_chunks_and_says_how_many_rows(
    stop: Callable[[Job], None],
    code: int,
    last: str,
    model_uri: str,
    spark: SparkSession,
    workplace: Workplace,
    samples: list[Sample],
) -> None:
    rows = distinct_rows(samples, ROWS)
    source, output = write_versions(workplace, rows), workplace.folder / "out"

    # while chunks are in flight
    job = workplace.start("--model", model_uri, "--input", source, "--output", output)
    assert job.await_progress(lambda done, _: done > 0), job.words()
    assert not job.ends_within(Random(SEED).uniform(0, 1)), job.words()
    stop(job)
    assert job.finish() == code, job.words()
    told = re.fullmatch(last, job.stderr[-1])
    assert told, job.words()
    assert not [line for line in job.stderr if "Traceback" in line], job.words()
    done = chunk_commits(output)
    print(f"seed {SEED}: {told[0]}; {len(done)} chunks")
    assert to_int(told[2]) == ROWS
    assert 0 < to_int(told[1]) < ROWS
    there = read_table(output)
    assert len(there) == sum(commit.rows for commit in done)
    # a commit may be on its way when the JVM goes
    assert to_int(told[1]) <= len(there) if code == 1 else to_int(told[1]) == len(there)
    [run_id] = set(there["run_id"])
    assert mlflow.get_run(run_id).info.status == ("FAILED" if code == 1 else "KILLED")

    # and the rest, by another process: no chunk is done again, so those that were there were whole
    assert score(model_uri, str(source), str(output)) == 0
    assert compare(rows, output, {sample.prompt: sample.answer for sample in samples}).ok
    commits = chunk_commits(output)
    assert commits[: len(done)] == done
    assert sorted(commit.chunk for commit in commits) == list(range(4))


def test_a_worker_that_dies_with_an_engine_in_it_costs_no_row(
    model_uri: str,
    spark: SparkSession,
    workplace: Workplace,
    samples: list[Sample],
    worker_log: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = distinct_rows(samples, ROWS)
    source, output = write_versions(workplace, rows), workplace.folder / "out"
    ended = Event()

    def kill_one() -> None:
        used_s = dict[int, float]()
        while not ended.wait(0.01):
            for pid in {*map(int, engine_loads(worker_log))} & {*find_workers(os.getpid())}:
                now_s = processor_seconds(pid)
                if now_s > used_s.setdefault(pid, now_s) + 0.2:  # a chunk takes twice that
                    os.kill(pid, signal.SIGKILL)
                    return

    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_one)
        code = score(model_uri, str(source), str(output))
        ended.set()
    killed.result()
    assert code == 0
    out = capfd.readouterr().out
    assert re.search(r"^retries +[1-9]", out, re.MULTILINE), out
    assert re.search(r"^errors +0$", out, re.MULTILINE), out
    assert compare(rows, output, {sample.prompt: sample.answer for sample in samples}).ok
