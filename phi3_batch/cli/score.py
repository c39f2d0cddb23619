"""The command ``phi3-batch score``."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from phi3_batch.cli.console import UNREAD, err, out, print_field, status
from phi3_batch.cli.forecast import print_forecast, print_plan
from phi3_batch.cli.options import takes
from phi3_batch.errors import EnvironmentProblemError, InvalidParameterError
from phi3_batch.options import RunOptions
from phi3_batch.progress import progress_display
from phi3_batch.report import can_be_drawn
from phi3_batch.words import in_brackets

if TYPE_CHECKING:  # the commands import what they need: --help must not wait for pyspark
    from phi3_batch.app import Done
    from phi3_batch.scoring.job.plan import ScoringPlan
    from phi3_batch.scoring.job.run import Progress, Summary

# Beside the codes of every command: the budget is spent, and rows are left.
_OUT_OF_BUDGET = 3


@takes(RunOptions)
def score(
    options: RunOptions,
    report: Annotated[
        Path | None,
        typer.Option(help="Also write the run's report to this HTML file.", metavar="FILE"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the plan, and stop."),
    ] = False,
) -> None:
    """Score a table of prompts or chats with a logged model into a Delta table of completions.

    Run the same command again after an interruption and it continues; when all rows are in the
    output it does nothing.

    Generation options default to the model's own values. Prompt models take all of them except
    --n.
    """
    from phi3_batch.app import carry_out
    from phi3_batch.models.wrap import wrap_pipeline
    from phi3_batch.scoring import session
    from phi3_batch.scoring.job.asked import ScoreOptions
    from phi3_batch.scoring.job.forecast import make_forecast
    from phi3_batch.scoring.job.plan import plan_scoring
    from phi3_batch.scoring.job.run import Budget, Outcome

    asked = ScoreOptions.of(options)
    if report is not None:
        _check_report_file(report)
    with status("starting Spark (the first start fetches Delta's jars)"):
        spark = session.get_session()
    with status("checking the tables and the model"):
        planned = plan_scoring(spark, asked, wrap_pipeline=wrap_pipeline)
    print_plan(planned)
    if dry_run:
        with status("counting tokens, trying a few requests"):
            expected = make_forecast(spark, planned, executors=None)
        print_forecast(expected, planned.refused)
        return
    budget = Budget(hours=options.max_hours, output_tokens=options.max_output_tokens)
    checking = status("checking the output") if planned.finished else nullcontext()
    with checking, _sigterm_as_ctrl_c() as terminated:
        done = carry_out(spark, planned, budget, display=_display, warn=_warn)
    summary = done.summary
    if done.was_finished:
        print_field("check", str(summary.balance))
        if done.run_id:
            print_field("mlflow", f"run {done.run_id} has its record now")
        out.print("finished before: every row is in the output, nothing to do")
    elif summary.outcome is Outcome.INTERRUPTED:
        err.print(f"interrupted: {_how_to_go_on(summary)}")
        raise typer.Exit(143 if terminated else UNREAD if err.quiet else 130)
    else:
        _print_summary(planned, done)
    if report and done.page:
        _write_report(done.page, report)
    if summary.outcome is Outcome.OUT_OF_BUDGET:
        err.print(f"the budget is spent: {_how_to_go_on(summary)}")
        raise typer.Exit(_OUT_OF_BUDGET)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[bool]]:
    """Let SIGTERM, which schedulers send, do what Ctrl-C does; the list is empty if none came."""
    received: list[bool] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _display(plan: "ScoringPlan") -> Iterator[Callable[["Progress"], None]]:
    """Show how far a job is; to a reader who has gone (``2>&1 | head``), do what Ctrl-C does."""
    with progress_display(plan, err) as show:

        def show_or_interrupt(progress: "Progress") -> None:
            try:
                show(progress)
            except SystemExit:
                raise KeyboardInterrupt from None

        yield show_or_interrupt


def _warn(line: str) -> None:
    err.print(f"warning: {line}", markup=False)


def _check_report_file(file: Path) -> None:
    """See whether a report can be written to a file, and leave the file as it is.

    Raises:
        EnvironmentProblemError: what draws a report is not installed.
        InvalidParameterError: it is a folder, or it cannot be written.
    """
    if not can_be_drawn():
        raise EnvironmentProblemError("--report needs matplotlib: pip install 'phi3-batch[report]'")
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


def _write_report(page: str, file: Path) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblemError(
            f"the report cannot be written to {file} ({error.strerror}): the output has all that"
            " was scored, and the same command with another --report writes it"
        ) from error


def _how_to_go_on(summary: "Summary") -> str:
    done, rows = summary.progress.rows_done, summary.progress.rows
    if done == 0:
        return "the output is unchanged; run the same command to start again"
    return f"{done:,} of {rows:,} rows are in the output; run the same command to continue"


def _print_summary(plan: "ScoringPlan", done: "Done") -> None:
    summary, progress = done.summary, done.summary.progress
    out.print()
    print_field(
        "scored",
        f"{progress.rows_scored:,} rows in {progress.seconds:.1f} s, {progress.requests_done:,}"
        f" requests in {progress.chunks_done:,} chunks",
    )
    if progress.retries:
        print_field("retries", f"{progress.retries:,}")
    statistics = summary.statistics
    assert statistics is not None  # it was not interrupted
    print_field("errors", f"{statistics.errors.total():,}{in_brackets(statistics.errors)}")
    if plan.counts_tokens:
        print_field("tokens in", f"{statistics.prompt_tokens:,}")
        print_field("tokens out", f"{statistics.completion_tokens:,}")
        print_field("speed", f"{progress.tokens_per_second:,.1f} tokens generated per second")
    if progress.engines:
        print_field("engine", ", ".join(sorted(progress.engines)))
    if summary.balance:
        print_field("check", str(summary.balance))
    print_field("table", f"{summary.output_path} (version {summary.output_version})")
    print_field("mlflow", done.place)
