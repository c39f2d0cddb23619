"""What a commit of ours says of itself: a line of JSON, Delta's ``userMetadata``.

Written with a version, and read as another release may have written it: a field that is missing, or
is not what this release takes it for, is as good as not said.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from phi3_batch.scoring.rows.identity import settings_of

# 1, which is not written, had the fields of RunRecord and RunIdentity as they are, or fewer.
VERSION = 2

# What the JSON of a commit of ours begins with; a foreign commit's is nobody's business here.
KEY = "phi3_batch"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What tells a run from others, and its rows again.

    Attributes:
        fingerprint: of the run.
        settings: what shapes results, in words; texts as digests.
        input: as the user named it.
        input_id: Delta's id of the input table; None for files, views, and by older releases.
        input_version: of the Delta table; None for files and views.
        request_columns: of the input, whose values are the request.
        ids: columns that name a row, for an incremental run.
        delete_removed: with ids, whether rows are deleted that the input has no longer.
        limit: rows scored at most; None for all.
    """

    fingerprint: str
    settings: Mapping[str, str]
    input: str
    input_id: str | None
    input_version: int | None
    request_columns: Sequence[str]
    ids: Sequence[str]
    delete_removed: bool
    limit: int | None

    def reads_the_input_of(self, other: "RunIdentity") -> bool:
        """Whether another run reads the same table, perhaps at another version."""
        if self.input_id and other.input_id:
            return self.input_id == other.input_id
        return self.input == other.input

    def is_scored_like(self, fingerprint: str) -> bool:
        """Whether another run, by its fingerprint, has the same model, parameters and template."""
        return settings_of(self.fingerprint) == settings_of(fingerprint)

    def reads_older_than(self, other: "RunIdentity") -> bool:
        """Whether both go by ids, and this one reads an earlier version of the same Delta table."""
        if not (self.ids and other.ids and self.input_id and self.input_id == other.input_id):
            return False  # versions of different tables say nothing of each other
        if self.input_version is None or other.input_version is None:
            return False
        return self.input_version < other.input_version


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run's first commit says of it.

    Attributes:
        run: which.
        rows: that it has to write; None where that is not said.
        chunks: in how many chunks; None where that is not said.
        run_id: of MLflow's run; None where that is not said.
        mode: how the commit was made: "error" made the table, "overwrite" replaced it, "append"
            added to it; None by older releases.
        commits: that are to follow this one; None by older releases.
        version: of what is written.
    """

    run: RunIdentity
    rows: int | None
    chunks: int | None
    run_id: str | None
    mode: str | None
    commits: int | None
    version: int = VERSION

    @property
    def replaces(self) -> bool:
        """Whether the table has nothing from before this run."""
        return self.mode in ("error", "overwrite")

    @property
    def is_of_newer_release(self) -> bool:
        """Whether it may mean what this release does not know."""
        return self.version > VERSION


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit of ours.

    Attributes:
        version: of the table.
        committed: when.
        fingerprint: of the run.
        start: the version of the run's first commit; None in that commit itself.
        chunk: which was written; None where a commit writes none.
        record: in a run's first commit.
        number: in the sequence of our commits in this table; None by older releases.
        driver: which process made it; None by older releases.
    """

    version: int
    committed: datetime
    fingerprint: str
    start: int | None
    chunk: int | None
    record: RunRecord | None
    number: int | None = None
    driver: str | None = None


def describe_commit(
    fingerprint: str,
    *,
    chunk: int | None,
    number: int,
    driver: str,
    start: int | None = None,
    record: RunRecord | None = None,
) -> str:
    """The userMetadata of a commit."""
    told: dict[str, Any] = {"fingerprint": fingerprint, "start": start, "chunk": chunk}
    told |= {"number": number, "driver": driver}
    if record:
        beside = asdict(record)
        told["run"] = beside.pop("run") | beside
    return json.dumps({KEY: told})


def read_commit(version: int, committed: datetime, text: str) -> Commit | None:
    """A commit by its userMetadata; None where it does not say of which run it is."""
    try:
        told = json.loads(text)[KEY]
    except (ValueError, KeyError, TypeError):
        return None
    fingerprint = _text(told, "fingerprint") if isinstance(told, dict) else None
    if fingerprint is None:
        return None
    return Commit(
        version=version,
        committed=committed,
        fingerprint=fingerprint,
        start=_number(told, "start"),
        chunk=_number(told, "chunk"),
        record=_read_run(told["run"], fingerprint) if "run" in told else None,
        number=_number(told, "number"),
        driver=_text(told, "driver"),
    )


def _read_run(told: Any, fingerprint: str) -> RunRecord:
    if not isinstance(told, dict):
        told = {}
    settings = told.get("settings")
    run = RunIdentity(
        fingerprint=fingerprint,
        settings={
            name: value
            for name, value in (settings if isinstance(settings, dict) else {}).items()
            if isinstance(value, str)
        },
        input=_text(told, "input") or "",
        input_id=_text(told, "input_id"),
        input_version=_number(told, "input_version"),
        request_columns=_texts(told, "request_columns"),
        ids=_texts(told, "ids"),
        delete_removed=told.get("delete_removed") is True,
        limit=_number(told, "limit"),
    )
    return RunRecord(
        run,
        rows=_number(told, "rows"),
        chunks=_number(told, "chunks"),
        run_id=_text(told, "run_id"),
        mode=_text(told, "mode"),
        commits=_number(told, "commits"),
        version=_number(told, "version") or 1,
    )


def _number(told: Mapping[str, Any], name: str) -> int | None:
    value = told.get(name)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def _text(told: Mapping[str, Any], name: str) -> str | None:
    value = told.get(name)
    return value if isinstance(value, str) else None


def _texts(told: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = told.get(name)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()
