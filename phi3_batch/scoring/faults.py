"""What made a Spark job fail: whether to try again, to look for a bad row, or to give up."""

import re
from collections.abc import Callable, Sequence
from enum import Enum
from threading import Lock

from py4j.protocol import Py4JError, Py4JJavaError

from phi3_batch.errors import InputGoneError, RowErrorCode, ScoringError
from phi3_batch.scoring.said import first_line

# Rows that may kill the process that runs them before the model, or the machine, is to blame: so
# many, or one in a hundred.
_CRASHES_ALLOWED = 10
_CRASH_SHARE_ALLOWED = 0.01


class Fault(Enum):
    """What to do about a failed job."""

    CRASH = "a process died"  # by chance, or by a row
    RAISED = "the model raised an exception"  # by a row, or always
    FATAL = "nothing that trying again would change"


# Spark's words for a worker or an executor that is gone
_CRASHES = (
    "Python worker exited unexpectedly",
    "PythonWorkerFactory.createWorker",  # it died before it had said who it is
    "Python worker process terminated",  # it was idle for too long, and killed
    "ExecutorLostFailure",
    "Connection reset",
    "Broken pipe",
    "FetchFailed",
    "FAILED_TO_FETCH",
    "was lost",
    "Checkpoint block",  # of a scored chunk, on an executor that is gone
)
_FULL_DISK = ("No space left on device", "Disk quota exceeded")
_INPUT_GONE = "files of the input's version are gone (a VACUUM of a table that was overwritten?)"
_GONE_FILE = ("FAILED_READ_FILE", "FileNotFoundException", "DELTA_FILE_NOT_FOUND", "does not exist")


def classify(error: Exception) -> Fault:
    """What kind of failure an exception of Spark, Delta or the JVM is."""
    text = str(error)
    if _ours(text) or _miscounted(text) or any(words in text for words in _FULL_DISK):
        return Fault.FATAL
    if _jvm_is_gone(error):  # which no retry brings back, though a broken connection looks so
        return Fault.FATAL
    if _raised(text):
        return Fault.RAISED
    if any(words in text for words in _CRASHES):
        return Fault.CRASH
    return Fault.FATAL


def why(error: Exception) -> str:
    """What made a Spark job fail, in one line that quotes nobody's data."""
    text = str(error)
    if ours := _ours(text):
        return ours
    if _miscounted(text):
        return "the model returned another number of results than rows"
    if any(words in text for words in _FULL_DISK):
        return "the disk is full, of the output or of Spark's temporary files (spark.local.dir)"
    if _jvm_is_gone(error):
        return "Spark's driver JVM is gone (killed, or out of memory: spark.driver.memory)"
    if raised := _raised(text):
        return f"the model raised {raised} in a Spark task"
    if any(words in text for words in _CRASHES):
        return "a Python worker died while the model ran (out of memory, perhaps)"
    if any(words in text for words in _GONE_FILE):
        return _INPUT_GONE
    return first_line(error)


def failure(error: Exception) -> ScoringError:
    """What to raise for a job that failed and is not tried again."""
    said = why(error)
    return InputGoneError(said) if said == _INPUT_GONE else ScoringError(said)


def _jvm_is_gone(error: Exception) -> bool:
    # An error of the JVM's own has its exception, or its trace; without either nobody answers.
    from_jvm = isinstance(error, Py4JJavaError) or "Trace:" in str(error)
    return isinstance(error, Py4JError | OSError) and not from_jvm


def _ours(text: str) -> str | None:
    found = re.search(r"phi3_batch\.errors\.\w+: (.+)", text)
    return found.group(1) if found else None


def _miscounted(text: str) -> bool:
    return "[RESULT_ROWS_MISMATCH]" in text or "[OUTPUT_EXCEEDS_INPUT_ROWS]" in text


def _raised(text: str) -> str | None:
    """The class of what another model raised, or what was raised around it."""
    if by_model := re.search(r"RuntimeError: the model raised (\w+)$", text, re.MULTILINE):
        return by_model.group(1)
    raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception))\b", text, re.MULTILINE)
    return raised[-1] if raised and "Traceback (most recent call last)" in text else None


def find_culprit(requests: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> str | None:
    """The request that makes a job fail, by halving: about log2 of their number of trials.

    Args:
        requests: among which it is, sorted.
        fails: whether a job on neighbouring ones of them fails.

    Returns:
        One request that fails when it is alone; None when there is no such one.

    Raises:
        ScoringError: whatever was tried failed, and so it is none of the requests.
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
    if not survived and len(requests) > 1 and fails(requests[-1:]):
        raise ScoringError("every request that was tried failed, one alone too")
    return requests[low]


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


def row_error(error: Exception) -> tuple[RowErrorCode, str]:
    """What the row of a culprit says."""
    if raised := _raised(str(error)):
        return RowErrorCode.ENGINE_ERROR, f"the model raised {raised}"
    return RowErrorCode.WORKER_CRASHED, "the process that ran the model died of this row alone"
