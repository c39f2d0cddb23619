"""Python workers that die by chance while a job runs: it goes on, and blames no row."""

import os
import signal
from random import Random

import pytest

from tests.conftest import Sample, deep
from tests.faults.harness import (
    SEED,
    Job,
    Workplace,
    asked_in_tasks,
    assert_each_row_once,
    await_busy_worker,
    compare,
    distinct_rows,
    find_workers,
    write_rows,
)

KILLS = 8


def kill_workers(job: Job, random: Random) -> int:
    """Kill a worker every one to three seconds; returns how many until the job ended."""
    killed = 0
    while killed < KILLS and not job.ends_within(random.uniform(1, 3)):
        if workers := find_workers(job.process.pid):
            os.kill(random.choice(workers), signal.SIGKILL)
            killed += 1
    return killed


@deep
def test_workers_that_die_by_chance_are_nobody_s_fault(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 2_400)
    source, output = write_rows(rows, workplace.folder / "rows.jsonl"), workplace.folder / "out"
    job = workplace.start(
        "--model", noting_uri, "--input", source, "--output", output, PAUSE_MS="8"
    )
    assert job.await_scoring(), job.words()
    killed = kill_workers(job, Random(SEED))
    assert job.finish() == 0, job.words()
    answered = len(asked_in_tasks(workplace.asked_log))
    print(
        f"seed {SEED}: {killed} workers killed, {job.field('retries')} retries, {answered:,}"
        f" requests answered for {len(rows):,}"
    )
    assert killed == KILLS
    assert_each_row_once(rows, output)
    assert job.field("errors") == "0"


@deep
@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime-genai"])
def test_a_worker_that_dies_with_an_engine_in_it_costs_no_row(
    engine: str, model_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 1_200)
    source, output = write_rows(rows, workplace.folder / "rows.jsonl"), workplace.folder / "out"
    job = workplace.start(
        *("--model", model_uri, "--input", source, "--output", output), PHI3_BATCH_ENGINE=engine
    )
    assert job.await_progress(lambda done, _: done > 0), job.words()
    os.kill(await_busy_worker(job.process.pid, job.ends_within), signal.SIGKILL)
    assert job.finish() == 0, job.words()
    assert job.field("retries"), job.words()
    assert job.field("errors") == "0"
    assert (job.field("engine") or "").startswith(engine)
    assert compare(rows, output, {sample.prompt: sample.answer for sample in samples}).ok
