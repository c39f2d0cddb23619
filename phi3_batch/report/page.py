"""A report as one page of HTML."""

from importlib.resources import files

import jinja2

from phi3_batch.report.figures import (
    RunReport,
    errors_by_count,
    format_moment,
    format_share,
    is_well,
    key_figures,
    summarize,
)
from phi3_batch.report.plots import draw
from phi3_batch.words import format_duration


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
        "moment": format_moment,
        "share": format_share,
    }
    source = files("phi3_batch.report").joinpath("page.html.j2").read_text("utf-8")
    chunks = sorted(report.chunks, key=lambda chunk: (chunk.committed, chunk.chunk))
    return environment.from_string(source).render(
        report=report,
        well=is_well(report),
        sentence=summarize(report),
        figures=list(key_figures(report)),
        chunks=chunks,
        started=min((chunk.started for chunk in chunks), default=None),
        error_rows=errors_by_count(report.errors),
        plots=draw(report, chunks),
    )
