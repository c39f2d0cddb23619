"""What made a Spark job fail: whether to try again, to look for a bad row, or to give up."""

import errno
import re
from enum import Enum

from phi3_batch.errors import InputGoneError, RowErrorCode, ScoringError
from phi3_batch.scoring import session
from phi3_batch.scoring.compat import JVM_ERRORS, JVM_EXCEPTIONS
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.rows.worker import MISCOUNTED
from phi3_batch.scoring.said import JVM_IS_GONE, first_line


class Fault(Enum):
    """What to do about a failed job."""

    CRASH = "a process died"  # by chance, or by a row
    RAISED = "the model raised an exception"  # by a row, or always
    FATAL = "nothing that trying again would change"


# Spark's words for a worker or an executor that is gone
_CRASHES = (
    "Python worker exited unexpectedly",
    "PythonWorkerFactory.createWorker",  # it died before it had said who it is
    "ExecutorLostFailure",
    "Connection reset",
    "Broken pipe",
    "FetchFailed",
    "FAILED_TO_FETCH",
    "was lost",
    "Checkpoint block",  # of a scored chunk, on an executor that is gone
)

# What the system refuses, in its own words and numbers: no row's fault.
_FULL_DISK = "the disk is full, of the output or of Spark's temporary files (spark.local.dir)"
_NOT_ALLOWED = (
    "{} may not be read or written by this user: check the owner and the mode of the output's"
    " folder and of Spark's temporary files (spark.local.dir)"
)
_NOT_WRITTEN = "the output's folder cannot be made or written by this user: check who owns it"
_READ_ONLY = "{} is on a file system that is read-only"
_TOO_MANY_FILES = "too many files are open: raise the limit (ulimit -n)"
_REFUSED = {
    "No space left on device": _FULL_DISK,
    "Disk quota exceeded": _FULL_DISK,
    "Too many open files": _TOO_MANY_FILES,
    "Permission denied": _NOT_ALLOWED,
    "Operation not permitted": _NOT_ALLOWED,
    "AccessDeniedException": _NOT_ALLOWED,
    "AccessControlException": _NOT_ALLOWED,
    "Read-only file system": _READ_ONLY,
    "DELTA_CANNOT_CREATE_LOG_PATH": _NOT_WRITTEN,
    "Mkdirs failed to create": _NOT_WRITTEN,
}
_REFUSED_NUMBERS = {
    errno.ENOSPC: _FULL_DISK,
    errno.EDQUOT: _FULL_DISK,
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _READ_ONLY,
}
# A model that meets these in a task has no place to work; all else that it raises is its own.
_ENDS_ANY_MODEL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
# Lines of Java's about files; others may quote rows.
_OF_FILES = re.compile(
    r"^.*\b(?:java\.(?:io|nio)|org\.apache\.hadoop)\.[\w.$]*(?:Exception|Error)\b.*$"
    r"|^.*\[DELTA_CANNOT_CREATE_LOG_PATH\].*$",
    re.MULTILINE,
)
_FULL_DISK_ANYWHERE = ("No space left on device", "Disk quota exceeded")

_NO_MEMORY = (
    "Spark's JVM has no memory left: give it more (spark.driver.memory where it runs on one"
    " machine, spark.executor.memory on a cluster)"
)
_OUT_OF_MEMORY = "java.lang.OutOfMemoryError"

_INPUT_GONE = "files of the input's version are gone (a VACUUM of a table that was overwritten?)"
_OUTPUT_GONE = (
    "files of the output are gone (deleted by hand, or by a VACUUM of versions that are in use?):"
    " restore them, or start over with another output"
)
_FILES_GONE = "files of a table are gone that its version lists (deleted, or a VACUUM?)"
_SPARK_FILES_GONE = (
    "Spark's temporary files are gone (somebody has cleaned spark.local.dir, which is /tmp by"
    " default)"
)
_GONE_FILE = re.compile(
    r"^.*(?:FILE_NOT_EXIST|DELTA_FILE_NOT_FOUND|FileNotFoundException|NoSuchFileException).*$",
    re.MULTILINE,
)
# https://github.com/apache/spark: DiskBlockManager and Utils.createTempDir name them so
_OF_SPARK = re.compile(r"/(?:blockmgr|spark|executor)-[0-9a-f]{8}-[0-9a-f]{4}-")


def classify(error: Exception) -> Fault:
    """What kind of failure an exception of Spark, Delta or the JVM is."""
    text = str(error)
    if _ours(text) or _miscounted(text) or _of_the_machine(error):
        return Fault.FATAL
    if _raised(text):
        return Fault.RAISED
    if any(words in text for words in _CRASHES):
        return Fault.CRASH
    return Fault.FATAL


def why(error: Exception, output: Location | None = None) -> str:
    """What made a Spark job fail, in one line that quotes nobody's data.

    Args:
        error: of the job.
        output: of the job; None where it is not known which tables it read.
    """
    text = str(error)
    if ours := _ours(text):
        return ours
    if _miscounted(text):
        return MISCOUNTED
    if of_the_machine := _of_the_machine(error):
        return of_the_machine
    if raised := _raised(text):
        return f"the model raised {raised} in a Spark task"
    if any(words in text for words in _CRASHES):
        return "a Python worker died while the model ran (out of memory, perhaps)"
    if gone := _GONE_FILE.findall(text):
        if output is None:
            return _FILES_GONE
        place = output.path.removeprefix("file:").rstrip("/")
        return _OUTPUT_GONE if any(f"{place}/" in line for line in gone) else _INPUT_GONE
    return first_line(error)


def failure(error: Exception, output: Location) -> ScoringError:
    """What to raise for a job that failed and is not tried again."""
    said = why(error, output)
    return InputGoneError(said) if said == _INPUT_GONE else ScoringError(said)


def is_of_the_machine(error: OSError) -> bool:
    """Whether it is the system that refused something, not a mistake of ours."""
    return isinstance(error, ConnectionError) or error.errno in _REFUSED_NUMBERS


def _of_the_machine(error: Exception) -> str | None:
    """What is wrong with the machine or with Spark itself: no row's fault, and no retry helps."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in _REFUSED_NUMBERS:
        return _REFUSED_NUMBERS[error.errno].format(error.filename or "a file")
    if any(words in text for words in _FULL_DISK_ANYWHERE):
        return _FULL_DISK
    # though a broken connection looks like a worker's end, and what a JVM says at its own like
    # a mistake of ours
    if _jvm_is_gone(error) or session.has_ended():
        return JVM_IS_GONE
    if _raised(text):
        refused = [n for n in _ENDS_ANY_MODEL if f"[Errno {n:d}]" in text]
        return _REFUSED_NUMBERS[refused[0]] if refused else None
    of_files = "\n".join(_OF_FILES.findall(text))
    for words, said in _REFUSED.items():
        if words in of_files:
            return said.format("a file")
    if _OUT_OF_MEMORY in text:
        return _NO_MEMORY
    if any(_OF_SPARK.search(line) for line in _GONE_FILE.findall(text)):
        return _SPARK_FILES_GONE
    return None


def _jvm_is_gone(error: Exception) -> bool:
    # An error of the JVM's own has its exception, or its trace; without either nobody answers.
    from_jvm = isinstance(error, JVM_EXCEPTIONS) or "Trace:" in str(error)
    return isinstance(error, (*JVM_ERRORS, ConnectionError)) and not from_jvm


def _ours(text: str) -> str | None:
    found = re.search(r"phi3_batch\.errors\.\w+: (.+)", text)
    return found.group(1) if found else None


def _miscounted(text: str) -> bool:
    return MISCOUNTED in text


def _raised(text: str) -> str | None:
    """The class of what another model raised, or what was raised around it."""
    if by_model := re.search(r"RuntimeError: the model raised (\w+)$", text, re.MULTILINE):
        return by_model.group(1)
    raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception))\b", text, re.MULTILINE)
    return raised[-1] if raised and "Traceback (most recent call last)" in text else None


def row_error(error: Exception) -> tuple[RowErrorCode, str]:
    """What the row of a culprit says."""
    if raised := _raised(str(error)):
        return RowErrorCode.ENGINE_ERROR, f"the model raised {raised}"
    return RowErrorCode.WORKER_CRASHED, "the process that ran the model died of this row alone"
