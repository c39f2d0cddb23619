"""The Spark session, and all that needs more of it than the DataFrame API.

Nothing else in the package touches ``sparkContext``, so that the rest runs over Spark Connect too.
"""

import os
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from phi3_batch.environment import REMOTE_VARIABLE
from phi3_batch.errors import EnvironmentProblemError, TableError
from phi3_batch.scoring import compat

_DEFAULT_PORT = 15002  # Spark's
_ANSWER_S = 30

Result = TypeVar("Result")


def get_session() -> SparkSession:
    """The session to score with.

    The active one where there is one (a notebook, a Databricks job); over Spark Connect where
    SPARK_REMOTE is set; under spark-submit, one with the configuration given there; else a local
    one, with all processors and Delta Lake.

    Raises:
        EnvironmentProblemError: Java is missing or too old, or Delta's jars cannot be had; only
            pyspark-client is installed, and SPARK_REMOTE is not set, or no server answers there.
    """
    session = SparkSession.getActiveSession() or _start()
    check(session)
    return session


def check(session: SparkSession) -> None:
    """See that a session has Delta Lake, and let it keep the rows of failed queries to itself.

    Raises:
        EnvironmentProblemError: it has no Delta Lake.
    """
    compat.quiet_query_loggers()
    _check_delta(session)


def _start() -> SparkSession:
    if remote := os.environ.get(REMOTE_VARIABLE):
        if remote.startswith("sc://"):  # not local[2], a server that pyspark starts
            _check_server(remote)
        return compat.leaving_at_once(SparkSession.builder.getOrCreate())
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:  # a session is there, or is on the way
        return SparkSession.builder.getOrCreate()
    if not compat.JVM_ERRORS:
        raise EnvironmentProblemError(
            "pyspark-client runs no Spark of its own: set SPARK_REMOTE to a Spark Connect server"
            " (sc://HOST:PORT), or pip install pyspark"
        )
    from phi3_batch.scoring.start import start_session

    return start_session()


def _check_server(remote: str) -> None:
    """See that a server answers: pyspark would try for ten minutes."""
    try:
        parts = urlsplit(remote)
        place = parts.hostname or "", parts.port or _DEFAULT_PORT
        socket.create_connection(place, timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        # what urlsplit says may quote the address, and a token in it
        why = getattr(error, "strerror", None) or type(error).__name__
        raise EnvironmentProblemError(
            f"no Spark Connect server answers at {REMOTE_VARIABLE} ({why}): give it as"
            " sc://HOST:PORT"
        ) from error


def task_slots(spark: SparkSession) -> int:
    """How many tasks run at the same time."""
    of_task = int(spark.conf.get("spark.task.cpus", "1") or 1)
    return max(1, compat.default_parallelism(spark) // of_task)


def is_local(spark: SparkSession) -> bool:
    """Whether Spark's tasks run in the driver; over Spark Connect, that is not known."""
    context = compat.context_of(spark)
    return context is not None and str(context.master).startswith("local")


def has_ended() -> bool:
    """Whether this process's JVM is gone, or about to be: Spark ends one that has no memory."""
    context = compat.active_context()
    if context is None:  # none was started, or the session is over Spark Connect
        return False
    try:
        return bool(context._jsc.sc().isStopped())
    except compat.JVM_GONE_ERRORS:  # nobody answers
        return True


def check_writable(spark: SparkSession, path: str) -> None:
    """See whether a local session can write a folder of this machine, there or to be made.

    Where the files are elsewhere, or the session is, the first commit will tell.

    Raises:
        TableError: it cannot.
    """
    context = compat.context_of(spark)
    if context is None:
        return
    hadoop: Any = context._jsc.hadoopConfiguration()
    parts = urlsplit(path)
    scheme = parts.scheme or urlsplit(hadoop.get("fs.defaultFS", "")).scheme or "file"
    if scheme != "file" or not is_local(spark):
        return
    folder = Path(parts.path)
    above = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise TableError(f"output {path} cannot be written: {above} is no folder to write to")


def in_background(work: Callable[[], Result]) -> "Future[Result]":
    """Start work that nobody has to wait for: the process may end before it does."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # for whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class JobPool:
    """Runs Spark jobs side by side, in threads that can be told to stop.

    Args:
        spark: the session that the jobs use.
        width: how many at once.
    """

    def __init__(self, spark: SparkSession, width: int) -> None:
        self._spark = spark
        self._threads = ThreadPoolExecutor(width)
        self._group = f"phi3-batch-{uuid.uuid4()}"
        self._context = compat.context_of(spark)

    def submit(self, work: Callable[[], Result]) -> "Future[Result]":
        """Start some work, which starts Spark jobs and waits for them."""

        def grouped() -> Result:
            if self._context:
                self._context.setJobGroup(self._group, "scoring", interruptOnCancel=True)
            else:
                self._spark.addTag(self._group)
            return work()

        run = compat.with_session(self._spark, grouped) if self._context else grouped
        return self._threads.submit(run)

    def cancel(self) -> None:
        """Stop the running jobs; what they have not committed is dropped."""
        if self._context:
            self._context.cancelJobGroup(self._group)
        else:
            self._spark.interruptTag(self._group)

    def close(self) -> None:
        """Wait until all work has ended."""
        self._threads.shutdown(wait=True)


def _check_delta(session: SparkSession) -> None:
    try:
        session.read.format("delta").load("/phi3-batch/is-delta-there")
        has_delta = True
    except AnalysisException as error:  # where Delta is there, it says that the table is not
        has_delta = not compat.condition(error).startswith("DATA_SOURCE_NOT_FOUND")
    except compat.JVM_ERRORS:  # the catalog is configured, and its class is missing
        has_delta = False
    if has_delta:
        return
    how = "its server is to be started with Delta Lake's package"
    if compat.context_of(session) is not None:
        from phi3_batch.scoring.start import delta_package

        how = f"start it with --packages {delta_package()}"
    raise EnvironmentProblemError(f"this Spark session has no Delta Lake: {how}")
