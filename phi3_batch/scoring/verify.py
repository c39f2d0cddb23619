"""Verifying an output any time later, by its tables alone: no model, no tracking store."""

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.errors import TableError
from phi3_batch.scoring import balance, identity, schema, tables
from phi3_batch.scoring.balance import Balance
from phi3_batch.scoring.columns import find_field
from phi3_batch.scoring.ledger import Ledger, RunRecord, read_ledger
from phi3_batch.scoring.tables import Location


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and what came of it.

    Attributes:
        record: of the run that was verified.
        input_version: that was read; None for files and views.
        output_version: that was read.
        balance: rows in against rows out.
    """

    record: RunRecord
    input_version: int | None
    output_version: int
    balance: Balance


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
    record = _record_of(read_ledger(spark, output), source)
    if record is None:
        raise TableError(
            f"the history of {output.text} has no run of phi3-batch: Delta keeps it for 30 days"
            " unless the table's delta.logRetentionDuration says otherwise"
        )
    version = None if record.ids else record.input_version
    table = tables.open_input(spark, source, version=version)
    rows = _with_request_ids(identity.limited(table.rows, record.limit), record, source)
    out = tables.read_version(spark, output, there.version)
    if not record.ids:
        out = out.where(F.col(schema.FINGERPRINT) == record.fingerprint)
    return Verification(
        record, table.version, there.version, balance.compare(rows, out, record.ids)
    )


def _record_of(ledger: Ledger, source: Location) -> RunRecord | None:
    """Of the last run on this input, else of the last run."""
    records = [commit.record for commit in ledger.commits if commit.record]
    same = [record for record in records if record.input == source.text]
    return next(reversed(same or records), None)


def _with_request_ids(rows: DataFrame, record: RunRecord, source: Location) -> DataFrame:
    for name in (*record.request_columns, *record.ids):
        if find_field(rows.schema, name) is None:
            raise TableError(
                f"{source.text} has no column {name!r}, which the run read: is it another table?"
            )
    rendering = identity.rendering(rows.schema, record.request_columns)
    if not rendering.items() <= record.settings.items():
        raise TableError(
            f"the run read {', '.join(record.request_columns)} in another way: by an earlier"
            " release of phi3-batch, which can verify it, or when a column had another type"
        )
    settings = identity.settings_of(record.fingerprint)
    request = identity.request_id(rows.schema, record.request_columns, settings)
    return rows.withColumn(schema.REQUEST_ID, request)
