"""Rows to score, each with its request: what the model is asked, once for equal ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from phi3_batch.errors import TableError
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.columns import OURS, find_field, named
from phi3_batch.scoring.rows.hidden import with_texts
from phi3_batch.scoring.rows.model import ScoringModel
from phi3_batch.scoring.rows.requests import RowRequests
from phi3_batch.scoring.rows.source import Source
from phi3_batch.scoring.rows.time_limit import allowed_seconds

# Columns of rows to score, beside the input's: the hash of the request, why no model sees it (else
# null), the number that says its chunk, and how many copies of it were scored before.
REQUEST_ID = f"{OURS}request_id"
REFUSAL = f"{OURS}refusal"
BUCKET = f"{OURS}bucket"
EXISTING = f"{OURS}existing"


@dataclass(frozen=True, slots=True)
class Work:
    """Rows to score, and what a model is asked for them.

    Attributes:
        model: what will score them.
        requests: what it is asked for each row.
        rows: with columns of our own beside the input's.
        kept: names of the input's columns that are carried along.
    """

    model: ScoringModel
    requests: RowRequests
    rows: DataFrame
    kept: tuple[str, ...]

    @property
    def greedy(self) -> Column:
        """Whether a row is decoded greedily, so that equal requests have equal completions."""
        temperature = self.requests.inputs.get("temperature")  # where a job or its rows have one
        if self.model.compares_choices:
            return F.lit(True)
        return F.lit(self.model.greedy) if temperature is None else temperature == 0

    @property
    def is_greedy(self) -> bool:
        """Whether all rows are decoded greedily."""
        return self.model.all_greedy(by_rows="temperature" in self.requests.inputs)

    @property
    def allowed_s(self) -> Column:
        """Seconds that each row may take by itself."""
        return allowed_seconds(self.model, self.requests)

    def sound(self) -> DataFrame:
        """The rows that the model sees."""
        return self.rows.where(F.col(REFUSAL).isNull())


def with_request_ids(
    rows: DataFrame, names: Sequence[str], request_columns: Sequence[str], settings: str
) -> DataFrame:
    """What a job needs of its rows, and no column more: others may have any name.

    Args:
        rows: the input.
        names: of columns that are needed beside those of the request.
        request_columns: whose values are the request.
        settings: from :func:`~phi3_batch.scoring.rows.identity.settings_digest`.

    Raises:
        TableError: a column has a name like one of the job's own.
    """
    fields = [find_field(rows.schema, name) for name in (*names, *request_columns)]
    needed = list(dict.fromkeys(field.name for field in fields if field))
    hidden = [name for name in needed if name.lower().startswith(OURS)]
    if hidden:
        raise TableError(
            f"input column {hidden[0]!r} has a name that the job needs for itself: names that begin"
            f" with {OURS} are not for input columns, so rename it"
        )
    request = identity.request_id(rows.schema, request_columns, settings)
    return rows.select(*map(named, needed), request.alias(REQUEST_ID))


def identified(rows: DataFrame, kept: Sequence[str]) -> DataFrame:
    """What an output has of rows before they are scored: what is kept, and their request ids."""
    return rows.select(*map(named, kept), F.col(REQUEST_ID).alias(schema.REQUEST_ID))


def with_requests(
    rows: DataFrame, table: StructType, source: Source, model: ScoringModel, kept: Sequence[str]
) -> Work:
    """What a model is asked for each row.

    Args:
        rows: from :func:`with_request_ids`, with EXISTING where copies were scored before.
        table: the schema of the input.
        source: where the requests are.
        model: that was loaded.
        kept: names of the columns that are carried along.
    """
    requests = source.requests(model, table)
    rows = with_texts(rows.sparkSession, rows, source.texts(model))
    if EXISTING not in rows.columns:
        rows = rows.withColumn(EXISTING, F.lit(0))
    bucket = identity.bucket_of(F.col(REQUEST_ID))
    rows = rows.withColumns({REFUSAL: requests.refusal, BUCKET: bucket})
    return Work(model, requests, rows, tuple(kept))
