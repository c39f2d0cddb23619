"""How fast a run was, by its chunks."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phi3_batch.scoring.job.statistics import ChunkRecord

# A stretch without work is cut out of the time axis when it is longer than this many chunks.
_PAUSE_CHUNKS = 10
# The points that a curve of 9 inches can show.
_BINS = 240
# Delta's clock: a chunk that took less has taken no time by it.
_CLOCK_S = 0.001

_Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RateCurve:
    """How fast a run was over its time, pauses left out.

    Attributes:
        edges: of the steps, in seconds of time with work since the first start.
        rates: per second, one for each step.
        resumed: where in ``edges`` a pause was cut out.
        pauses_s: what was cut out in all.
    """

    edges: NDArray[np.float64]
    rates: NDArray[np.float64]
    resumed: Sequence[float]
    pauses_s: float


def busy_seconds(chunks: Iterable[ChunkRecord]) -> float:
    """Time in which at least one chunk was running."""
    return sum(end - start for start, end in _merge(_spans(chunks)))


def rate_curve(chunks: Sequence[ChunkRecord], amounts: Sequence[int]) -> RateCurve:
    """How much was done per second, each chunk's amount spread evenly over its time.

    The area under the curve is the sum of the amounts. Each step is the mean over its width, for
    where one chunk takes over from another the exact curve has notches that say nothing.

    Args:
        chunks: at least one.
        amounts: what each chunk did.
    """
    spans = [(start, max(end, start + _CLOCK_S)) for start, end in _spans(chunks)]
    pause_s = _PAUSE_CHUNKS * statistics.median(end - start for start, end in spans)
    stretches = _merge(spans, pause_s)
    step_s = sum(end - start for start, end in stretches) / _BINS

    edges, rates, resumed = [np.zeros(1)], [], []
    for start, end in stretches:
        times = np.linspace(start, end, math.ceil((end - start) / step_s) + 1)
        done = np.zeros_like(times)
        for span, amount in zip(spans, amounts, strict=True):
            done += np.interp(times, span, (0, amount))
        rates.append(np.diff(done) / np.diff(times))
        begins_at = edges[-1][-1]
        resumed.append(float(begins_at))
        edges.append(begins_at + times[1:] - start)
    worked_s = float(edges[-1][-1])
    return RateCurve(
        edges=np.concatenate(edges),
        rates=np.concatenate(rates),
        resumed=resumed[1:],
        pauses_s=stretches[-1][1] - worked_s,
    )


def _spans(chunks: Iterable[ChunkRecord]) -> list[_Span]:
    """When each chunk ran, in seconds since the first start."""
    chunks = list(chunks)
    first = min((chunk.started for chunk in chunks), default=None)
    if first is None:
        return []
    starts = ((chunk.started - first).total_seconds() for chunk in chunks)
    return [(start, start + chunk.seconds) for start, chunk in zip(starts, chunks, strict=True)]


def _merge(spans: Iterable[_Span], gap_s: float = 0.0) -> list[_Span]:
    """Stretches of time that the spans cover, and gaps up to ``gap_s`` between them."""
    merged: list[_Span] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= gap_s:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def timed(chunks: Sequence[ChunkRecord]) -> Sequence[ChunkRecord]:
    """The chunks that speak of speed: one whose commit the history has lost took no time by it."""
    return [chunk for chunk in chunks if chunk.seconds] or chunks


def work(chunks: Sequence[ChunkRecord]) -> tuple[str, list[int]]:
    """What a run's speed is counted in, and how much of it each chunk did."""
    if any(chunk.completion_tokens for chunk in chunks):
        return "tokens out", [chunk.completion_tokens for chunk in chunks]
    return "rows", [chunk.rows for chunk in chunks]


def format_rate(rate: float) -> str:
    """So much per second, in three digits or so."""
    digits = 0 if rate >= 100 else 1 if rate >= 10 else 2
    return f"{rate:,.{digits}f}"
