"""What is in the output already: nothing, this run or a part of it, or something else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import InvalidParameterError, SupersededError, TableError
from phi3_batch.options import WriteMode
from phi3_batch.scoring.delta import tables
from phi3_batch.scoring.delta.ledger import Ledger, read_ledger
from phi3_batch.scoring.delta.record import Commit, RunIdentity
from phi3_batch.scoring.delta.rivals import check_order, check_standing
from phi3_batch.scoring.delta.tables import OutputTable
from phi3_batch.scoring.rows import identity
from phi3_batch.scoring.rows.columns import find_field
from phi3_batch.scoring.rows.schema import FINGERPRINT, REQUEST_ID

_WHAT_TO_DO = "use --mode append or --mode overwrite"


@dataclass(frozen=True, slots=True)
class AskedRun:
    """The run that is to be written.

    Attributes:
        run: what tells it from others.
        columns: what it writes.
        mode: what the user wants done where the output has other rows.
    """

    run: RunIdentity
    columns: StructType
    mode: WriteMode


@dataclass(frozen=True, slots=True)
class OutputState:
    """How a run goes on from what is there.

    Attributes:
        begin: how the run's first commit is made; None where that was done.
        may_wait: whether that commit is only needed if there is something to write.
        start: the version of the first commit; None where it is to be made, or the history was
            cut.
        seen: the table's history up to ``version``.
        version: of the table; None when it is not there.
        rows: of this run that are there, by bucket.
        run_id: of the MLflow run that began it; None where it begins now.
        chunks: in how many it was begun, perhaps by another release; None where it begins now.
    """

    begin: WriteMode | None
    may_wait: bool = False
    start: int | None = None
    seen: Ledger = field(default_factory=Ledger)
    version: int | None = None
    rows: Mapping[int, int] = field(default_factory=dict)
    run_id: str | None = None
    chunks: int | None = None

    def replaced(self) -> "OutputState":
        """The state of a run that replaces the table, whatever is there."""
        return OutputState("overwrite", seen=self.seen, version=self.version)


def look(spark: SparkSession, output: OutputTable, asked: AskedRun) -> OutputState:
    """See what of a run is in its output.

    Raises:
        TableError: the output has rows of something else, and the user has not said what to do
            with them; the message says how they differ.
        InvalidParameterError: the mode has no meaning with ids.
        SupersededError: with ids, a run of a newer version of the input has begun.
    """
    if asked.run.ids and asked.mode == "append":
        raise InvalidParameterError(
            "--id finds the new rows itself, so it cannot be used with --mode append"
        )
    if output.version is None:
        return OutputState("error")
    # what is committed from now on is looked at when this run commits
    ledger = read_ledger(spark, output.location).as_of(output.version)
    if asked.run.ids:
        return _look_by_ids(spark, output, ledger, asked)
    rows = _count_rows(spark, output, asked.run.fingerprint) if _is_ours(output) else {}
    last = ledger.last_start
    if rows or (last and last.fingerprint == asked.run.fingerprint):
        return _go_on(output, ledger, asked, rows)
    if asked.mode == "error":
        raise TableError(_refusal(output, ledger, asked))
    if asked.mode == "append":
        _check_columns(output, asked)
        _check_unfinished(spark, output, ledger, asked)
    return OutputState(asked.mode, seen=ledger, version=output.version)


def _go_on(
    output: OutputTable, ledger: Ledger, asked: AskedRun, rows: Mapping[int, int]
) -> OutputState:
    """How a run goes on that has begun."""
    start = _standing_start(output, ledger, asked)
    if start and start.record and start.record.is_of_newer_release:
        if asked.mode == "overwrite":
            return OutputState("overwrite", seen=ledger, version=output.version)
        raise TableError(
            f"a newer release of phi3-batch has begun this run in output {output.location.text}:"
            " finish it with that release, or start over with --mode overwrite or another output"
        )
    if not rows:
        _check_columns(output, asked)  # of what somebody has left of it
    if start is None:
        # The history was cut; or another run had replaced this one, and was taken back. It begins
        # again, behind what is there of it.
        return OutputState("append", seen=ledger, version=output.version, rows=rows)
    record = start.record
    return OutputState(
        begin=None,
        start=start.version,
        seen=ledger,
        version=output.version,
        rows=rows,
        run_id=record.run_id if record else None,
        chunks=record.chunks if record and not record.run.ids else None,
    )


def _standing_start(output: OutputTable, ledger: Ledger, asked: AskedRun) -> Commit | None:
    """The run's first commit, unless another run has taken the table over since."""
    start = ledger.start_of(asked.run.fingerprint)
    if start:
        try:
            check_standing(asked.run, output.location.text, start.version, ledger.commits)
        except SupersededError:
            return None
    return start


def _look_by_ids(
    spark: SparkSession, output: OutputTable, ledger: Ledger, asked: AskedRun
) -> OutputState:
    """The same for a run with ids, which compares row by row."""
    start = _standing_start(output, ledger, asked)
    if start is None and asked.mode == "overwrite":
        return OutputState("overwrite", seen=ledger, version=output.version)
    if asked.mode != "overwrite":
        _check_columns(output, asked)
        _check_settings(spark, output, ledger, asked)
        _check_unfinished(spark, output, ledger, asked)
    if start:
        return _go_on(output, ledger, asked, {})
    rivals = [
        commit
        for commit in ledger.since_replaced()
        if commit.record and asked.run.reads_the_input_of(commit.record.run)
    ]
    for rival in rivals:
        assert rival.record is not None  # they were chosen so
        check_order(asked.run, output.location.text, rival.record.run)
    # a run that goes on must learn of this one, or it would write older rows over what is there
    may_wait = not rivals or ledger.is_finished(rivals[-1])
    return OutputState("append", may_wait=may_wait, seen=ledger, version=output.version)


def done_chunks(
    output: OutputTable, state: OutputState, rows_by_chunk: Mapping[int, int], count: int
) -> frozenset[int]:
    """The chunks of a run that are there.

    Raises:
        TableError: one is there in part, or more than once: somebody changed the table.
    """
    there: dict[int, int] = dict.fromkeys(rows_by_chunk, 0)
    for bucket, rows in state.rows.items():
        there[bucket % count] = there.get(bucket % count, 0) + rows
    for chunk, rows in there.items():
        wanted = rows_by_chunk.get(chunk, 0)
        if rows not in (0, wanted):
            raise TableError(
                f"output {output.location.text} has {rows:,} of the {wanted:,} rows of chunk"
                f" {chunk} of this run, and a chunk is written as a whole: somebody changed the"
                " table. Restore it (RESTORE TABLE), or start over with --mode overwrite or"
                " another output"
            )
    return frozenset(chunk for chunk, rows in there.items() if rows)


def _is_ours(output: OutputTable) -> bool:
    assert output.schema is not None  # it is there
    return all(find_field(output.schema, name) for name in (FINGERPRINT, REQUEST_ID))


def _count_rows(spark: SparkSession, output: OutputTable, fingerprint: str) -> dict[int, int]:
    assert output.version is not None  # it is there
    table = tables.read_version(spark, output.location, output.version)
    mine = table.where(F.col(FINGERPRINT) == fingerprint)
    counted = mine.groupBy(identity.bucket_of(F.col(REQUEST_ID)).alias("bucket")).count()
    return {row["bucket"]: row["count"] for row in counted.collect()}


def _check_columns(output: OutputTable, asked: AskedRun) -> None:
    assert output.schema is not None  # it is there
    there, new = _types(output.schema), _types(asked.columns)
    differing = sorted(dict(there ^ new))
    if differing:
        raise TableError(
            f"output {output.location.text} has other columns than this job writes"
            f" ({', '.join(differing)}): choose another output, other columns with --keep, or"
            " --mode overwrite"
        )


def _check_settings(
    spark: SparkSession, output: OutputTable, ledger: Ledger, asked: AskedRun
) -> None:
    """Raise if rows of an incremental output were scored in another way."""
    assert output.version is not None  # it is there
    table = tables.read_version(spark, output.location, output.version)
    half = F.substring_index(F.col(FINGERPRINT), "-", 1)
    other = table.where(half != identity.settings_of(asked.run.fingerprint)).limit(1)
    if other.count():
        raise TableError(
            f"output {output.location.text} was scored with other settings"
            f"{_differing(ledger, asked)}, and would hold rows of both: use --mode overwrite to"
            " score all rows again, or another output"
        )


def _check_unfinished(
    spark: SparkSession, output: OutputTable, ledger: Ledger, asked: AskedRun
) -> None:
    """Raise if the last run on the same input has rows to go: its command has been changed."""
    last = ledger.last_start.record if ledger.last_start else None
    if last is None or last.run.ids or not asked.run.reads_the_input_of(last.run):
        return
    there = sum(_count_rows(spark, output, last.run.fingerprint).values())
    if last.rows is not None and there < last.rows:
        raise TableError(
            f"output {output.location.text} has {there:,} of {last.rows:,} rows of a run that is"
            f" not finished, and this one differs{_differing(ledger, asked)}: finish it with the"
            " command as it was, start over with --mode overwrite, or use another output"
        )


def _refusal(output: OutputTable, ledger: Ledger, asked: AskedRun) -> str:
    name = output.location.text
    if ledger.last_start is None:
        return f"output {name} exists: {_WHAT_TO_DO}"
    return f"output {name} has another run{_differing(ledger, asked)}: {_WHAT_TO_DO}"


def _differing(ledger: Ledger, asked: AskedRun) -> str:
    """In which settings the last run differs, as ``" (model: a, now b)"``."""
    last = ledger.last_start.record if ledger.last_start else None
    if last is None:
        return ""
    before, now = _in_words(last.run), _in_words(asked.run)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [
        f"{name.removesuffix('_sha256')} is another"
        if name.endswith("_sha256")
        else f"{name}: {before.get(name, 'default')}, now {now.get(name, 'default')}"
        for name in names
    ]
    return f" ({'; '.join(told)})" if told else ""


def _in_words(run: RunIdentity) -> dict[str, str]:
    return {"input": run.input, "input version": str(run.input_version), **run.settings}


def _types(table: StructType) -> set[tuple[str, str]]:
    return {(field.name, field.dataType.simpleString()) for field in table}
