"""The plots of a report, as SVG."""

import re
from collections.abc import Sequence
from io import StringIO
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from phi3_batch.report.figures import RunReport, errors_by_count, format_share
from phi3_batch.report.speed import format_rate, rate_curve, timed, work
from phi3_batch.scoring.job.statistics import ChunkRecord
from phi3_batch.words import format_duration

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


class Plot(NamedTuple):
    """A plot, and what it shows for who cannot see it."""

    title: str
    says: str
    svg: Markup


class _Unit(NamedTuple):
    name: str
    seconds: float


def _unit(seconds: float) -> _Unit:
    """What an axis up to so many seconds is best read in."""
    if seconds <= 120:
        return _Unit("seconds", 1)
    return _Unit("minutes", 60) if seconds <= 3 * 3600 else _Unit("hours", 3600)


def draw(report: RunReport, chunks: Sequence[ChunkRecord]) -> dict[str, Plot | None]:
    """The plots by name, None for what there is nothing to show of."""
    # what the style sets is read while things are drawn, and put back after
    shown = timed(chunks)
    with matplotlib.rc_context(_STYLE):
        return {
            "rate": _draw_rate(shown) if shown else None,
            "seconds": _draw_seconds(shown) if shown else None,
            "lengths": _draw_lengths(report),
            "errors": _draw_errors(report),
        }


def _draw_rate(chunks: Sequence[ChunkRecord]) -> Plot:
    what, amounts = work(chunks)
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
        f"{title}: up to {format_rate(curve.rates.max())} in"
        f" {format_duration(curve.edges[-1])}{without}."
    )
    return Plot(title, says, _svg(figure))


def _draw_seconds(chunks: Sequence[ChunkRecord]) -> Plot:
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
    return Plot(title, says, _svg(figure))


def _draw_lengths(report: RunReport) -> Plot | None:
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
    return Plot(title, f"Rows by length in tokens: {' and '.join(ranges)}.", _svg(figure))


def _draw_errors(report: RunReport) -> Plot | None:
    errors = errors_by_count(report.errors)
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
    return Plot(title, says, _svg(figure))


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
