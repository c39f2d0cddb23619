"""What happens to work that fails: another attempt, a search for the row that does it, or the end.

A chunk whose job fails is tried once more. If it fails again, the request that makes it fail is
looked for by halving, is blamed (it gets an error of its own), and the chunk is tried without it.
Here is the policy alone; what an attempt is, and what a job on a few requests is, comes from
outside.
"""

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Generic, NamedTuple, Protocol, TypeVar

from phi3_batch.errors import ScoringError
from phi3_batch.scoring.compat import JOB_ERRORS, SPARK_ERRORS
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job import faults
from phi3_batch.scoring.job.faults import Fault
from phi3_batch.scoring.rows.score import Blamed

# Rows that may kill the process that runs them before the model, or the machine, is to blame: so
# many, or one in a hundred.
_CRASHES_ALLOWED = 10
_CRASH_SHARE_ALLOWED = 0.01

_FRUITLESS_SEARCHES = 3
# Requests that are tried alone, before it is said that all of them fail.
_TRIED_ALONE = 5
# another attempt, or a search, may help
_OF_ROWS_OR_CHANCE = (Fault.CRASH, Fault.RAISED)

Result = TypeVar("Result", covariant=True)


class EverythingFailsError(ScoringError):
    """It is not for single rows that work fails."""


class Work(Protocol[Result]):
    """Something to do for many requests, which a single one of them may make fail."""

    def attempt(self, blamed: Blamed) -> Result:
        """Do it for all, without asking those that are blamed.

        Raises:
            JOB_ERRORS: it failed; nothing of it was written.
        """

    def requests(self, blamed: Blamed) -> Sequence[str]:
        """The ids of its requests but the blamed ones, each once, sorted."""

    def try_some(self, requests: Sequence[str], blamed: Blamed) -> None:
        """Ask neighbouring ones of the requests, no blamed one between them, and write nothing.

        Raises:
            SPARK_ERRORS: it failed.
        """


class Done(NamedTuple, Generic[Result]):
    """The result of work, and how many jobs failed or were run to find out why."""

    result: Result
    retries: int


class CrashLimit:
    """Counts the rows that kill processes, and says when they are too many to be the rows' fault.

    Args:
        requests: of the run.
    """

    def __init__(self, requests: int) -> None:
        self._allowed = max(_CRASHES_ALLOWED, int(requests * _CRASH_SHARE_ALLOWED))
        self._found = 0
        self._lock = Lock()

    def add(self) -> None:
        """Count one.

        Raises:
            ScoringError: that is one too many.
        """
        with self._lock:
            self._found += 1
            if self._found > self._allowed:
                raise ScoringError(
                    f"{self._found:,} requests have each failed alone, which looks like the model"
                    " or too little memory, not like the rows"
                )


def persist(work: Work[Result], limit: CrashLimit, output: Location) -> Done[Result]:
    """Do some work, through whatever goes wrong.

    Args:
        work: what is to be done.
        limit: of the run.
        output: of the run, to tell its files from the input's.

    Raises:
        ScoringError: it cannot be done; nothing of it was written.
    """
    blamed: Blamed = {}
    retries = failures = 0
    while True:
        try:
            return Done(work.attempt(blamed), retries)
        except JOB_ERRORS as error:
            retries += 1
            fault = faults.classify(error)
            if fault not in _OF_ROWS_OR_CHANCE:
                raise faults.failure(error, output) from error
            failures += 1
            if failures == 1 and fault is Fault.CRASH:
                continue  # by chance, perhaps: a machine was taken away, memory was short
            culprit, trials = _search(work, blamed, error, output)
            retries += trials
            if culprit is not None:
                limit.add()
                blamed[culprit] = faults.row_error(error)
                failures = 0
            elif failures > _FRUITLESS_SEARCHES:
                raise ScoringError(
                    f"{faults.why(error)}, with many rows at once and with none of them alone:"
                    " give executors more memory"
                ) from error


def _search(
    work: Work[object], blamed: Blamed, error: Exception, output: Location
) -> tuple[str | None, int]:
    """The request that fails alone, and how many jobs it took to find it."""
    trials = 0

    def fails(some: Sequence[str]) -> bool:
        nonlocal trials
        trials += 1
        try:
            work.try_some(some, blamed)
        except SPARK_ERRORS as failure:
            if faults.classify(failure) in _OF_ROWS_OR_CHANCE:
                return True
            raise faults.failure(failure, output) from failure
        return False

    try:
        return find_culprit(work.requests(blamed), fails), trials
    except EverythingFailsError as nothing_works:
        raise ScoringError(f"{faults.why(error)}; {nothing_works}") from error


def find_culprit(requests: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> str | None:
    """The request that makes a job fail, by halving: about log2 of their number of trials.

    Args:
        requests: among which it is, sorted.
        fails: whether a job on neighbouring ones of them fails.

    Returns:
        One request that fails when it is alone; None when there is no such one.

    Raises:
        EverythingFailsError: whatever was tried failed, and so it is none of the requests.
    """
    low, high, survived, alone_failed = 0, len(requests), False, False
    while high - low > 1:
        middle = (low + high) // 2
        if fails(requests[low:middle]):
            high, alone_failed = middle, middle - low == 1
        else:
            low, survived, alone_failed = middle, True, False
    # twice: once may be by chance, and a row that is blamed has lost its completion
    if not (alone_failed or fails(requests[low:high])) or not fails(requests[low:high]):
        return None
    if not survived and len(requests) > 1 and all(map(fails, _others(requests, low))):
        raise EverythingFailsError("every request that was tried failed, each alone too")
    return requests[low]


def _others(requests: Sequence[str], culprit: int) -> Iterator[Sequence[str]]:
    """Some requests by themselves, from all over: of a few bad ones, not all are among them."""
    places = {
        round(part * (len(requests) - 1) / _TRIED_ALONE) for part in range(1, _TRIED_ALONE + 1)
    }
    return (requests[place : place + 1] for place in sorted(places - {culprit}))
