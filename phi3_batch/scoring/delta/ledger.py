"""What runs have done to an output table, as its Delta history says.

Every commit of ours carries a line of JSON, Delta's ``userMetadata``: which run, which chunk, its
number in the sequence of all our commits and, in a run's first commit, how to tell its rows again.
The rows themselves say which chunks are there; the history adds what rows cannot: how an earlier
run differs from this one, whether rows were taken away since, and what other runs do meanwhile. It
may be cut (Delta keeps 30 days by default) without harm to a resumed run.
"""

from dataclasses import dataclass, replace

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from phi3_batch.scoring.delta.record import KEY, Commit, read_commit
from phi3_batch.scoring.delta.tables import Location

_FEW = 8  # commits, which are read where only the latest ones are asked for


@dataclass(frozen=True, slots=True)
class Ledger:
    """The commits of ours in a table's history, oldest first.

    Attributes:
        commits: of ours.
        first_version: the oldest version that the history tells of; 0 where it is whole.
        last_version: the newest; -1 where there is no table.
    """

    commits: tuple[Commit, ...] = ()
    first_version: int = 0
    last_version: int = -1

    @property
    def next_number(self) -> int:
        """Of the next commit in the sequence.

        Where all numbered commits have been cut off, it is larger than any of them: there are no
        more of them than versions.
        """
        numbers = [commit.number for commit in self.commits if commit.number is not None]
        if numbers:
            return max(numbers) + 1
        return 1 if self.first_version == 0 else self.last_version + 2

    def as_of(self, version: int) -> "Ledger":
        """The history as it was at a version of the table."""
        commits = tuple(commit for commit in self.commits if commit.version <= version)
        return replace(self, commits=commits, last_version=min(version, self.last_version))

    @property
    def last_start(self) -> Commit | None:
        """The latest first commit of any run."""
        return next((commit for commit in reversed(self.commits) if commit.record), None)

    def start_of(self, fingerprint: str) -> Commit | None:
        """The latest first commit of a run."""
        return next(
            (
                commit
                for commit in reversed(self.commits)
                if commit.record and commit.fingerprint == fingerprint
            ),
            None,
        )

    def is_finished(self, start: Commit) -> bool:
        """Whether all the commits were made that a run's first commit announced."""
        record = start.record
        if record is None or record.commits is None:
            return True  # of an older release, which cannot be at work any more
        made = [
            commit
            for commit in self.commits
            if commit.fingerprint == start.fingerprint
            and start.version in (commit.version, commit.start)
        ]
        return len(made) > record.commits

    @property
    def is_all_ours(self) -> bool:
        """Whether the table has nothing but what the runs of this history have written.

        It may have more where the history was cut, or our first run has added to a table that was
        there.
        """
        first = next(iter(self.since_replaced()), None)
        return bool(first and first.record and first.record.replaces)

    @property
    def has_no_others(self) -> bool:
        """Whether every commit since the table was made or replaced is one of ours."""
        commits = self.since_replaced()
        return self.is_all_ours and len(commits) == self.last_version - commits[0].version + 1

    def since_replaced(self) -> tuple[Commit, ...]:
        """The commits since one of ours made or replaced the table; all, where none did."""
        for place in range(len(self.commits) - 1, -1, -1):
            record = self.commits[place].record
            if record and record.replaces:
                return self.commits[place:]
        return self.commits


def read_ledger(spark: SparkSession, output: Location, *, above: int = -1) -> Ledger:
    """Read the history of a Delta table that is there.

    Args:
        spark: the session.
        output: the table.
        above: read the commits above this version only.
    """
    limit = None if above < 0 else _FEW
    while True:
        few = "" if limit is None else f" LIMIT {limit}"
        history = spark.sql(f"DESCRIBE HISTORY {output.sql}{few}")
        # a foreign commit's text is nobody's business here
        ours = F.when(F.col("userMetadata").startswith(f'{{"{KEY}"'), F.col("userMetadata"))
        rows = history.select("version", "timestamp", ours.alias("ours")).collect()
        versions = [row["version"] for row in rows]
        if limit is None or len(rows) < limit or min(versions) <= above + 1:
            break
        limit *= 4
    rows.sort(key=lambda row: int(row["version"]))
    read = (
        read_commit(row["version"], row["timestamp"], row["ours"]) for row in rows if row["ours"]
    )
    commits = tuple(commit for commit in read if commit and commit.version > above)
    return Ledger(commits, min(versions), max(versions))
