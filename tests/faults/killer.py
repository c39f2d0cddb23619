"""Kill driver and JVM at random moments, and run the same command again, until a table is whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.harness import (
    SEED,
    Comparison,
    Job,
    Row,
    Workplace,
    asked_in_tasks,
    compare,
    largest_chunk,
    write_versions,
)

IN_FLIGHT = 2  # chunks, which are what a kill may cost


@dataclass
class Killer:
    """Kills jobs at random moments.

    One in four is killed at a moment of the time that the last ones took to begin scoring; the
    others some rows further than they were when they began, and half of these while the model
    answers, where it can be seen.
    """

    random: Random
    sees_answers: bool
    start_s: float = 10.0  # until the first line of progress
    hits: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return self.hits.total()

    def strike(self, job: Job, place: Workplace) -> bool:
        """Wait for a moment and kill a job then; False if it ended before."""
        kind, wait_s = self.random.random(), self.random.uniform(0, 3)
        if kind < 0.25:
            wait_s = self.random.uniform(0, self.start_s)
        else:
            self._await_rows(job, share=self.random.uniform(0, 0.25))
        if self.sees_answers and kind > 0.6:
            wait_s = 0
            place.await_asked(self.random.randint(1, 150), job)
        if job.ends_within(wait_s):
            return False
        self.hits[where(job)] += 1
        job.kill()
        return True

    def _await_rows(self, job: Job, share: float) -> None:
        begun = job.await_progress(lambda done, rows: True)
        if begun:
            self.start_s = job.age_s
            job.await_progress(lambda done, rows: done >= min(rows, begun[0] + share * rows))


def where(job: Job) -> str:
    """How far a job is."""
    if not job.progress():
        return "before scoring"
    done, rows = job.progress()[-1]
    return "while scoring" if done < rows else "after the last commit"


@dataclass(frozen=True)
class Ordeal:
    """What a table has gone through, and how it came out."""

    kills: int
    comparison: Comparison
    asked: Sequence[str]
    largest_chunk: int

    @property
    def recomputed(self) -> int:
        """Requests that were answered more than once."""
        return len(self.asked) - len(set(self.asked))

    @property
    def recomputable(self) -> int:
        """As many as so many kills may cost."""
        return self.kills * IN_FLIGHT * self.largest_chunk


def endure(
    killer: Killer,
    kills: int,
    place: Workplace,
    model: str,
    source: Path,
    rows: list[Row],
    known: Mapping[str, str],
) -> Ordeal:
    """Score a table, with so many kills at most."""
    output = place.folder / "out"
    before, last = killer.kills, killer.kills + kills
    while True:
        job = place.start("--model", model, "--input", source, "--output", output, PAUSE_MS="2")
        if killer.kills == last or not killer.strike(job, place):
            break
    assert job.finish() == 0, job.words()
    return Ordeal(
        killer.kills - before,
        compare(rows, output, known),
        asked_in_tasks(place.asked_log),
        largest_chunk(output),
    )


def endure_all(
    kills: int,
    workplace: Workplace,
    model: str,
    rows: list[Row],
    known: Mapping[str, str],
    *,
    sees_answers: bool,
) -> list[Ordeal]:
    """Score the rows into one table after the other until there have been so many kills."""
    killer, ordeals = Killer(Random(SEED), sees_answers), list[Ordeal]()
    source = write_versions(workplace, rows)
    while killer.kills < kills:
        place = workplace.enter(f"table-{len(ordeals)}")
        ordeals.append(endure(killer, kills - killer.kills, place, model, source, rows, known))
    found = [ordeal.comparison for ordeal in ordeals]
    print(
        f"seed {SEED}: {killer.kills} kills ({dict(killer.hits)}), {len(ordeals)} tables,"
        f" {sum(one.rows for one in found):,} rows, {sum(one.lost for one in found)} lost,"
        f" {sum(one.doubled for one in found)} doubled,"
        f" {sum(one.wrong + one.with_error for one in found)} wrong,"
        f" {sum(ordeal.recomputed for ordeal in ordeals):,} recomputed"
        f" (at most {sum(ordeal.recomputable for ordeal in ordeals):,})"
    )
    return ordeals
