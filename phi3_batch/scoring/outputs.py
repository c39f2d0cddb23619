"""What is in the output already: nothing, this run or a part of it, or something else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.scoring import identity, tables
from phi3_batch.scoring.columns import find_field
from phi3_batch.scoring.ledger import Ledger, RunRecord, read_ledger
from phi3_batch.scoring.schema import FINGERPRINT, REQUEST_ID
from phi3_batch.scoring.tables import OutputTable, WriteMode

_WHAT_TO_DO = "use --mode append or --mode overwrite"


@dataclass(frozen=True, slots=True)
class AskedRun:
    """The run that is to be written.

    Attributes:
        fingerprint: of the run.
        settings: what shapes its results, in words.
        input: as the user named it.
        input_version: of the Delta table; None for files and views.
        columns: what it writes.
        mode: what the user wants done where the output has other rows.
        ids: columns that name a row, for an incremental run.
    """

    fingerprint: str
    settings: Mapping[str, str]
    input: str
    input_version: int | None
    columns: StructType
    mode: WriteMode
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputState:
    """How a run goes on from what is there.

    Attributes:
        begin: how the run's first commit is made; None where that was done.
        transaction: names the first commit to Delta.
        base: the version above which the first commit is to be found.
        version: of the table; None when it is not there.
        rows: of this run that are there, by bucket.
        run_id: of the MLflow run that began it; None where it begins now.
        chunks: in how many it was begun, perhaps by another release; None where it begins now.
    """

    begin: WriteMode | None
    transaction: str
    base: int
    version: int | None = None
    rows: Mapping[int, int] = field(default_factory=dict)
    run_id: str | None = None
    chunks: int | None = None


def look(spark: SparkSession, output: OutputTable, asked: AskedRun) -> OutputState:
    """See what of a run is in its output.

    Raises:
        TableError: the output has rows of something else, and the user has not said what to do
            with them; the message says how they differ.
        InvalidParameterError: the mode has no meaning with ids.
    """
    if asked.ids and asked.mode == "append":
        raise InvalidParameterError(
            "--id says row by row what is new, so --mode append has no meaning with it"
        )
    if output.schema is None:
        return OutputState("error", _first_transaction(asked, -1), -1)
    ledger = read_ledger(spark, output.location)
    last = ledger.last_start
    base = last.version if last else -1
    ours = find_field(output.schema, FINGERPRINT) and find_field(output.schema, REQUEST_ID)
    rows = _count_rows(spark, output, asked.fingerprint) if ours and not asked.ids else {}
    begun = last is not None and last.fingerprint == asked.fingerprint

    begin: WriteMode | None
    if asked.ids:
        begin = None
        if asked.mode == "overwrite":
            begin = None if begun else "overwrite"
        else:
            _check_columns(output, asked)
            _check_settings(spark, output, ledger, asked)
    elif rows or (begun and not _taken_away(ledger, asked.fingerprint, rows)):
        begin = "append" if _taken_away(ledger, asked.fingerprint, rows) else None
    else:
        begin = asked.mode
        if begin == "error":
            raise TableError(_refusal(output, ledger, asked))
        if begin == "append":
            _check_columns(output, asked)
            _check_unfinished(spark, output, ledger, asked)
    begun_by = ledger.start_of(asked.fingerprint) if begin is None else None
    record = begun_by.record if begun_by else None
    return OutputState(
        begin=begin,
        transaction=_first_transaction(asked, base),
        base=base,
        version=output.version,
        rows=rows,
        run_id=record.run_id if record else None,
        chunks=record.chunks if record and not asked.ids else None,
    )


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
                " table. Restore it (RESTORE TABLE), or start anew with --mode overwrite or"
                " another output"
            )
    return frozenset(chunk for chunk, rows in there.items() if rows)


def _first_transaction(asked: AskedRun, base: int) -> str:
    return f"phi3_batch/{asked.fingerprint}/after/{base}"


def _count_rows(spark: SparkSession, output: OutputTable, fingerprint: str) -> dict[int, int]:
    assert output.version is not None  # it is there
    table = tables.read_version(spark, output.location, output.version)
    mine = table.where(F.col(FINGERPRINT) == fingerprint)
    counted = mine.groupBy(identity.bucket_of(F.col(REQUEST_ID)).alias("bucket")).count()
    return {row["bucket"]: row["count"] for row in counted.collect()}


def _taken_away(ledger: Ledger, fingerprint: str, rows: Mapping[int, int]) -> bool:
    """Whether chunks were committed whose rows are gone, so that Delta would drop them again."""
    start = ledger.start_of(fingerprint)
    if start is None or start.record is None:
        return True  # the history was cut: nothing tells which version the run began at
    there = {bucket % start.record.chunks for bucket in rows}
    return not ledger.chunks_since(start) <= there


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
    table = tables.read_table(spark, output.location)
    half = F.substring_index(F.col(FINGERPRINT), "-", 1)
    other = table.where(half != identity.settings_of(asked.fingerprint)).limit(1)
    if other.count():
        raise TableError(
            f"output {output.location.text} was scored otherwise{_differing(ledger, asked)}, and"
            " rows of both would stand side by side: use --mode overwrite to score all rows anew,"
            " or another output"
        )


def _check_unfinished(
    spark: SparkSession, output: OutputTable, ledger: Ledger, asked: AskedRun
) -> None:
    """Raise if the last run on the same input has rows to go: its command has been changed."""
    last = ledger.last_start.record if ledger.last_start else None
    if last is None or last.ids or last.input != asked.input:
        return
    there = sum(_count_rows(spark, output, last.fingerprint).values())
    if there < last.rows:
        raise TableError(
            f"output {output.location.text} has {there:,} of {last.rows:,} rows of a run that is"
            f" not finished, and this one differs{_differing(ledger, asked)}: finish it with the"
            " command as it was, start anew with --mode overwrite, or use another output"
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
    before, now = _in_words(last), _in_words(asked)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [
        f"{name.removesuffix('_sha256')} is another"
        if name.endswith("_sha256")
        else f"{name}: {before.get(name, 'default')}, now {now.get(name, 'default')}"
        for name in names
    ]
    return f" ({'; '.join(told)})" if told else ""


def _in_words(run: RunRecord | AskedRun) -> dict[str, str]:
    place = {"input": run.input, "input version": str(run.input_version)}
    return place | dict(run.settings)


def _types(table: StructType) -> set[tuple[str, str]]:
    return {(field.name, field.dataType.simpleString()) for field in table}
