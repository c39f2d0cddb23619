"""What runs have done to an output table, as its Delta history says.

Every commit of ours carries a line of JSON, Delta's ``userMetadata``: which run, which chunk and,
in a run's first commit, how to tell its rows again. The rows themselves say which chunks are
there; the history adds what rows cannot: how an earlier run differs from this one, and whether
rows were taken away since. It may be cut (Delta keeps 30 days by default) without harm to a
resumed run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pyspark.sql import SparkSession

from phi3_batch.scoring.tables import Location

_KEY = "phi3_batch"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run's first commit says of it.

    Attributes:
        fingerprint: of the run.
        settings: what shapes results, in words; texts as digests.
        input: as the user named it.
        input_version: of the Delta table; None for files and views.
        request_columns: of the input, whose values are the request.
        ids: the columns of ``--id``.
        limit: rows scored at most.
        rows: that the run has to write.
        chunks: in how many chunks.
        run_id: of MLflow's run.
    """

    fingerprint: str
    settings: Mapping[str, str]
    input: str
    input_version: int | None
    request_columns: Sequence[str]
    ids: Sequence[str]
    limit: int | None
    rows: int
    chunks: int
    run_id: str


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit of ours.

    Attributes:
        version: of the table.
        committed: when.
        fingerprint: of the run.
        start: the version of the run's first commit; None in that commit itself.
        chunk: which was written; None where a run had nothing to write.
        record: in a run's first commit.
    """

    version: int
    committed: datetime
    fingerprint: str
    start: int | None
    chunk: int | None
    record: RunRecord | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The commits of ours in a table's history, oldest first."""

    commits: tuple[Commit, ...] = ()

    @property
    def last_start(self) -> Commit | None:
        """The latest first commit of any run."""
        return next((commit for commit in reversed(self.commits) if commit.record), None)

    def start_of(self, fingerprint: str) -> Commit | None:
        """The latest first commit of a run."""
        starts = self._starts(fingerprint)
        return starts[-1] if starts else None

    def first_start(self, fingerprint: str, above: int) -> Commit | None:
        """The earliest first commit of a run above a version.

        Two drivers that begin one run at once may both commit; both then go by the earlier.
        """
        starts = [commit for commit in self._starts(fingerprint) if commit.version > above]
        return starts[0] if starts else None

    def _starts(self, fingerprint: str) -> list[Commit]:
        return [
            commit for commit in self.commits if commit.record and commit.fingerprint == fingerprint
        ]

    def chunks_since(self, start: Commit) -> set[int]:
        """The chunks that were committed under a first commit."""
        return {
            commit.chunk
            for commit in self.commits
            if commit.chunk is not None and start.version in (commit.version, commit.start)
        }


def read_ledger(spark: SparkSession, output: Location) -> Ledger:
    """Read the history of a Delta table that is there."""
    history = spark.sql(f"DESCRIBE HISTORY {output.sql}")
    ours = history.where(history["userMetadata"].startswith(f'{{"{_KEY}"'))
    rows = ours.select("version", "timestamp", "userMetadata").orderBy("version").collect()
    return Ledger(
        tuple(_read(row["version"], row["timestamp"], row["userMetadata"]) for row in rows)
    )


def describe_commit(
    fingerprint: str,
    *,
    chunk: int | None,
    start: int | None = None,
    record: RunRecord | None = None,
) -> str:
    """The userMetadata of a commit of ours."""
    fields: dict[str, Any] = {"fingerprint": fingerprint, "start": start, "chunk": chunk}
    if record:
        fields["run"] = asdict(record)
    return json.dumps({_KEY: fields})


def _read(version: int, committed: datetime, text: str) -> Commit:
    fields = json.loads(text)[_KEY]
    return Commit(
        version=version,
        committed=committed,
        fingerprint=fields["fingerprint"],
        start=fields["start"],
        chunk=fields["chunk"],
        record=RunRecord(**fields["run"]) if "run" in fields else None,
    )
