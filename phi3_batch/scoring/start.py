"""Starting Spark where this process has its JVM: under spark-submit, or a session of this machine.

Over Spark Connect nothing of this is there.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delta import configure_spark_with_delta_pip
from py4j import java_gateway
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from phi3_batch.environment import check_java
from phi3_batch.errors import EnvironmentProblemError
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
    "org.antlr:*",
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
# In how many parts Delta Lake reads a table's log, each time that it has a new version. Its own 50
# are for logs of a million files, and take seconds where executors run one task at a time.
_SNAPSHOT_PARTITIONS = "spark.databricks.delta.snapshotPartitions"
_APP_NAME = "phi3-batch"
# log4j's variable for its configuration
_LOG4J_VARIABLE = "LOG4J_CONFIGURATION_FILE"


def start_session() -> SparkSession:
    """A session with a JVM: under spark-submit with its configuration, else a local one.

    Raises:
        EnvironmentProblemError: Java is missing or too old, or Delta's jars cannot be had.
    """
    # spark-submit has started the JVM already
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    session = _submitted_session() if submitted else _local_session()
    _leave_a_dead_jvm_to_us(session.sparkContext)
    return session


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
    else:
        settings[_SNAPSHOT_PARTITIONS] = "8"
        if "spark.executor.cores" in given:
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
    handle, name = tempfile.mkstemp(prefix="phi3-batch-spark-", suffix=".log")
    try:
        # the JVM inherits both: Ivy's report and Spark's log go there, whichever they go to
        with _no_jvm_left_behind(), _output_to(handle), _quiet_log():
            return configure_spark_with_delta_pip(builder).getOrCreate()
    except PySparkRuntimeError as error:
        raise EnvironmentProblemError(_why_not_started(Path(name))) from error
    finally:
        os.close(handle)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Have a JVM that is started log as a command does, where nobody has said otherwise."""
    if _LOG4J_VARIABLE in os.environ:
        yield
        return
    os.environ[_LOG4J_VARIABLE] = Path(__file__).with_name("log4j2.properties").resolve().as_uri()
    try:
        yield
    finally:
        del os.environ[_LOG4J_VARIABLE]  # another Spark that this process starts has its own


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
        _SNAPSHOT_PARTITIONS: "2",
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
def _output_to(handle: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(handle, number)
        yield


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


def delta_package() -> str:
    """Maven coordinates of the Delta Lake that fits the installed pyspark and delta-spark."""
    # its names have changed with its versions
    builder = configure_spark_with_delta_pip(SparkSession.builder)
    return str(builder._options["spark.jars.packages"])
