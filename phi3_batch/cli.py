"""The command line. The only module that prints; it turns errors into one line and an exit code.

Exit codes: 0 done (rows with errors included: they are data), 1 an error said in one line,
2 wrong usage, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from phi3_batch.errors import Phi3BatchError

if TYPE_CHECKING:  # the commands import what they need: --help must not wait for pyspark
    from phi3_batch.scoring.batch import ScoringPlan, Summary
    from phi3_batch.tracking import ScoringRun

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

app = typer.Typer(
    help="Batch inference with Phi-3 on Spark, on CPUs, through MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
log_app = typer.Typer(help="Log a model to MLflow.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(log_app, name="log")


class Mode(StrEnum):
    """What happens when the output table is there already."""

    error = "error"
    append = "append"
    overwrite = "overwrite"


@log_app.command("prompt")
def log_prompt(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder of an int4 ONNX build of Phi-3.", show_default=False)
    ],
    register: Annotated[
        str | None, typer.Option(help="Register a version under this name.", metavar="NAME")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="Give that version this alias, as in models:/NAME@ALIAS.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the logged model.")] = "phi3-prompt",
) -> None:
    """Log a model that completes raw prompts: a column `prompt` in, text out."""
    from phi3_batch.models.log import log_prompt_model

    info = log_prompt_model(model_dir, name=name, registered_model_name=register, alias=alias)
    _out.print(f"logged      {info.model_uri}")
    if register:
        _out.print(f"registered  models:/{register}/{info.registered_model_version}")
    if alias:
        _out.print(f"alias       models:/{register}@{alias}")


@app.command()
def score(
    model: Annotated[
        str, typer.Option(help="MLflow URI, such as models:/NAME@ALIAS.", show_default=False)
    ],
    input: Annotated[
        str,
        typer.Option(
            help="Delta table by name or path, or a .jsonl, .csv or .parquet file.",
            metavar="TABLE_OR_PATH",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            help="Delta table to write, by name or path.",
            metavar="TABLE_OR_PATH",
            show_default=False,
        ),
    ],
    column: Annotated[str, typer.Option(help="Column that holds the prompts.")] = "prompt",
    keep: Annotated[
        str | None,
        typer.Option(help="Input columns to keep in the output; all by default.", metavar="A,B,…"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Score this many rows at most.", min=1, metavar="ROWS")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="What to do when the output table exists.")
    ] = Mode.error,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to generate a row.", metavar="N")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; above 0 samples.", metavar="X")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from this probability mass.", metavar="X")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from the K likeliest tokens; 0 is all.", metavar="K")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="String that ends a completion; may be given again.", metavar="TEXT"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the random numbers of sampling.", metavar="N")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")
    ] = False,
) -> None:
    """Score a table of prompts with a logged model, and write a Delta table of completions.

    A generation option that is not given has the model's own default.
    """
    from phi3_batch import tracking
    from phi3_batch.scoring import batch, session
    from phi3_batch.scoring.tables import Location

    generation: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
    }
    options = batch.ScoreOptions(
        model=model,
        input=Location(input),
        output=Location(output),
        column=column,
        keep=tuple(keep.split(",")) if keep is not None else None,
        limit=limit,
        mode=mode.value,
        generation={name: value for name, value in generation.items() if value is not None},
    )
    with _status("starting Spark (the first start fetches Delta's jars)"):
        spark = session.get_session()
    with _status("checking the tables and the model"):
        plan = batch.plan_scoring(spark, options)
    _print_plan(plan)
    if dry_run:
        _out.print("dry run: nothing was scored or written")
        return
    with tracking.scoring_run(plan) as run:
        try:
            with _task_bar(plan.tasks) as report:
                summary = batch.run_scoring(spark, plan, run.run_id, report)
        except KeyboardInterrupt:
            _err.print("interrupted: the output is as it was, the same command starts anew")
            raise typer.Exit(130) from None
        run.record(summary)
    _print_summary(plan, summary, run)


@app.command()
def doctor() -> None:
    """Check this machine: Python, Java, packages, Delta, processors, memory, model store."""
    from phi3_batch.doctor import check_all

    failed = 0
    for finding in check_all():
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        _out.print(f"{mark}  {finding.name:<12} ", end="")
        _out.print(finding.text, markup=False)
        failed += not finding.ok
    if failed:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # MLflow's progress bars and notes are for notebooks
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    try:
        app(args=arguments, prog_name="phi3-batch")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except Exception as error:
        line = _one_line(error)
        if line is None:
            raise  # a mistake of ours, not the user's: the traceback is what finds it
        _err.print("[red]error:[/] ", end="")
        _err.print(line, markup=False)
        return 1
    return 0


def _one_line(error: Exception) -> str | None:
    """What to tell the user, if it is for the user."""
    if isinstance(error, Phi3BatchError):
        return str(error)
    from mlflow.exceptions import MlflowException
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    from phi3_batch.scoring.tables import first_line

    if isinstance(error, MlflowException):  # a store that does not answer, a name it refuses
        return f"MLflow: {first_line(error)}"
    if isinstance(error, PySparkException | Py4JError):  # a file that has gone, a full disk
        return f"Spark: {first_line(error)}"
    return None


def _print_plan(plan: "ScoringPlan") -> None:
    options, model = plan.options, plan.model
    version = "" if plan.input.version is None else f" (version {plan.input.version})"
    alias = "" if model.uri == model.resolved_uri else f" (as {model.uri})"
    _print_field("input", f"{options.input.text}{version}, column {options.column}")
    _print_field("model", f"{model.resolved_uri}{alias}, {model.kind.value}")
    _print_field("output", f"{options.output.text} (mode {options.mode})")
    _print_field("columns", ", ".join(plan.columns))
    _print_field("rows", f"{plan.rows:,} in {plan.tasks:,} tasks{_in_brackets(plan.refused)}")
    if model.one_row_at_a_time:
        _out.print(
            "note: this model answers the first row of a batch alone, so it is given one row at a"
            " time, which is slow; let its predict return one string for each row"
        )


def _print_summary(plan: "ScoringPlan", summary: "Summary", run: "ScoringRun") -> None:
    _out.print()
    _print_field("scored", f"{summary.rows:,} rows in {summary.seconds:.1f} s")
    _print_field("errors", f"{sum(summary.errors.values()):,}{_in_brackets(summary.errors)}")
    if plan.model.counts_tokens:
        _print_field("tokens in", f"{summary.prompt_tokens:,}")
        _print_field("tokens out", f"{summary.completion_tokens:,}")
        _print_field("speed", f"{summary.tokens_per_second:,.1f} tokens out per second")
    _print_field("table", f"{summary.output_path} (version {summary.output_version})")
    _print_field("mlflow", run.place)


def _print_field(name: str, value: str) -> None:
    _out.print(f"{name:<10}", style="bold", end="  ")
    _out.print(value, markup=False)


def _in_brackets(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{code}: {count:,}" for code, count in counts.items())
    return f" ({listed})" if listed else ""


@contextmanager
def _status(text: str) -> Iterator[None]:
    """A spinner on a terminal, a plain line elsewhere."""
    if _err.is_terminal:
        with _err.status(text):
            yield
    else:
        _err.print(text)
        yield


@contextmanager
def _task_bar(tasks: int) -> Iterator[Callable[[int, int], None]]:
    """Show tasks done: a bar on a terminal, elsewhere a plain line at each tenth."""
    if _err.is_terminal:
        bar = Progress(
            TextColumn("scoring"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} tasks"),
            TimeElapsedColumn(),
            console=_err,
        )
        with bar:
            task = bar.add_task("scoring", total=tasks)
            yield lambda done, total: bar.update(task, completed=done, total=total)
            bar.update(task, completed=bar.tasks[task].total)
    else:
        tenths_shown = -1

        def line(done: int, total: int) -> None:
            nonlocal tenths_shown
            if 10 * done // total > tenths_shown:
                tenths_shown = 10 * done // total
                _err.print(f"scoring: {done} of {total} tasks")

        yield line


def run() -> None:
    """Entry point of the command ``phi3-batch``."""
    sys.exit(main())
