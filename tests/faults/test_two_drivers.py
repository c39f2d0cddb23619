"""Two drivers that score the same rows into the same table at the same time."""

from pathlib import Path

from tests.conftest import Sample, deep
from tests.faults.harness import (
    Row,
    Workplace,
    asked_in_tasks,
    assert_each_row_once,
    distinct_rows,
    write_rows,
)


def score_twice_at_once(
    workplace: Workplace, model: str, rows: list[Row], output: Path, *options: str
) -> None:
    """Two processes with the same command; both must succeed."""
    source = write_rows(rows, workplace.folder / "rows.jsonl")
    before = len(asked_in_tasks(workplace.asked_log))
    arguments = ("--model", model, "--input", source, "--output", output, *options)
    jobs = [workplace.start(*arguments, PAUSE_MS="2") for _ in range(2)]
    codes = [job.finish() for job in jobs]
    assert codes == [0, 0], "".join(job.words() for job in jobs)
    answered = len(asked_in_tasks(workplace.asked_log)) - before
    print(
        f"{len(rows):,} rows {' '.join(options)}: written"
        f" {' and '.join(job.field('scored') or 'nothing' for job in jobs)};"
        f" {answered:,} requests answered"
    )
    assert answered > len(rows)  # else they were not at work at the same time


@deep
def test_two_drivers_that_begin_and_then_replace_a_table(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows, output = distinct_rows(samples, 2_000), workplace.folder / "out"
    score_twice_at_once(workplace, noting_uri, rows[:1_000], output)
    assert_each_row_once(rows[:1_000], output)
    score_twice_at_once(workplace, noting_uri, rows[1_000:], output, "--mode", "overwrite")
    assert_each_row_once(rows[1_000:], output)


@deep
def test_two_drivers_of_rows_with_ids(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows, output = distinct_rows(samples, 1_000), workplace.folder / "out"
    score_twice_at_once(workplace, noting_uri, rows, output, "--id", "id")
    assert_each_row_once(rows, output)
