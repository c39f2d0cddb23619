"""What the commits of other runs in the same table mean for a run: whether it may still write.

Policy alone, on what the table's history says. It is asked after a commit did not land, for a
commit lands only if no other of ours has landed since the writer last looked (``commits.py``).
"""

from collections.abc import Iterable

from phi3_batch.errors import SupersededError
from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.delta.record import Commit, RunIdentity

_START_AGAIN = "start this one again to see how the table is now"


def find_own_start(run: RunIdentity, output: str, commits: Iterable[Commit]) -> Commit | None:
    """Whether a run may begin, after others have written since it looked.

    Args:
        run: that has no first commit yet.
        output: as the user named it.
        commits: of others, since.

    Returns:
        The run's first commit, where another driver has made it.

    Raises:
        SupersededError: another run has begun or gone on, and what this one has seen of the table
            holds no longer.
    """
    for commit in commits:
        if commit.fingerprint == run.fingerprint and commit.record:
            return commit
        if commit.record:
            check_order(run, output, commit.record.run)
        begins_or_replaces = commit.record and (not run.ids or commit.record.replaces)
        if begins_or_replaces or (run.ids and not run.is_scored_like(commit.fingerprint)):
            raise SupersededError(
                f"another run has begun to write output {output} since this one looked at it:"
                f" {_START_AGAIN}"
            )
    return None


def check_comparison(
    run: RunIdentity, output: str, ledger: Ledger, commits: Iterable[Commit]
) -> None:
    """See that the rows which a run with ids was compared with are those that it begins on.

    Now that it has begun, no run of the same input goes on, and a second comparison will hold.

    Args:
        run: with ids, that has begun.
        output: as the user named it.
        ledger: the table's history.
        commits: of others, between the comparison and the first commit.

    Raises:
        SupersededError: some may be others.
    """
    for commit in commits:
        start = ledger.start_of(commit.fingerprint)
        if start is None or start.record is None or run.reads_the_input_of(start.record.run):
            raise SupersededError(
                f"an older run has written to output {output} since this one compared its rows,"
                " and has to end now: start this one again, it goes on"
            )


def check_order(run: RunIdentity, output: str, other: RunIdentity) -> None:
    """See that a run with ids does not read an older version of its input than another has.

    Raises:
        SupersededError: it does.
    """
    if run.reads_older_than(other):
        raise SupersededError(
            f"output {output} is written by a run of version {other.input_version} of the"
            f" input, and this one reads version {run.input_version}: start this one again"
            " to read the newest"
        )


def check_standing(
    run: RunIdentity, output: str, start: int | None, commits: Iterable[Commit]
) -> None:
    """See that no other run has taken the table over from one that is at work.

    Args:
        run: that has made its first commit.
        output: as the user named it.
        start: the version of the first commit; None where the history tells of none.
        commits: of others, since this run last looked.

    Raises:
        SupersededError: one has.
    """
    for commit in commits:
        if commit.record is None or (start is not None and commit.version <= start):
            continue
        record, other = commit.record, commit.record.run
        if record.replaces:
            raise SupersededError(
                f"another run (MLflow run {record.run_id}) has replaced output {output}, and no"
                " row of this one is in it any more: to score both, give them different outputs"
            )
        if commit.fingerprint == run.fingerprint:
            raise SupersededError(
                f"another driver has restarted this run in output {output}, because rows"
                " of it were gone: this one leaves the rest to it"
            )
        shares_rows = run.reads_the_input_of(other) or run.delete_removed
        if run.ids and other.ids and (shares_rows or not run.is_scored_like(other.fingerprint)):
            raise SupersededError(
                f"a later run (MLflow run {record.run_id}) has begun to write output {output},"
                " and has all rows of this one that are not there yet: nothing is left to do here"
                if run.reads_the_input_of(other) and run.is_scored_like(other.fingerprint)
                else f"a later run (MLflow run {record.run_id}) has begun to write output"
                f" {output}: {_START_AGAIN}"
            )
