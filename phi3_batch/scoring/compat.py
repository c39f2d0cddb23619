"""What differs between versions of Spark and of Delta Lake: known here, and nowhere else."""

import atexit
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pyspark
from packaging.version import Version
from pyspark.errors import PySparkException
from pyspark.sql import Column, SparkSession, types
from pyspark.sql import functions as F

# What py4j raises: an exception of the JVM's, as the first class, or that nobody answers. None of
# them where there is no JVM on this side (pyspark-client).
try:
    from py4j.protocol import Py4JError, Py4JJavaError
except ImportError:
    JVM_EXCEPTIONS, JVM_ERRORS = tuple[type[Exception], ...](), tuple[type[Exception], ...]()
else:
    JVM_EXCEPTIONS, JVM_ERRORS = (Py4JJavaError,), (Py4JError,)
# What a failed job raises; the same and what the system refuses this process; and what comes of a
# JVM that has died.
SPARK_ERRORS: tuple[type[Exception], ...] = (PySparkException, *JVM_ERRORS)
JOB_ERRORS: tuple[type[Exception], ...] = (*SPARK_ERRORS, OSError)
JVM_GONE_ERRORS: tuple[type[Exception], ...] = (*JVM_ERRORS, OSError)

# Types that are not in each of them.
_VARIANT, _SPATIAL = (getattr(types, name, None) for name in ("VariantType", "SpatialType"))
VARIANT_TYPES: tuple[type[types.DataType], ...] = (_VARIANT,) if _VARIANT else ()
SPATIAL_TYPES: tuple[type[types.DataType], ...] = (_SPATIAL,) if _SPATIAL else ()

# pyspark's loggers of failed queries, from 4.0 on: they write to stderr what the exception says,
# values of rows included, with a stack.
_QUERY_LOGGERS = ("DataFrameQueryContextLogger", "SQLQueryContextLogger")

# What Delta raises where another writer's commit is in the way. Its exceptions have classes in
# Python in some of its versions, and these names in all.
_IN_THE_WAY = re.compile(r"\[DELTA_(?:CONCURRENT_\w+|METADATA_CHANGED|PROTOCOL_CHANGED)")

# Whether a table that is replaced by its name stays the same table, with its history. Before 4.0
# it may be dropped and made again.
REPLACES_BY_NAME = Version(pyspark.__version__) >= Version("4.0")

_CLEAR_MODELS = "_cleanup_ml_cache"
_LONG_RANGE = 100_000

Result = TypeVar("Result")


def condition(error: PySparkException) -> str:
    """The name of an error, such as ``TABLE_OR_VIEW_NOT_FOUND``; empty where it has none."""
    # before 4.0, an error class
    get = getattr(error, "getCondition", None) or error.getErrorClass
    return get() or ""


def condition_in_jvm(thrown: Any) -> str:
    """The same of an exception in the JVM.

    Raises:
        Py4JError: it is none of Spark's or Delta's.
    """
    try:
        return thrown.getCondition() or ""
    except JVM_ERRORS:
        return thrown.getErrorClass() or ""


def message(error: PySparkException) -> str:
    """What an error says, with the name of its condition and without a stack."""
    if hasattr(error, "getMessage"):
        return str(error.getMessage())
    return str(getattr(error, "desc", None) or error)  # before 4.0


def is_in_the_way(error: PySparkException) -> bool:
    """Whether a commit failed because another writer's had come between."""
    return bool(_IN_THE_WAY.search(str(error).partition("\n")[0]))


def is_valid_utf8(text: Column) -> Column:
    """Whether the bytes of a text are UTF-8; null for null."""
    if hasattr(F, "is_valid_utf8"):
        return F.is_valid_utf8(text)
    # before 4.0: to decode replaces what is not
    as_bytes = text.cast("binary")
    return F.encode(F.decode(as_bytes, "UTF-8"), "UTF-8") == as_bytes


def with_session(spark: SparkSession, work: Callable[[], Result]) -> Callable[[], Result]:
    """Work for another thread, which has the settings and the job group of this one."""
    from pyspark import inheritable_thread_target

    try:
        wrapped: Callable[[], Result] = inheritable_thread_target(spark)(work)
    except TypeError:  # before 4.0
        wrapped = inheritable_thread_target(work)
    return wrapped


def quiet_query_loggers() -> None:
    """Keep what failed queries say, rows included, off stderr."""
    try:
        from pyspark.logger import PySparkLogger
    except ImportError:
        return
    for name in _QUERY_LOGGERS:
        PySparkLogger.getLogger(name).disabled = True


def context_of(spark: SparkSession) -> Any:
    """A session's SparkContext; None over Spark Connect, where it is not to be reached."""
    try:
        return spark.sparkContext
    except PySparkException:
        return None


def leaving_at_once(spark: SparkSession) -> SparkSession:
    """A session whose process ends when it is done, whether the server is still there or not.

    From 4.1 on a client clears its models of pyspark.ml from the server when its process ends: we
    have none, and it would try for ten minutes where the server is gone.
    """
    clear = None if context_of(spark) is not None else getattr(spark.client, _CLEAR_MODELS, None)
    if clear is not None:
        atexit.unregister(clear)  # 4.1
        setattr(spark.client, _CLEAR_MODELS, lambda: None)  # 4.2, which calls it as it closes
    return spark


def new_session(spark: SparkSession) -> SparkSession:
    """A session beside another: the same catalogs, settings and temporary views of its own."""
    if context_of(spark) is not None:
        made = spark.newSession()
        # a catalog may have been configured since Spark started
        given: Any = spark._jsparkSession.conf().getAll().iterator()
        while given.hasNext():
            setting = given.next()
            if setting._1().startswith("spark.sql.catalog."):
                made.conf.set(setting._1(), setting._2())
        return made
    # over Spark Connect, and from 4.1 on
    if hasattr(spark, "cloneSession"):
        cloned: SparkSession = spark.cloneSession()
        return cloned
    builder: Any = type(spark).builder
    beside: SparkSession = builder.channelBuilder(cast(Any, spark.client)._builder).create()
    return beside


def default_parallelism(spark: SparkSession) -> int:
    """How many processors a session's executors have together."""
    context = context_of(spark)
    if context is not None:
        return int(context.defaultParallelism)
    # into so many partitions Spark cuts a range that is long enough
    parts = spark.range(_LONG_RANGE).select(F.spark_partition_id()).distinct()
    return parts.count()


def active_context() -> Any:
    """The SparkContext of this process; None where there is none."""
    try:
        from pyspark import SparkContext
    except ImportError:  # pyspark-client
        return None
    return SparkContext._active_spark_context
