"""Writing chunks: each in one Delta commit, and none twice whoever tries.

Delta records with a commit the ``txnAppId`` it was made under and silently drops a second one of
the same id. A run that was killed and resumed, a driver that was thought dead, and two drivers
on one run: each chunk has one id, so it lands once.
"""

import threading
import uuid
from collections.abc import Sequence

import delta.exceptions as delta_errors
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame

from phi3_batch.scoring.columns import quoted
from phi3_batch.scoring.incremental import update_clause
from phi3_batch.scoring.tables import Location, WriteMode

# Delta writes its value into the commit, and DESCRIBE HISTORY shows it as userMetadata
_METADATA = "userMetadata"
_METADATA_CONF = "spark.databricks.delta.commitInfo.userMetadata"

# What Delta raises when another writer's commit is in the way; the base class is not theirs.
CONFLICTS = (
    delta_errors.ConcurrentAppendException,
    delta_errors.ConcurrentDeleteDeleteException,
    delta_errors.ConcurrentDeleteReadException,
    delta_errors.ConcurrentTransactionException,
    delta_errors.ConcurrentWriteException,
    delta_errors.MetadataChangedException,
    delta_errors.ProtocolChangedException,
)
_MERGE_ATTEMPTS = 20
_merge_lock = threading.Lock()


class WrittenByAnotherError(Exception):
    """Another driver has committed this chunk, or begun this run, in the meantime."""


def begin(
    rows: DataFrame,
    output: Location,
    mode: WriteMode,
    transaction: str,
    says: str,
    partitions: Sequence[str] = (),
) -> None:
    """Make a run's first commit, which makes, adds to or replaces the table.

    Args:
        rows: of the first chunk.
        output: the table.
        mode: "error" makes it.
        transaction: names this commit to Delta.
        says: the commit's userMetadata.
        partitions: columns that a replaced table is partitioned by, as before.

    Raises:
        WrittenByAnotherError: another driver made the same commit at the same time.
    """
    writer = rows.write.format("delta").mode("errorifexists" if mode == "error" else mode)
    writer = writer.option("txnAppId", transaction).option("txnVersion", 1)
    if mode == "overwrite":
        writer = writer.option("overwriteSchema", "true").partitionBy(*partitions)
    conf = rows.sparkSession.conf
    conf.set(_METADATA_CONF, says)  # the writer's option of that name is lost in saveAsTable
    try:
        if output.is_path:
            writer.save(output.path)
        else:
            writer.saveAsTable(output.text)
    except CONFLICTS as error:
        raise WrittenByAnotherError from error
    except AnalysisException as error:
        if (error.getCondition() or "").endswith("_EXISTS"):
            raise WrittenByAnotherError from error
        raise
    finally:
        conf.unset(_METADATA_CONF)


def append(rows: DataFrame, output: Location, transaction: str, says: str) -> None:
    """Append a chunk.

    Raises:
        WrittenByAnotherError: another driver committed it while this one was scoring it.
    """
    writer = rows.writeTo(output.sql).option("txnAppId", transaction).option("txnVersion", 1)
    try:
        writer.option(_METADATA, says).append()
    except delta_errors.ConcurrentTransactionException as error:
        raise WrittenByAnotherError from error


def merge(rows: DataFrame, output: Location, ids: Sequence[str], says: str) -> None:
    """Put a chunk's rows in the places of those with the same ids, or add them.

    Args:
        rows: the chunk, from a plan that does not run the model again: MERGE reads it twice.
        output: the table.
        ids: columns that name a row.
        says: the commit's userMetadata.

    Raises:
        WrittenByAnotherError: another driver has put all of them there.
    """
    merged = _merge(
        rows,
        output,
        ids,
        # another driver may have put the row there already: once is enough
        "WHEN MATCHED AND (NOT there.request_id <=> new.request_id OR there.error IS NOT NULL)"
        " THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *",
        says,
    )
    if not merged:
        raise WrittenByAnotherError


def delete_others(rows: DataFrame, output: Location, ids: Sequence[str], says: str) -> None:
    """Delete the rows of the table whose ids are not among these rows."""
    _merge(rows, output, ids, "WHEN NOT MATCHED BY SOURCE THEN DELETE", says)


def update_kept(
    rows: DataFrame, output: Location, ids: Sequence[str], kept: Sequence[str], says: str
) -> None:
    """Give the table's rows with the same ids and requests these rows' kept columns."""
    _merge(rows, output, ids, update_clause(kept, ids), says)


def _merge(rows: DataFrame, output: Location, ids: Sequence[str], clauses: str, says: str) -> int:
    """Run a MERGE; returns how many rows it changed."""
    spark, view = rows.sparkSession, f"phi3_batch_{uuid.uuid4().hex}"
    same = " AND ".join(f"there.{name} = new.{name}" for name in map(quoted, ids))
    rows.createOrReplaceTempView(view)
    # one at a time: two would conflict with each other, and userMetadata is the session's
    with _merge_lock:
        spark.conf.set(_METADATA_CONF, says)
        try:
            for attempt in range(1, _MERGE_ATTEMPTS + 1):
                try:
                    [merged] = spark.sql(
                        f"MERGE INTO {output.sql} AS there USING {view} AS new ON {same} {clauses}"
                    ).collect()
                    return int(merged["num_affected_rows"])
                except CONFLICTS:  # with another driver, which has won and will be done
                    if attempt == _MERGE_ATTEMPTS:
                        raise
            raise AssertionError("the last attempt returns or raises")
        finally:
            spark.conf.unset(_METADATA_CONF)
            spark.catalog.dropTempView(view)
