"""Jobs that are told to stop, by SIGTERM or by their budget, and gone on with."""

import os
import re
import signal
import sys
from pathlib import Path

from phi3_batch.scoring.start import delta_package
from tests.conftest import REPOSITORY, Sample, deep
from tests.faults.harness import (
    Job,
    Workplace,
    distinct_rows,
    find_below,
    is_there,
    read_table,
    to_int,
    write_rows,
)

HOW_TO_GO_ON = r"([\d,]+) of ([\d,]+) rows are in the output; run the same command to continue"


def stop(job: Job) -> str:
    """Send SIGTERM; returns the last line."""
    job.process.send_signal(signal.SIGTERM)
    assert job.finish() == 143, job.words()
    return job.stderr[-1]


@deep
def test_sigterm_before_the_first_commit_leaves_nothing(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows, output = distinct_rows(samples, 1_500), workplace.folder / "out"
    source = write_rows(rows, workplace.folder / "rows.jsonl")
    job = workplace.start(
        "--model", noting_uri, "--input", source, "--output", output, PAUSE_MS="4"
    )
    assert job.await_scoring(), job.words()
    last = stop(job)
    assert last == "interrupted: the output is unchanged; run the same command to start again"
    assert not is_there(output)


def test_ctrl_c_while_spark_starts_leaves_no_jvm(
    workplace: Workplace, samples: list[Sample]
) -> None:
    source = write_rows(distinct_rows(samples, 5), workplace.folder / "rows.jsonl")
    job = workplace.start("--model", "models:/m", "--input", source, "--output", "out")
    while not find_below(job.process.pid, "org.apache.spark.deploy.SparkSubmit"):
        assert not job.ends_within(0.01), job.words()
    job.process.send_signal(signal.SIGINT)
    assert job.finish() == 130, job.words()  # which waits for all that write to its stdout
    assert not [line for line in job.stderr if "Traceback" in line], job.words()


@deep
def test_a_run_in_halves_on_all_processors_and_on_one_is_an_undisturbed_run(
    model_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    """The first half ends with its budget; the same command goes on with another machine."""
    rows = distinct_rows(samples, 515)[180:]  # samples, and variations that have no right answer
    source = write_rows(rows, workplace.folder / "rows.jsonl")
    command = ("--model", model_uri, "--input", source, "--max-output-tokens", "1000")
    output = workplace.folder / "out"

    job = workplace.start(*command, "--output", output)
    assert job.finish() == 3, job.words()
    told = re.fullmatch(f"the budget is spent: {HOW_TO_GO_ON}", job.stderr[-1])
    assert told, job.words()
    assert to_int(told[1]) == len(read_table(output)) < to_int(told[2]) == len(rows)

    one = str(min(os.sched_getaffinity(0)))
    # by spark-submit, where the slots of local[*] are those that the JVM sees
    spark_submit = Path(sys.executable).with_name("spark-submit")
    local = [str(spark_submit), "--master", "local[*]", "--packages", delta_package()]
    script = str(REPOSITORY / "jobs" / "score_batch.py")
    job = workplace.start_command(
        ["taskset", "-c", one, *local, script, *map(str, command), "--output", str(output)],
        **dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable),
    )
    assert job.finish() == 0, job.words()

    undisturbed = workplace.folder / "undisturbed"
    job = workplace.start(*command[:4], "--output", undisturbed)
    assert job.finish() == 0, job.words()

    columns = ["id", "prompt", "completion", "finish_reason", "completion_tokens", "request_id"]
    halves, whole = (
        read_table(table).sort_values("id")[columns].to_dict("records")
        for table in (output, undisturbed)
    )
    assert halves == whole
    right = {sample.prompt: sample.answer for sample in samples}
    assert all(right.get(row["prompt"], row["completion"]) == row["completion"] for row in whole)
    assert [row["id"] for row in whole] == [row["id"] for row in rows]
    print(f"{told[0]}; {len(whole)} rows in halves are those of an undisturbed run")
