"""Executors that are killed while jobs/score_batch.py runs on a cluster of one machine."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from phi3_batch.models.log import log_prompt_model
from phi3_batch.scoring.start import delta_package
from tests.conftest import REPOSITORY, TINY_MODEL, Sample, deep, fastest_engine
from tests.faults.harness import (
    Job,
    Workplace,
    asked_in_tasks,
    assert_each_row_once,
    await_busy_worker,
    compare,
    distinct_rows,
    find_below,
    write_rows,
)
from tests.processes.test_spark_submit import cluster as cluster
from tests.standalone import CORES, standalone_cluster

EXECUTOR = "CoarseGrainedExecutorBackend"
EXECUTORS = 4  # of two workers with two cores, a core for each


def is_beyond(share: float, done: int, rows: int) -> bool:
    return done > share * rows


def await_executor(killed: set[int]) -> int:
    """Wait for an executor that has not been killed; returns its process id."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        there = set(find_below(os.getpid(), EXECUTOR)) - killed
        if there:
            return max(there)
        time.sleep(0.1)
    raise AssertionError("there is no executor")


def submit(
    cluster: str,
    workplace: Workplace,
    model: str,
    source: Path,
    cores: int = CORES,
    **variables: object,
) -> Job:
    """Score a file into the table ``out``.

    Args:
        cluster: its URL.
        workplace: where.
        model: its URI.
        source: the file.
        cores: of an executor.
        variables: in the executors' environment.
    """
    settings = {
        "spark.executor.cores": cores,
        "spark.executor.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        **{f"spark.executorEnv.{name}": value for name, value in variables.items()},
    }
    pythons = dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable)
    return workplace.start_command(
        [
            str(Path(sys.executable).with_name("spark-submit")),
            *("--master", cluster, "--packages", delta_package()),
            *(
                part
                for setting in settings.items()
                for part in ("--conf", "{}={}".format(*setting))
            ),
            str(REPOSITORY / "jobs" / "score_batch.py"),
            *("--model", model, "--input", str(source), "--output", str(workplace.folder / "out")),
        ],
        **pythons,
    )


@deep
def test_executors_that_are_killed(
    noting_uri: str, cluster: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 1_200)
    source = write_rows(rows, workplace.folder / "rows.jsonl")
    job = submit(cluster, workplace, noting_uri, source, ASKED_LOG=workplace.asked_log, PAUSE_MS=10)
    killed: set[int] = set()
    for share in (0, 1 / 3):  # of the rows
        at_work = job.await_progress(partial(is_beyond, share))
        assert at_work is not None, job.words()
        assert at_work[0] < len(rows), job.words()
        executor = await_executor(killed)
        workplace.await_asked(20, job)  # in the middle of a chunk
        os.kill(executor, signal.SIGKILL)
        killed.add(executor)
    assert job.finish() == 0, job.words()
    answered = len(asked_in_tasks(workplace.asked_log))
    print(
        f"{len(killed)} executors killed, {job.field('retries')} retries, {answered:,} requests"
        f" answered for {len(rows):,}"
    )
    assert answered > len(rows)  # else nothing was lost that had to be done again
    assert_each_row_once(rows, workplace.folder / "out")


@deep
def test_an_executor_that_is_killed_with_an_engine_in_it(
    model_uri: str, cluster: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 1_200)
    source = write_rows(rows, workplace.folder / "rows.jsonl")
    job = submit(cluster, workplace, model_uri, source)
    assert job.await_progress(partial(is_beyond, 0)), job.words()
    await_busy_worker(os.getpid(), job.ends_within)
    os.kill(await_executor(set()), signal.SIGKILL)
    assert job.finish() == 0, job.words()
    found = compare(
        rows, workplace.folder / "out", {sample.prompt: sample.answer for sample in samples}
    )
    assert found.ok, found


@deep
def test_four_executors_of_one_machine_share_what_a_model_refers_to(
    store: Path, workplace: Workplace, samples: list[Sample]
) -> None:
    """Weights are fetched once and converted once for all of them, also where some are killed."""
    rows = distinct_rows(samples, 2_400)
    source = write_rows(rows, workplace.folder / "rows.jsonl")
    cache = workplace.folder / "cache"
    cache.mkdir(mode=0o700)
    model = log_prompt_model(TINY_MODEL, by_reference=str(TINY_MODEL)).model_uri
    killed: set[int] = set()
    with standalone_cluster(workplace.folder, workers=2) as cluster:
        job = submit(cluster, workplace, model, source, cores=1, XDG_CACHE_HOME=cache)
        for share in (0, 1 / 3):  # of the rows
            assert job.await_progress(partial(is_beyond, share)), job.words()
            made = kept_in(cache)
            assert len(find_below(os.getpid(), EXECUTOR)) == EXECUTORS
            await_busy_worker(os.getpid(), job.ends_within)
            executor = await_executor(killed)
            os.kill(executor, signal.SIGKILL)
            killed.add(executor)
        assert job.finish() == 0, job.words()
    answers = {sample.prompt: sample.answer for sample in samples}
    found = compare(rows, workplace.folder / "out", answers)
    assert found.ok, found
    assert sorted(place.parent.name for place in made) == sorted([fastest_engine(), "weights"])
    assert kept_in(cache) == made


def kept_in(cache: Path) -> dict[Path, int]:
    """The folders of weights in a cache, and when each was made."""
    made = (cache / "phi3_batch").glob("*/*/checksums.json")
    return {file.parent: file.parent.stat().st_mtime_ns for file in made}
