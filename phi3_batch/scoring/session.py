"""The Spark session, and all that needs more of it than the DataFrame API.

Nothing else in the package touches ``sparkContext``, so that the rest runs over Spark Connect too.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from delta import configure_spark_with_delta_pip
from py4j import java_gateway
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext, inheritable_thread_target
from pyspark.errors import AnalysisException, PySparkAttributeError, PySparkRuntimeError
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from phi3_batch.environment import check_java
from phi3_batch.errors import EnvironmentProblemError, TableError
from phi3_batch.machine import children, memory_bytes, processors

_DEFAULTS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # at INFO, Delta logs the statistics of its files: the beginnings of prompts and completions
    "spark.log.level": "WARN",
}
# What Delta Lake depends on and Spark has: 73 of 86 MB, which would be fetched at the first start
# and copied at each one, for Spark's own are found first.
_SPARK_HAS = (
    "org.apache.*:*",
    "com.fasterxml.jackson.core:*",
    "org.slf4j:*",
    "commons-*:*",
    "com.github.luben:*",
    "org.xerial.snappy:*",
    "io.airlift:*",
    "org.roaringbitmap:*",
    "org.locationtech.jts:*",
    "com.google.code.findbugs:*",
)
_APP_NAME = "phi3-batch"
# pyspark's loggers of failed queries: they write to stderr what the exception says, values of rows
# included, with a stack.
_QUERY_LOGGERS = ("DataFrameQueryContextLogger", "SQLQueryContextLogger")
# log4j's variable for its configuration
_LOG4J_VARIABLE = "LOG4J_CONFIGURATION_FILE"

Result = TypeVar("Result")


def get_session() -> SparkSession:
    """The session to score with.

    The active one where there is one (a notebook, a Databricks job); under spark-submit, one with
    the configuration given there; else a local one, with all processors and Delta Lake.

    Raises:
        EnvironmentProblemError: Java is missing or too old, or Delta's jars cannot be had.
    """
    for name in _QUERY_LOGGERS:
        PySparkLogger.getLogger(name).disabled = True
    active = SparkSession.getActiveSession()
    if active is not None:
        session = active
    else:
        # spark-submit has started the JVM already
        submitted = "PYSPARK_GATEWAY_PORT" in os.environ
        session = _submitted_session() if submitted else _local_session()
        _leave_a_dead_jvm_to_us(session.sparkContext)
    _check_delta(session)
    return session


def task_slots(spark: SparkSession) -> int:
    """How many tasks run at the same time, 1 where the session does not tell."""
    try:
        cores = spark.sparkContext.defaultParallelism
    except PySparkAttributeError:  # Spark Connect
        return 1
    return max(1, cores // int(spark.conf.get("spark.task.cpus", "1") or 1))


def has_ended() -> bool:
    """Whether this process's JVM is gone, or about to be: Spark ends one that has no memory."""
    context = SparkContext._active_spark_context
    if context is None:  # none was started, or the session is over Spark Connect
        return False
    try:
        return bool(context._jsc.sc().isStopped())
    except (Py4JError, OSError):  # nobody answers
        return True


def check_writable(spark: SparkSession, path: str) -> None:
    """See whether a local session can write a folder of this machine, there or to be made.

    Where the files are elsewhere, or the session is, the first commit will tell.

    Raises:
        TableError: it cannot.
    """
    try:
        context = spark.sparkContext
    except PySparkAttributeError:  # Spark Connect
        return
    hadoop: Any = context._jsc.hadoopConfiguration()
    parts = urlsplit(path)
    scheme = parts.scheme or urlsplit(hadoop.get("fs.defaultFS", "")).scheme or "file"
    if scheme != "file" or not str(context.master).startswith("local"):
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
        self._group = f"{_APP_NAME} {uuid.uuid4()}"
        try:
            self._context: SparkContext | None = spark.sparkContext
        except PySparkAttributeError:  # Spark Connect
            self._context = None

    def submit(self, work: Callable[[], Result]) -> "Future[Result]":
        """Start some work, which starts Spark jobs and waits for them."""

        def grouped() -> Result:
            if self._context:
                self._context.setJobGroup(self._group, "scoring", interruptOnCancel=True)
            else:
                self._spark.addTag(self._group)
            return work()

        run = inheritable_thread_target(self._spark)(grouped) if self._context else grouped
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


def _submitted_session() -> SparkSession:
    SparkContext._ensure_initialized()  # connects to the JVM, whose configuration is the given one
    builder = SparkSession.builder.appName(_APP_NAME)
    # asked, for a JVM does not see each limit that `processors` does
    jvm: Any = SparkContext._jvm
    seen = jvm.java.lang.Runtime.getRuntime().availableProcessors()
    for key, value in settings_to_add(dict(SparkConf().getAll()), seen).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def settings_to_add(given: Mapping[str, str], jvm_processors: int) -> dict[str, str]:
    """What a session under spark-submit needs besides the configuration that was given.

    What was given is never changed. One task at a time with all of an executor's cores is what
    keeps one copy of the weights there.

    Args:
        given: Spark's configuration.
        jvm_processors: that the driver's JVM sees: the slots of the master ``local[*]``.
    """
    settings = dict(_DEFAULTS)
    slots = _local_slots(given.get("spark.master", ""), jvm_processors)
    if slots:
        settings |= _local_settings(slots)
    elif "spark.executor.cores" in given:
        settings["spark.task.cpus"] = given["spark.executor.cores"]
    return {key: value for key, value in settings.items() if key not in given}


def _local_session() -> SparkSession:
    check_java()
    slots = processors()
    builder = SparkSession.builder.appName(_APP_NAME).master(f"local[{slots}]")
    for key, value in (_DEFAULTS | _local_settings(slots)).items():
        builder = builder.config(key, value)
    builder = builder.config("spark.jars.excludes", ",".join(_SPARK_HAS))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # what a user has said of it anywhere goes before this
    os.environ.setdefault("SPARK_DRIVER_MEMORY", f"{_jvm_memory_bytes() // 2**20}m")
    log4j = Path(__file__).with_name("log4j2.properties").resolve().as_uri()
    os.environ.setdefault(_LOG4J_VARIABLE, log4j)
    handle, name = tempfile.mkstemp(prefix="phi3-batch-spark-", suffix=".log")
    try:
        # the JVM inherits it: Ivy's report and Spark's log go there
        with _no_jvm_left_behind(), _stderr_to(handle):
            return configure_spark_with_delta_pip(builder).getOrCreate()
    except PySparkRuntimeError as error:
        raise EnvironmentProblemError(_why_not_started(Path(name))) from error
    finally:
        os.close(handle)


def _jvm_memory_bytes() -> int:
    """How large a local JVM's heap may grow: Java's own quarter, where that is sensible.

    Spark's default of 1 GB does not read a row of 100 MB. The weights are not in it.
    """
    return min(max(memory_bytes() // 4, 2**30), 8 * 2**30)


def _local_slots(master: str, jvm_processors: int) -> int | None:
    """How many tasks of one processor a local master runs at a time; None for a cluster's."""
    if master == "local":
        return 1
    # Spark's own forms; with the number of tries that a task has, or without
    found = re.fullmatch(r"local\[(\*|[0-9]+)\s*(?:,\s*[0-9]+)?\]", master)
    if found is None:
        return None
    return jvm_processors if found[1] == "*" else int(found[1])


def _local_settings(slots: int) -> dict[str, str]:
    return {
        # one task at a time with all processors: one copy of the weights, one big batch
        "spark.task.cpus": str(slots),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        # which line of Python made a column: 4 in 10 calls of a job into the JVM
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        # small tables: Spark's and Delta's defaults are made for hundreds of partitions
        "spark.sql.shuffle.partitions": str(2 * slots),
        "spark.databricks.delta.snapshotPartitions": "2",
        # works on a laptop whose host name resolves to nothing, or to a VPN
        "spark.driver.host": "localhost",
        "spark.driver.bindAddress": "127.0.0.1",
    }


@contextlib.contextmanager
def _no_jvm_left_behind() -> Iterator[None]:
    """Kill the JVM when its start is interrupted: pyspark lets it wait for ever."""
    before = children()
    try:
        yield
    except KeyboardInterrupt:
        if SparkContext._gateway is None:  # else it ends with this process
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
        raise


@contextlib.contextmanager
def _stderr_to(handle: int) -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(handle, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _why_not_started(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    if "unresolved dependency" in text or "download failed" in text.lower():
        return (
            "Delta Lake's jars could not be fetched (they come over Ivy from a Maven repository at"
            f" the first start): check the network or ~/.ivy2.5.2, the log is {log}"
        )
    return f"Spark did not start, its log is {log}"


def _leave_a_dead_jvm_to_us(context: SparkContext) -> None:
    """Keep tracebacks off stderr of which the exception says all, and the job one line.

    When the JVM dies, py4j logs a traceback besides raising the exception, and so it does at
    Ctrl-C; pyspark's server of accumulators prints one of its own.
    """
    logging.getLogger().addFilter(lambda record: record.pathname != java_gateway.__file__)
    server = context._accumulatorServer
    handle_error = server.handle_error

    def handle_error_but_the_end(request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), EOFError | ConnectionError):
            handle_error(request, client_address)

    server.handle_error = handle_error_but_the_end  # type: ignore[method-assign]


def _check_delta(session: SparkSession) -> None:
    try:
        session.read.format("delta").load("/phi3-batch/is-delta-there")
        has_delta = True
    except AnalysisException as error:  # where Delta is there, it says that the table is not
        has_delta = not (error.getCondition() or "").startswith("DATA_SOURCE_NOT_FOUND")
    except Py4JError:  # the catalog is configured, and its class is missing
        has_delta = False
    if not has_delta:
        raise EnvironmentProblemError(
            f"this Spark session has no Delta Lake: start it with --packages {delta_package()}"
        )


def delta_package() -> str:
    """Maven coordinates of the Delta Lake that fits the installed pyspark and delta-spark."""
    spark = ".".join(version("pyspark").split(".")[:2])
    return f"io.delta:delta-spark_{spark}_2.13:{version('delta-spark')}"
