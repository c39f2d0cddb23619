"""What the commits of other runs in the same table mean for a run: whether it may still write.

Policy alone, on what the table's history says. It is asked after a commit did not land, for a
commit lands only if no other of ours has landed since the writer last looked (``commits.py``).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from phi3_batch.errors import SupersededError
from phi3_batch.scoring.delta.ledger import Commit, Ledger, RunRecord
from phi3_batch.scoring.rows import identity

_START_AGAIN = "start this one again to see how the table is now"


@dataclass(frozen=True, slots=True)
class Contender:
    """A run that writes, or is about to.

    Attributes:
        fingerprint: of the run.
        input: as the user named it.
        input_id: Delta's id of the input table; None for files and views.
        input_version: of the Delta table; None for files and views.
        output: the table to write, as the user named it.
        ids: columns that name a row, for an incremental run.
        delete_removed: whether rows will be deleted that the input has no longer.
    """

    fingerprint: str
    input: str
    input_id: str | None
    input_version: int | None
    output: str
    ids: tuple[str, ...]
    delete_removed: bool

    def is_same_run(self, commit: Commit) -> bool:
        """Whether a commit is of this very run, by whatever driver."""
        return commit.fingerprint == self.fingerprint

    def reads_the_input_of(self, other: RunRecord) -> bool:
        """Whether another run reads the same table, perhaps at another version."""
        if self.input_id and other.input_id:
            return self.input_id == other.input_id
        return self.input == other.input

    def is_scored_like(self, other: RunRecord | Commit) -> bool:
        """Whether another run has the same model, parameters and template."""
        return identity.settings_of(self.fingerprint) == identity.settings_of(other.fingerprint)


def find_own_start(run: Contender, commits: Iterable[Commit]) -> Commit | None:
    """Whether a run may begin, after others have written since it looked.

    Args:
        run: that has no first commit yet.
        commits: of others, since.

    Returns:
        The run's first commit, where another driver has made it.

    Raises:
        SupersededError: another run has begun or gone on, and what this one has seen of the table
            holds no longer.
    """
    for commit in commits:
        if run.is_same_run(commit) and commit.record:
            return commit
        if commit.record:
            check_order(run, commit.record)
        begins_or_replaces = commit.record and (not run.ids or commit.record.replaces)
        if begins_or_replaces or (run.ids and not run.is_scored_like(commit)):
            raise SupersededError(
                f"another run has begun to write output {run.output} since this one looked at it:"
                f" {_START_AGAIN}"
            )
    return None


def check_comparison(run: Contender, ledger: Ledger, commits: Iterable[Commit]) -> None:
    """See that the rows which a run with ids was compared with are those that it begins on.

    Now that it has begun, no run of the same input goes on, and a second comparison will hold.

    Args:
        run: with ids, that has begun.
        ledger: the table's history.
        commits: of others, between the comparison and the first commit.

    Raises:
        SupersededError: some may be others.
    """
    for commit in commits:
        start = ledger.start_of(commit.fingerprint)
        if start is None or start.record is None or run.reads_the_input_of(start.record):
            raise SupersededError(
                f"an older run has written to output {run.output} since this one compared its rows,"
                " and has to end now: start this one again, it goes on"
            )


def check_order(run: Contender, other: RunRecord) -> None:
    """See that a run with ids does not read an older version of its input than another has.

    Raises:
        SupersededError: it does.
    """
    if _reads_newer(other, run):
        raise SupersededError(
            f"output {run.output} is written by a run of version {other.input_version} of the"
            f" input, and this one reads version {run.input_version}: start this one again"
            " to read the newest"
        )


def check_standing(run: Contender, start: int | None, commits: Iterable[Commit]) -> None:
    """See that no other run has taken the table over from one that is at work.

    Args:
        run: that has made its first commit.
        start: the version of the first commit; None where the history tells of none.
        commits: of others, since this run last looked.

    Raises:
        SupersededError: one has.
    """
    for commit in commits:
        if commit.record is None or (start is not None and commit.version <= start):
            continue
        other = commit.record
        if other.replaces:
            raise SupersededError(
                f"another run (MLflow run {other.run_id}) has replaced output {run.output}, and no"
                " row of this one is in it any more: to score both, give them different outputs"
            )
        if run.is_same_run(commit):
            raise SupersededError(
                f"another driver has begun this run anew in output {run.output}, for rows of it"
                " were taken away: this one leaves the rest to it"
            )
        shares_rows = run.reads_the_input_of(other) or run.delete_removed
        if run.ids and other.ids and (shares_rows or not run.is_scored_like(other)):
            raise SupersededError(
                f"a later run (MLflow run {other.run_id}) has begun to write output {run.output},"
                " and has all rows of this one that are not there yet: nothing is left to do here"
                if run.reads_the_input_of(other) and run.is_scored_like(other)
                else f"a later run (MLflow run {other.run_id}) has begun to write output"
                f" {run.output}: {_START_AGAIN}"
            )


def _reads_newer(one: RunRecord, other: Contender) -> bool:
    """Whether a run with ids reads a later version of the same Delta table than another."""
    if not (one.ids and other.ids and one.input_id and one.input_id == other.input_id):
        return False  # versions of different tables say nothing of each other
    assert one.input_version is not None  # a table that has an id has versions
    assert other.input_version is not None
    return one.input_version > other.input_version
