"""Two runs that exclude each other, as processes that write to one table, at random moments.

PHI3_BATCH_RACES says how many races of each kind there are, PHI3_BATCH_SEED when the second starts.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from random import Random

import pandas as pd

from tests.conftest import Sample, deep
from tests.faults.harness import (
    SEED,
    Job,
    Row,
    Workplace,
    distinct_rows,
    read_table,
    write_rows,
    write_versions,
)

RACES = int(os.environ.get("PHI3_BATCH_RACES", "1"))
ROWS = 400
NEWER = "00000000000000000001.json"
PAUSE_MS = "20"  # so that the first is at work for as long as the second takes to begin


def begin_beside(job: Job, random: Random) -> None:
    """Wait for a moment of the time that a job takes to begin and to score half of its rows."""
    if random.random() < 0.3:
        job.ends_within(random.uniform(0, 8))
    else:
        share = random.uniform(0, 0.5)
        job.await_progress(lambda done, rows: done >= share * rows)


def count_faults(rows: Sequence[Row], table: pd.DataFrame) -> Counter[str]:
    """Rows lost and doubled, and rows of more than one run."""
    wanted = Counter((row["id"], row["prompt"]) for row in rows)
    there = Counter(zip(table["id"], table["prompt"], strict=True))
    return Counter(
        lost=(wanted - there).total(),
        doubled=(there - wanted).total(),
        mixed=table["fingerprint"].nunique() - 1,
    )


def say(kind: str, ends: Counter[tuple[int, int]], faults: Counter[str]) -> None:
    print(f"seed {SEED}: {RACES} races of {kind}, exit codes {dict(ends)}, {dict(faults)}")


@deep
def test_a_run_and_another_that_replaces_its_table(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    random, ends, faults = Random(SEED), Counter[tuple[int, int]](), Counter[str]()
    rows = distinct_rows(samples, ROWS)
    for race in range(RACES):
        place = workplace.enter(f"replaced-{race}")
        output = place.folder / "out"
        source = write_rows(rows, place.folder / "rows.jsonl")
        command = ("--model", noting_uri, "--input", source, "--output", output)
        first = place.start(*command, PAUSE_MS=PAUSE_MS)
        begin_beside(first, random)
        second = place.start(*command, "--keep", "id,prompt", "--mode", "overwrite", PAUSE_MS="1")
        codes = (first.finish(), second.finish())
        words = first.words() + second.words()
        table = read_table(output)
        found = count_faults(rows, table)
        assert not found.total(), (found, words)
        # The one whose rows are there is complete. The other says that it is not, unless it was
        # complete before it was replaced.
        seconds_table = "language" not in table
        assert codes[1 if seconds_table else 0] == 0, words
        assert 0 in codes
        if codes == (0, 0):
            assert first.progress()[-1] == (ROWS, ROWS)
            assert seconds_table
        assert not any("Traceback" in line for line in (*first.stderr, *second.stderr)), words
        ends[codes] += 1
        faults += found
    say("replacing", ends, faults)


@deep
def test_an_older_and_a_newer_incremental_run(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    random, ends, faults = Random(SEED), Counter[tuple[int, int]](), Counter[str]()
    old = distinct_rows(samples, ROWS)
    new = [
        row | {"prompt": f"Please: {row['prompt']}"} if row["id"] % 3 == 0 else row
        for row in distinct_rows(samples, ROWS + 10)
        if row["id"] % 10  # a tenth is gone
    ]
    versions = write_versions(workplace, old, new)
    for race in range(RACES):
        place = workplace.enter(f"incremental-{race}")
        source, output = place.folder / "in", place.folder / "out"
        shutil.copytree(versions, source, ignore=shutil.ignore_patterns("*1.json", "*1.crc"))
        command = ("--model", noting_uri, "--input", source, "--output", output, "--id", "id")
        first = place.start(*command, "--delete-removed", PAUSE_MS=PAUSE_MS)
        first.await_scoring()  # it reads the old version
        shutil.copy(versions / "_delta_log" / NEWER, source / "_delta_log")
        begin_beside(first, random)
        second = place.start(*command, "--delete-removed", PAUSE_MS="1")
        codes = (first.finish(), second.finish())
        words = first.words() + second.words()
        if codes[1]:  # the older has begun since it looked: the advice is to start again
            assert "start this one again" in words, words
            assert place.start(*command, "--delete-removed", PAUSE_MS="1").finish() == 0
        found = count_faults(new, read_table(output))
        del found["mixed"]  # unchanged rows stay as the older run has written them
        assert not found.total(), (found, words)
        assert not any("Traceback" in line for line in (*first.stderr, *second.stderr)), words
        ends[codes] += 1
        faults += found
    say("an older and a newer run with ids", ends, faults)
