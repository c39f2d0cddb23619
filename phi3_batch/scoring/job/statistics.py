"""What a run has come to, in figures: by chunk, by error, by length. One look at the output."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.rows import identity
from phi3_batch.scoring.rows.schema import REQUEST_ID

# Bins of lengths: each half an octave wide, 1, 1.4, 2, 2.8, 4 … tokens.
_BINS_PER_OCTAVE = 2


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A chunk that was committed.

    Attributes:
        chunk: its number.
        started: when its job was planned.
        committed: when the table had it.
        rows: in it.
        prompt_tokens: in its rows; 0 when the model does not count.
        completion_tokens: in its rows; 0 when the model does not count.
        errors: rows with an error, by code.
    """

    chunk: int
    started: datetime
    committed: datetime
    rows: int
    prompt_tokens: int
    completion_tokens: int
    errors: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """From its start to its commit; never below 0, though two clocks can say so."""
        return max(0.0, (self.committed - self.started).total_seconds())


@dataclass(frozen=True, slots=True)
class Histogram:
    """Rows by length.

    Attributes:
        edges: in tokens, one more than there are bins; a bin has its lower edge and not its upper.
        counts: of rows, for each bin.
    """

    edges: Sequence[float]
    counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A run's figures, from the rows and the history of its output.

    Attributes:
        chunks: in the order of their commits.
        prompt_lengths: None when the model does not count tokens.
        completion_lengths: None when the model does not count tokens.
    """

    chunks: tuple[ChunkRecord, ...]
    prompt_lengths: Histogram | None
    completion_lengths: Histogram | None

    @property
    def rows(self) -> int:
        """Of the run that are in the output."""
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def errors(self) -> Counter[str]:
        """Rows with an error, by code."""
        total = Counter[str]()
        for chunk in self.chunks:
            total.update(chunk.errors)
        return total

    @property
    def prompt_tokens(self) -> int:
        """In all rows."""
        return sum(chunk.prompt_tokens for chunk in self.chunks)

    @property
    def completion_tokens(self) -> int:
        """In all rows."""
        return sum(chunk.completion_tokens for chunk in self.chunks)


def collect(rows: DataFrame, ledger: Ledger, fingerprint: str, chunk_count: int) -> Statistics:
    """Look at a run's rows.

    Args:
        rows: of the run, in its output.
        ledger: of the output.
        fingerprint: of the run.
        chunk_count: in how many chunks it is scored.
    """
    chunk = identity.bucket_of(F.col(REQUEST_ID)) % chunk_count
    keys = [
        F.col("scored_at"),  # one for all rows that were scored by one job
        chunk.alias("chunk"),
        F.col("error")["code"].alias("code"),
        _bin(F.col("prompt_tokens")).alias("prompt_bin"),
        _bin(F.col("completion_tokens")).alias("completion_bin"),
    ]
    groups = (
        rows.groupBy(*keys)
        .agg(
            F.count(F.lit(1)).alias("rows"),
            F.sum("prompt_tokens").alias("prompt_tokens"),
            F.sum("completion_tokens").alias("completion_tokens"),
        )
        .collect()
    )
    commits = [commit for commit in ledger.commits if commit.fingerprint == fingerprint]
    by_job: dict[tuple[datetime, int], list[Any]] = {}
    for group in groups:
        by_job.setdefault((group["scored_at"], group["chunk"]), []).append(group)
    chunks = []
    for (started, number), parts in by_job.items():
        ends = [c.committed for c in commits if c.chunk == number and c.committed >= started]
        errors = Counter[str]()
        for part in parts:
            if part["code"]:
                errors[part["code"]] += part["rows"]
        chunks.append(
            ChunkRecord(
                chunk=number,
                started=started,
                committed=min(ends, default=started),  # the history may have been cut
                rows=sum(part["rows"] for part in parts),
                prompt_tokens=sum(part["prompt_tokens"] or 0 for part in parts),
                completion_tokens=sum(part["completion_tokens"] or 0 for part in parts),
                errors=errors,
            )
        )
    return Statistics(
        chunks=tuple(sorted(chunks, key=lambda chunk: (chunk.committed, chunk.chunk))),
        prompt_lengths=_histogram(groups, "prompt_bin"),
        completion_lengths=_histogram(groups, "completion_bin"),
    )


def _bin(length: Column) -> Column:
    return F.floor(F.log2(F.when(length > 0, length)) * _BINS_PER_OCTAVE + 1e-9)


def _histogram(groups: Sequence[Any], name: str) -> Histogram | None:
    counts = Counter[int]()
    for group in groups:
        if group[name] is not None:
            counts[group[name]] += group["rows"]
    if not counts:
        return None
    bins = range(min(counts), max(counts) + 1)
    edges = [2 ** (number / _BINS_PER_OCTAVE) for number in (*bins, bins.stop)]
    return Histogram(edges, [counts[number] for number in bins])
