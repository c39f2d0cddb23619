"""What a report says, in figures and in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from phi3_batch.report.speed import busy_seconds, format_rate, timed, work
from phi3_batch.scoring.job.statistics import ChunkRecord, Histogram
from phi3_batch.words import format_duration

_COMPLETE = "complete"


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


def summarize(report: RunReport) -> str:
    """What was done and whether all is well, in a sentence or two."""
    done, expected = f"{report.rows:,}", f"{report.rows_expected:,}"
    if not report.rows_expected and not report.rows:
        return f"There was nothing to score: {report.input} has no rows."
    if report.state != _COMPLETE:
        return (
            f"Not finished ({report.state}): {done} of {expected} rows of {report.input}"
            f" ({format_share(report.rows, report.rows_expected)}) are in {report.output};"
            " run the same command to continue."
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


def is_well(report: RunReport) -> bool:
    """Whether each row was scored, and none got an error."""
    return (
        report.state == _COMPLETE
        and report.rows == report.rows_expected
        and not sum(report.errors.values())
    )


def key_figures(report: RunReport) -> Iterator[tuple[str, str, str]]:
    """The big numbers: what it is, the number, and what helps to read it."""
    failed = sum(report.errors.values())
    seconds = busy_seconds(report.chunks)
    counted = timed(report.chunks)
    what, amounts = work(counted)
    rate = format_rate(sum(amounts) / seconds) if seconds else "–"
    yield "rows", f"{report.rows:,}", f"of {report.rows_expected:,} in the input"
    if report.requests is not None:
        yield "requests scored", f"{report.requests:,}", "equal rows are scored once"
    yield "error rate", format_share(failed, report.rows), f"{_count(failed, 'row')} with an error"
    yield f"{what} per second", rate, "while chunks were running"
    untimed = len(report.chunks) - len(counted)
    chunks = f"of work, in {_count(len(counted), 'chunk')}"
    note = f"{chunks}; of {untimed:,} more no time is known" if untimed else chunks
    yield "duration", format_duration(seconds), note


def errors_by_count(errors: Mapping[str, int]) -> list[tuple[str, int]]:
    """Codes and how many rows have them, the most frequent first."""
    counted = [(code, count) for code, count in errors.items() if count]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_moment(moment: datetime) -> str:
    """A moment to the second, with its time zone."""
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}".rstrip()
