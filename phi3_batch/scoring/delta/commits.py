"""Writing chunks: each in one Delta commit, and none twice whoever tries.

All commits of ours in a table are one sequence. Delta records with a commit the ``txnAppId`` and
``txnVersion`` that it was made under, drops one whose version is not above the recorded one, and
fails one of two that are made at once. So a commit with the next number of the sequence lands only
if none of ours has landed since its writer last read the history. A writer whose commit did not
land reads it again, and :mod:`~phi3_batch.scoring.delta.rivals` says whether it may still write.

https://docs.delta.io/latest/delta-streaming.html#idempotent-table-writes-in-foreachbatch
"""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession

from phi3_batch.errors import ScoringError
from phi3_batch.options import WriteMode
from phi3_batch.scoring import compat
from phi3_batch.scoring.delta import rivals
from phi3_batch.scoring.delta.incremental import update_clause
from phi3_batch.scoring.delta.ledger import Ledger, read_ledger
from phi3_batch.scoring.delta.record import Commit, RunIdentity, RunRecord, describe_commit
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.rows.columns import quoted

_SEQUENCE = "phi3_batch"
# What a write is told as options, and what else takes as settings of a session. Delta writes the
# last one into the commit, and DESCRIBE HISTORY shows it.
_SETTINGS = {
    "txnAppId": "spark.databricks.delta.write.txnAppId",
    "txnVersion": "spark.databricks.delta.write.txnVersion",
    "userMetadata": "spark.databricks.delta.commitInfo.userMetadata",
}

_ATTEMPTS = 20

_ALL = 1  # for rows changed, of a statement that changes all rows that it is given
_GLOBAL_TEMP = "spark.sql.globalTempDatabase"

# Writes rows under such options, and returns how many rows of the table have changed.
_Options = dict[str, str]
_Write = Callable[[DataFrame, _Options], int]


class Committer:
    """Makes the commits of a run, one after the other; for several threads.

    Args:
        spark: the session that the rows come from.
        output: the table.
        run: that writes.
        seen: the table's history, as the run was planned by it.
        start: the version of the run's first commit; None where that is to be made, or the history
            does not tell of it.
    """

    def __init__(
        self,
        spark: SparkSession,
        output: Location,
        run: RunIdentity,
        seen: Ledger,
        start: int | None,
    ) -> None:
        self._spark = spark
        self._output = output
        self._run = run
        self._seen = seen
        self._start = start
        self._since = list[Commit]()  # by whichever driver, since the run was planned
        self._driver = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._own_session: SparkSession | None = None

    @property
    def seen(self) -> Ledger:
        """The table's history as it was when a commit was last made, or tried."""
        return self._seen

    def begin(
        self,
        rows: DataFrame,
        record: RunRecord,
        mode: WriteMode,
        chunk: int | None,
        partitions: Sequence[str] = (),
    ) -> bool:
        """Make the run's first commit, which makes, adds to or replaces the table.

        Args:
            rows: of the first chunk, or none.
            record: what the commit says of the run.
            mode: "error" makes the table.
            chunk: its number.
            partitions: columns that a replaced table is partitioned by, as before.

        Returns:
            Whether it was made here; else another driver has begun the same run.

        Raises:
            SupersededError: another run has begun since this one was planned.
        """
        make = partial(self._make, mode, partitions)
        with self._lock:
            for _ in range(_ATTEMPTS):
                landed = self._try(make, rows, chunk, self._find_own_start, record)
                if begun := self._find_own_start():
                    self._start = begun.version
                    if self._run.ids:
                        before = [other for other in self._since if other.version < begun.version]
                        rivals.check_comparison(self._run, self._output.text, self._seen, before)
                    return landed is not None
            raise self._crowded_out()

    def append(self, rows: DataFrame, chunk: int) -> bool:
        """Add a chunk; returns whether it was added here, else another driver has done it.

        Raises:
            SupersededError: another run has taken the table over.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                there = self._find(chunk)
                if there:
                    return there.driver == self._driver
                if self._try(self._add, rows, chunk, self._check_standing) is not None:
                    return True
            raise self._crowded_out()

    def merge(self, rows: DataFrame, ids: Sequence[str], chunk: int) -> bool:
        """Put a chunk's rows in the places of those with the same ids, or add them.

        Args:
            rows: the chunk, from a plan that does not run the model again: MERGE reads it twice.
            ids: columns that name a row.
            chunk: its number.

        Returns:
            Whether any was put there; else another driver has put all of them.

        Raises:
            SupersededError: a later run has begun to write the same rows.
        """
        # another driver may have put the row there already: once is enough
        clauses = (
            "WHEN MATCHED AND (NOT there.request_id <=> new.request_id OR there.error IS NOT NULL)"
            " THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )
        return self._commit_merge(rows, ids, clauses, chunk) > 0

    def update_kept(self, rows: DataFrame, ids: Sequence[str], kept: Sequence[str]) -> None:
        """Give the table's rows with the same ids and requests these rows' kept columns.

        Raises:
            SupersededError: a later run has begun to write the same rows.
        """
        self._commit_merge(rows, ids, update_clause(kept, ids), chunk=None)

    def delete_others(self, rows: DataFrame, ids: Sequence[str]) -> None:
        """Delete the rows of the table whose ids are not among these rows.

        Raises:
            SupersededError: a later run has begun to write the same rows.
        """
        self._commit_merge(rows, ids, "WHEN NOT MATCHED BY SOURCE THEN DELETE", chunk=None)

    def _commit_merge(
        self, rows: DataFrame, ids: Sequence[str], clauses: str, chunk: int | None
    ) -> int:
        merge = partial(self._merge, ids, clauses)
        with self._lock:
            for _ in range(_ATTEMPTS):
                changed = self._try(merge, rows, chunk, self._check_standing)
                if changed is not None:
                    return changed
            raise self._crowded_out()

    def _try(
        self,
        write: _Write,
        rows: DataFrame,
        chunk: int | None,
        check: Callable[[], object],
        record: RunRecord | None = None,
    ) -> int | None:
        """Try to make the next commit of the sequence.

        Args:
            write: makes it.
            rows: of it.
            chunk: its number.
            check: asked where it did not land; raises where another run has taken the table over.
            record: what a first commit says of the run.

        Returns:
            How many rows it changed, as far as that is known; None where it did not land.

        Raises:
            SupersededError: another run has taken the table over.
        """
        number = self._seen.next_number
        says = describe_commit(
            self._run.fingerprint,
            chunk=chunk,
            number=number,
            driver=self._driver,
            start=None if record else self._start,
            record=record,
        )
        options = {"txnAppId": _SEQUENCE, "txnVersion": str(number), "userMetadata": says}
        changed, failure = _ALL, None
        try:
            changed = write(rows, options)
        except PySparkException as error:
            if not _is_in_the_way(error):
                if not isinstance(error, AnalysisException):
                    raise
                failure = error  # of a table that was replaced Delta says that columns differ
        self._look()
        landed = any(
            commit.driver == self._driver and commit.number == number for commit in self._since
        )
        if landed and not failure:
            return changed
        check()
        if failure:
            raise failure
        return None

    def _make(
        self, mode: WriteMode, partitions: Sequence[str], rows: DataFrame, options: _Options
    ) -> int:
        """Make, replace or extend the table."""

        def writer(rows: DataFrame) -> DataFrameWriter:
            to_delta = rows.write.format("delta").mode(mode)
            if mode == "overwrite":
                to_delta = to_delta.option("overwriteSchema", "true").partitionBy(*partitions)
            return to_delta

        if self._output.is_path:
            writer(rows).options(**options).save(self._output.path)
        else:  # where Delta takes no userMetadata as an option
            with self._session_with(options, rows) as (session, view):
                writer(session.table(view)).saveAsTable(self._output.text)
        return _ALL

    def _add(self, rows: DataFrame, options: _Options) -> int:
        rows.writeTo(self._output.sql).options(**options).append()
        return _ALL

    def _merge(self, ids: Sequence[str], clauses: str, rows: DataFrame, options: _Options) -> int:
        same = " AND ".join(f"there.{name} = new.{name}" for name in map(quoted, ids))
        with self._session_with(options, rows) as (session, view):
            merged = session.sql(
                f"MERGE INTO {self._output.sql} AS there USING {view} AS new ON {same} {clauses}"
            ).head()
        return merged["num_affected_rows"] if merged else 0  # where Delta drops it, no row

    @contextmanager
    def _session_with(
        self, options: _Options, rows: DataFrame
    ) -> Iterator[tuple[SparkSession, str]]:
        """A session that no other writer has, with options as its settings, and a view of the rows.

        The settings hold for all that a session writes, and make Delta drop what it has seen: they
        must not meet a write of the user's.
        """
        session = self._session()
        view = f"phi3_batch_{uuid.uuid4().hex}"
        rows.createOrReplaceGlobalTempView(view)
        for name, value in options.items():
            session.conf.set(_SETTINGS[name], value)
        try:
            yield session, f"{session.conf.get(_GLOBAL_TEMP)}.{view}"
        finally:
            for name in options:
                session.conf.unset(_SETTINGS[name])
            session.catalog.dropGlobalTempView(view)

    def _session(self) -> SparkSession:
        if self._own_session is None:
            session = compat.new_session(self._spark)
            # names of tables mean the same in both
            catalog = self._spark.catalog
            session.sql(f"USE {quoted(catalog.currentCatalog())}.{catalog.currentDatabase()}")
            self._own_session = session
        return self._own_session

    def _look(self) -> None:
        """Read what has been committed since the last look.

        Raises:
            ScoringError: the table is another one.
        """
        seen = self._seen
        now = read_ledger(self._spark, self._output, above=seen.last_version)
        if now.last_version < seen.last_version:
            raise ScoringError(
                f"output {self._output.text} was dropped and created again while this run was"
                " writing"
            )
        self._since += now.commits
        self._seen = replace(
            seen, commits=seen.commits + now.commits, last_version=now.last_version
        )

    def _find_own_start(self) -> Commit | None:
        return rivals.find_own_start(self._run, self._output.text, self._since)

    def _check_standing(self) -> None:
        rivals.check_standing(self._run, self._output.text, self._start, self._since)

    def _find(self, chunk: int) -> Commit | None:
        """The commit of a chunk, where it was made since the run was planned."""
        return next(
            (
                commit
                for commit in self._since
                if commit.fingerprint == self._run.fingerprint
                and commit.chunk == chunk
                and self._start in (commit.start, commit.version)
            ),
            None,
        )

    def _crowded_out(self) -> ScoringError:
        return ScoringError(
            f"other writers were in the way of {_ATTEMPTS} attempts to commit to output"
            f" {self._output.text}"
        )


def _is_in_the_way(error: PySparkException) -> bool:
    """Whether Delta has raised an error because another commit has come between."""
    is_there = isinstance(error, AnalysisException) and compat.condition(error).endswith(
        "_EXISTS"
    )  # the table, by now
    return is_there or compat.is_in_the_way(error)
