"""The report of one scoring run: a page that stands on its own, to be mailed, printed and kept.

Counts, times and names only: no text of a prompt or a completion can get into it.
"""

import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from phi3_batch.errors import InvalidParameterError
from phi3_batch.scoring.job.statistics import ChunkRecord, Histogram
from phi3_batch.words import format_duration

_COMPLETE = "complete"
# A stretch without work is cut out of the time axis when it is longer than this many chunks.
_PAUSE_CHUNKS = 10
# The points that a curve of 9 inches can show.
_BINS = 240
# Delta's clock: a chunk that took less has taken no time by it.
_CLOCK_S = 0.001

# The plots are drawn in these, and the page's style sheet says what each looks like by day, by
# night and on paper.
_INK, _MUTED, _RULE, _ACCENT = "#1b1f24", "#667079", "#dde2e6", "#0f6cbd"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule", _ACCENT: "--accent"}
_WIDE, _HIGH = 9.0, 2.6  # inches
_STYLE = matplotlib.RcParams(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "phi3_batch",
        "font.size": 9,
        "text.color": _INK,
        "text.parse_math": False,  # a code is a code, whatever its letters
        "axes.edgecolor": _RULE,
        "axes.facecolor": "none",
        "axes.labelcolor": _MUTED,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "figure.facecolor": "none",
        "savefig.facecolor": "auto",
        "grid.color": _RULE,
        "grid.linewidth": 0.6,
        "xtick.color": _RULE,
        "xtick.labelcolor": _MUTED,
        "ytick.color": _RULE,
        "ytick.labelcolor": _MUTED,
        "ytick.major.size": 0,
    }
)

_Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class RunReport:
    """All that a report says.

    Attributes:
        state: how the run ended: "complete", or why it did not get there.
        model: its URI, and how it answers where that is known.
        input: table that was read.
        output: table that was written.
        fingerprint: of the run.
        run_id: of MLflow's run.
        rows_expected: in the input.
        rows: in the output.
        requests: distinct requests that were scored; None where that was another process.
        prompt_tokens: in all rows; 0 when the model does not count.
        completion_tokens: in all rows; 0 when the model does not count.
        errors: rows with an error, by code.
        chunks: committed, in any order.
        prompt_lengths: None when the model does not count tokens.
        completion_lengths: None when the model does not count tokens.
        parameters: by name.
        versions: of packages, tables and models, by name.
    """

    state: str
    model: str
    input: str
    output: str
    fingerprint: str
    run_id: str
    rows_expected: int
    rows: int
    requests: int | None
    prompt_tokens: int
    completion_tokens: int
    errors: Mapping[str, int]
    chunks: Sequence[ChunkRecord]
    prompt_lengths: Histogram | None
    completion_lengths: Histogram | None
    parameters: Mapping[str, str]
    versions: Mapping[str, str]


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


class _Plot(NamedTuple):
    title: str
    says: str
    svg: Markup


class _Unit(NamedTuple):
    name: str
    seconds: float


def render(report: RunReport) -> str:
    """The report as one HTML page that loads nothing from anywhere."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "duration": format_duration,
        "moment": _format_moment,
        "share": format_share,
    }
    source = files("phi3_batch").joinpath("report.html.j2").read_text("utf-8")
    chunks = sorted(report.chunks, key=lambda chunk: (chunk.committed, chunk.chunk))
    return environment.from_string(source).render(
        report=report,
        well=_is_well(report),
        sentence=summarize(report),
        figures=list(_key_figures(report)),
        chunks=chunks,
        started=min((chunk.started for chunk in chunks), default=None),
        error_rows=_errors_by_count(report.errors),
        plots=_draw(report, chunks),
    )


def check_report_file(file: Path) -> None:
    """See whether a report can be written to a file, and leave the file as it is.

    Raises:
        InvalidParameterError: it is a folder, or it cannot be written.
    """
    try:
        if file.exists():
            os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))  # O_NONBLOCK: of a pipe too
        elif not file.parent.is_dir():
            raise InvalidParameterError(f"--report: there is no folder {file.parent}")
        else:
            tempfile.TemporaryFile(dir=file.parent).close()  # has no name, where Linux can do so
    except OSError as error:
        raise InvalidParameterError(
            f"--report: {file} cannot be written: {error.strerror}; give the name of a file"
        ) from error


def summarize(report: RunReport) -> str:
    """What was done and whether all is well, in a sentence or two."""
    done, expected = f"{report.rows:,}", f"{report.rows_expected:,}"
    if not report.rows_expected and not report.rows:
        return f"There was nothing to score: {report.input} has no rows."
    if report.state != _COMPLETE:
        return (
            f"Not finished ({report.state}): {done} of {expected} rows of {report.input}"
            f" ({format_share(report.rows, report.rows_expected)}) are in {report.output},"
            " and the same command goes on from there."
        )
    if report.rows != report.rows_expected:
        return (
            f"The run is complete, but {report.output} has {done} rows of it where"
            f" {report.input} has {expected}: this needs to be looked into."
        )
    what = f"All {expected} rows of {report.input} were scored with {report.model}"
    if failed := sum(report.errors.values()):
        return (
            f"{what}; {_count(failed, 'row')} got an error in place of a completion"
            f" ({format_share(failed, report.rows)}), by code below."
        )
    return f"{what}, and all is well: no row failed."


def format_share(part: int, whole: int) -> str:
    """A share in percent; what is there is never called 0%, nor what is missing 100%."""
    if not whole:
        return "–"
    share = part / whole
    if 0 < share < 0.0001:
        return "<0.01%"
    if 0.9999 < share < 1:
        return ">99.99%"
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + "%"


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


def _is_well(report: RunReport) -> bool:
    return (
        report.state == _COMPLETE
        and report.rows == report.rows_expected
        and not sum(report.errors.values())
    )


def _key_figures(report: RunReport) -> Iterator[tuple[str, str, str]]:
    """The big numbers: what it is, the number, and what helps to read it."""
    failed = sum(report.errors.values())
    seconds = busy_seconds(report.chunks)
    timed = _timed(report.chunks)
    what, amounts = _work(timed)
    rate = _format_rate(sum(amounts) / seconds) if seconds else "–"
    yield "rows", f"{report.rows:,}", f"of {report.rows_expected:,} in the input"
    if report.requests is not None:
        yield "requests scored", f"{report.requests:,}", "equal rows are scored once"
    yield "error rate", format_share(failed, report.rows), f"{_count(failed, 'row')} with an error"
    yield f"{what} per second", rate, "while chunks were running"
    untimed = len(report.chunks) - len(timed)
    chunks = f"of work, in {_count(len(timed), 'chunk')}"
    note = f"{chunks}; of {untimed:,} more no time is known" if untimed else chunks
    yield "duration", format_duration(seconds), note


def _timed(chunks: Sequence[ChunkRecord]) -> Sequence[ChunkRecord]:
    """The chunks that speak of speed: one whose commit the history has lost took no time by it."""
    return [chunk for chunk in chunks if chunk.seconds] or chunks


def _work(chunks: Sequence[ChunkRecord]) -> tuple[str, list[int]]:
    """What a run's speed is counted in, and how much of it each chunk did."""
    if any(chunk.completion_tokens for chunk in chunks):
        return "tokens out", [chunk.completion_tokens for chunk in chunks]
    return "rows", [chunk.rows for chunk in chunks]


def _errors_by_count(errors: Mapping[str, int]) -> list[tuple[str, int]]:
    """Codes and how many rows have them, the most frequent first."""
    counted = [(code, count) for code, count in errors.items() if count]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _format_moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}".rstrip()


def _format_rate(rate: float) -> str:
    digits = 0 if rate >= 100 else 1 if rate >= 10 else 2
    return f"{rate:,.{digits}f}"


def _unit(seconds: float) -> _Unit:
    """What an axis up to so many seconds is best read in."""
    if seconds <= 120:
        return _Unit("seconds", 1)
    return _Unit("minutes", 60) if seconds <= 3 * 3600 else _Unit("hours", 3600)


def _draw(report: RunReport, chunks: Sequence[ChunkRecord]) -> dict[str, _Plot | None]:
    """The plots by name, None for what there is nothing to show of."""
    # what the style sets is read while things are drawn, and put back after
    timed = _timed(chunks)
    with matplotlib.rc_context(_STYLE):
        return {
            "rate": _draw_rate(timed) if timed else None,
            "seconds": _draw_seconds(timed) if timed else None,
            "lengths": _draw_lengths(report),
            "errors": _draw_errors(report),
        }


def _draw_rate(chunks: Sequence[ChunkRecord]) -> _Plot:
    what, amounts = _work(chunks)
    curve = rate_curve(chunks, amounts)
    unit = _unit(curve.edges[-1])
    edges = curve.edges / unit.seconds

    figure, axes = _axes()
    axes.stairs(curve.rates, edges, fill=True, color=_ACCENT, alpha=0.15)
    axes.stairs(curve.rates, edges, color=_ACCENT, linewidth=1.3, baseline=None)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, curve.rates.max() * 1.15 or 1)
    for at in curve.resumed:
        axes.axvline(at / unit.seconds, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        is_late = at > 0.9 * curve.edges[-1]
        axes.annotate(
            "resumed",
            (at / unit.seconds, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if is_late else 4, -1),
            textcoords="offset points",
            horizontalalignment="right" if is_late else "left",
            verticalalignment="top",
            color=_MUTED,
        )
    without = f", {format_duration(curve.pauses_s)} of pauses left out" if curve.resumed else ""
    axes.set_xlabel(f"{unit.name} since the first start{without}")
    axes.set_ylabel(f"{what} per second")
    title = f"{what.capitalize()} per second over time"
    says = (
        f"{title}: up to {_format_rate(curve.rates.max())} in"
        f" {format_duration(curve.edges[-1])}{without}."
    )
    return _Plot(title, says, _svg(figure))


def _draw_seconds(chunks: Sequence[ChunkRecord]) -> _Plot:
    unit = _unit(max(chunk.seconds for chunk in chunks))
    seconds = np.array([chunk.seconds for chunk in chunks])
    median, p95 = (float(value) for value in np.percentile(seconds, (50, 95)))

    figure, axes = _axes()
    places = np.arange(1, len(chunks) + 1)
    size = 5 if len(chunks) <= 60 else 3
    axes.plot(places, seconds / unit.seconds, "o", color=_ACCENT, markersize=size, alpha=0.8)
    # one label above its line and one below, so that they can be close
    for name, value, style, side in (("p95", p95, (0, (4, 3)), 3), ("median", median, "-", -3)):
        axes.axhline(value / unit.seconds, color=_MUTED, linewidth=1, linestyle=style)
        axes.annotate(
            f"{name} {format_duration(value)}",
            (1, value / unit.seconds),
            xycoords=("axes fraction", "data"),
            xytext=(6, side),
            textcoords="offset points",
            verticalalignment="bottom" if side > 0 else "top",
            color=_MUTED,
            annotation_clip=False,
        )
    axes.set_xlim(0.5, len(chunks) + 0.5)
    axes.set_ylim(0, seconds.max() / unit.seconds * 1.15 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("chunks in the order of their commits")
    axes.set_ylabel(f"{unit.name} per chunk")
    title = "Time per chunk"
    says = (
        f"{title}, from its start to its commit: median {format_duration(median)},"
        f" 95th percentile {format_duration(p95)}, longest {format_duration(seconds.max())}."
    )
    return _Plot(title, says, _svg(figure))


def _draw_lengths(report: RunReport) -> _Plot | None:
    both = {"prompt": report.prompt_lengths, "completion": report.completion_lengths}
    shown = {name: lengths for name, lengths in both.items() if lengths and any(lengths.counts)}
    if not shown:
        return None
    figure = Figure(figsize=(_WIDE, _HIGH), layout="constrained")
    for place, (name, lengths) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), place)
        axes.stairs(lengths.counts, lengths.edges, fill=True, color=_ACCENT, alpha=0.75)
        axes.set_xlim(lengths.edges[0], lengths.edges[-1])
        axes.set_ylim(0, max(lengths.counts) * 1.08)
        axes.set_xlabel(f"{name} length in tokens")
        axes.set_ylabel("rows")
        _use_plain_numbers(axes)
        if _grows(lengths.edges):
            _use_octaves(axes)
    ranges = (
        f"{name}s of {lengths.edges[0]:,.0f} to {lengths.edges[-1]:,.0f} tokens"
        for name, lengths in shown.items()
    )
    title = "Lengths in tokens"
    return _Plot(title, f"Rows by length in tokens: {' and '.join(ranges)}.", _svg(figure))


def _draw_errors(report: RunReport) -> _Plot | None:
    errors = _errors_by_count(report.errors)
    if not errors:
        return None
    figure, axes = _axes(0.5 + 0.32 * len(errors))
    codes, counts = zip(*errors, strict=True)
    places = range(len(errors))
    axes.barh(places, counts, height=0.6, color=_ACCENT, alpha=0.75)
    for place, count in zip(places, counts, strict=True):
        axes.annotate(
            f"{count:,} ({format_share(count, report.rows)})",
            (count, place),
            xytext=(5, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=_INK,
        )
    axes.set_yticks(places, codes)
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(errors) - 0.5, -0.5)
    axes.set_xlim(0, counts[0] * 1.2)  # room for the words beside the longest bar
    axes.xaxis.set_visible(False)
    axes.spines.bottom.set_visible(False)
    axes.grid(visible=False)
    title = "Errors by code"
    says = f"{title}: " + ", ".join(f"{code} {count:,}" for code, count in errors) + " rows."
    return _Plot(title, says, _svg(figure))


def _axes(high: float = _HIGH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDE, high), layout="constrained")
    axes = figure.add_subplot()
    _use_plain_numbers(axes)
    return figure, axes


def _use_plain_numbers(axes: Axes) -> None:
    """Ticks with thousands separated, and never as 1e6."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _grows(edges: Sequence[float]) -> bool:
    """Whether bins are as wide as their lengths are long, not all of one width."""
    return edges[0] > 0 and edges[-1] - edges[-2] > 1.1 * (edges[1] - edges[0])


def _use_octaves(axes: Axes) -> None:
    """An axis on which bins that grow are equally wide: an area is a number of rows again."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _svg(figure: Figure) -> Markup:
    """A figure as an SVG element to put into a page, equal for equal figures."""
    text = StringIO()
    # a date would make each page another, and the other three name places on the network
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML declaration and document type have no place in HTML
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # one page has several, and ids are unique in it
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    return Markup(svg)  # noqa: S704  # matplotlib has escaped what it was given
