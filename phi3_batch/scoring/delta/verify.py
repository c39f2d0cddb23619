"""Verifying an output any time later, by its tables alone: no model, no tracking store."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField

from phi3_batch.errors import TableError
from phi3_batch.scoring.delta import balance, tables
from phi3_batch.scoring.delta.balance import Balance
from phi3_batch.scoring.delta.ledger import Ledger, read_ledger
from phi3_batch.scoring.delta.record import RunIdentity, RunRecord
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.columns import find_field, named


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and what came of it.

    Attributes:
        run: that was verified.
        input_version: that was read; None for files and views.
        output_version: that was read.
        balance: rows in against rows out.
        unknown: rows of the output that no run of its history has written. They may be from before
            our runs, or from before the history was cut; where neither can be, the balance counts
            them.
    """

    run: RunIdentity
    input_version: int | None
    output_version: int
    balance: Balance
    unknown: int


def verify(spark: SparkSession, source: Location, output: Location) -> Verification:
    """Compare an output with its input, row by row.

    The last run on that input is looked at, with the input as it was then; where runs go by ids,
    the whole output with the input as it is now.

    Raises:
        TableError: a table is not there, or the output's history does not say what was scored.
    """
    there = tables.open_output(spark, output)
    if there.version is None:
        raise TableError(f"no Delta table {output.text} to verify")
    ledger = read_ledger(spark, output).as_of(there.version)
    record = _record_of(ledger, source)
    if record is None:
        raise TableError(
            f"the history of {output.text} has no run of phi3-batch: Delta keeps it for 30 days"
            " unless the table's delta.logRetentionDuration says otherwise"
        )
    run = record.run
    if record.is_of_newer_release or not run.request_columns:
        raise TableError(
            f"the last run in {output.text} is by another release of phi3-batch, which can verify"
            " it"
        )
    version = None if run.ids else run.input_version
    table = tables.open_input(spark, source, version=version)
    out = tables.read_version(spark, output, there.version)
    kept = schema.kept_columns(out.schema, table.rows.schema)
    rows = _with_request_ids(identity.limited(table.rows, run.limit), run, source, kept)
    found = balance.compare_run(rows, out, ledger, run.fingerprint, run.ids, kept)
    return Verification(
        run, table.version, there.version, found, balance.count_unknown(out, ledger)
    )


def _record_of(ledger: Ledger, source: Location) -> RunRecord | None:
    """Of the last run on this input, else of the last run."""
    records = [commit.record for commit in ledger.commits if commit.record]
    same = [record for record in records if record.run.input == source.text]
    return next(reversed(same or records), None)


def _with_request_ids(
    rows: DataFrame, run: RunIdentity, source: Location, kept: Sequence[StructField]
) -> DataFrame:
    for name in (*run.request_columns, *run.ids):
        if find_field(rows.schema, name) is None:
            raise TableError(
                f"{source.text} has no column {name!r}, which the run read: is it another table?"
            )
    rendering = identity.rendering(rows.schema, run.request_columns)
    if not rendering.items() <= run.settings.items():
        raise TableError(
            f"the run read {', '.join(run.request_columns)} in another way: by an earlier"
            " release of phi3-batch, which can verify it, or when a column had another type"
        )
    settings = identity.settings_of(run.fingerprint)
    request = identity.request_id(rows.schema, run.request_columns, settings)
    # no more than is compared: an input may have a column of any name
    names = dict.fromkeys([*run.ids, *(field.name for field in kept)])
    return rows.select(*map(named, names), request.alias(schema.REQUEST_ID))
