"""Rows that kill the process which asks the model, and models that do so whatever the row."""

import math

import pytest

from tests.conftest import Sample, deep
from tests.faults.harness import (
    Workplace,
    answer_of,
    asked_in_tasks,
    compare,
    distinct_rows,
    is_there,
    largest_chunk,
    read_table,
    write_rows,
)

ROWS = 5_000


def trials(requests: int) -> float:
    """As many Spark jobs as it may take to find one request among so many."""
    return 2 + 2 * math.log2(requests)


@deep
def test_one_poisonous_prompt_among_many_is_the_only_one_without_an_answer(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, ROWS)
    poison = rows[ROWS * 2 // 3]["prompt"]
    source, output = write_rows(rows, workplace.folder / "rows.jsonl"), workplace.folder / "out"
    job = workplace.start(
        "--model", noting_uri, "--input", source, "--output", output, DIES_OF=poison
    )
    assert job.finish() == 0, job.words()
    retries, allowed = int(job.field("retries") or 0), trials(largest_chunk(output))
    print(f"{retries} retries (at most {allowed:.1f}), errors: {job.field('errors')}")

    answers = {row["prompt"]: answer_of(row["prompt"]) for row in rows if row["prompt"] != poison}
    found = compare(rows, output, answers)
    assert (found.rows, found.lost, found.doubled, found.wrong) == (ROWS, 0, 0, 0), found
    table = read_table(output).set_index("prompt")
    assert table["completion"].notna().sum() == ROWS - 1
    assert [error["code"] for error in table["error"] if error] == ["worker_crashed"]
    assert table.loc[poison, "error"]["code"] == "worker_crashed"
    assert 0 < retries <= allowed


@deep
@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ({"DIES_OF": "*"}, "a Python worker died while the model ran"),
        ({"RAISES_IN_TASKS": "1"}, "the model raised ValueError in a Spark task"),
    ],
    ids=["dies", "raises"],
)
def test_a_model_that_fails_on_every_prompt_ends_the_job_soon(
    failure: dict[str, str],
    says: str,
    noting_uri: str,
    workplace: Workplace,
    samples: list[Sample],
) -> None:
    rows = distinct_rows(samples, 1_000)
    source, output = write_rows(rows, workplace.folder / "rows.jsonl"), workplace.folder / "out"
    job = workplace.start("--model", noting_uri, "--input", source, "--output", output, **failure)
    assert job.finish() == 1, job.words()
    errors = [line for line in job.stderr if line.startswith("error: ")]
    asked = len(asked_in_tasks(workplace.asked_log))
    print(f"{asked} requests asked; {errors}")
    assert errors == job.stderr[-1:]
    assert errors[0].startswith(f"error: {says}")
    assert errors[0].endswith("; the output is unchanged")
    assert not is_there(output)
    assert 0 < asked <= trials(256)  # each job asked one and failed
