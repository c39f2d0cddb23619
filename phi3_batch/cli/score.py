"""The command ``phi3-batch score``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from phi3_batch.cli.console import err, in_brackets, out, print_field, status
from phi3_batch.errors import InvalidParameterError

if TYPE_CHECKING:  # the commands import what they need: --help must not wait for pyspark
    from phi3_batch.scoring.batch import Summary
    from phi3_batch.scoring.plan import ScoringPlan
    from phi3_batch.tracking import ScoringRun


class Mode(StrEnum):
    """What happens when the output table is there already."""

    error = "error"
    append = "append"
    overwrite = "overwrite"


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
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of the prompts or messages; the one called prompt, or messages, by"
            " default, as the model wants."
        ),
    ] = None,
    user_template: Annotated[
        str | None,
        typer.Option(
            help="Make messages of plain columns: a text with columns' names in braces.",
            metavar="'… {COLUMN} …'",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="System message of the messages so made.", metavar="TEXT"),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Input columns to keep in the output; all by default.", metavar="A,B,…"),
    ] = None,
    keep_response: Annotated[
        bool,
        typer.Option(
            "--keep-response", help="Keep the whole chat completion, in a column response."
        ),
    ] = False,
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
    n: Annotated[
        int | None,
        typer.Option("--n", help="Choices of a chat; see --keep-response.", metavar="N"),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            help="A chat's own temperature, max_tokens, stop or n, from a column; may be given"
            " again.",
            metavar="NAME=col:COLUMN",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")
    ] = False,
) -> None:
    """Score a table of prompts or chats with a logged model into a Delta table of completions.

    A generation option that is not given has the model's own default. Models of prompts take all
    of them but --n, models of chats --max-tokens, --temperature, --stop and --n.
    """
    from phi3_batch import tracking
    from phi3_batch.models.wrap import wrap_pipeline
    from phi3_batch.scoring import batch, plan, session
    from phi3_batch.scoring.source import Source
    from phi3_batch.scoring.tables import Location
    from phi3_batch.scoring.user_template import UserTemplate

    generation: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
        "n": n,
    }
    options = plan.ScoreOptions(
        model=model,
        input=Location(input),
        output=Location(output),
        source=Source(
            column=column,
            system=system,
            user_template=None if user_template is None else UserTemplate.parse(user_template),
            param_columns=_param_columns(param or []),
        ),
        keep=tuple(keep.split(",")) if keep is not None else None,
        keep_response=keep_response,
        limit=limit,
        mode=mode.value,
        generation={name: value for name, value in generation.items() if value is not None},
    )
    with status("starting Spark (the first start fetches Delta's jars)"):
        spark = session.get_session()
    with status("checking the tables and the model"):
        planned = plan.plan_scoring(spark, options, wrap_pipeline=wrap_pipeline)
    _print_plan(planned)
    if dry_run:
        out.print("dry run: nothing was scored or written")
        return
    with tracking.scoring_run(planned) as run:
        try:
            with _task_bar(planned.tasks) as report:
                summary = batch.run_scoring(spark, planned, run.run_id, report)
        except KeyboardInterrupt:
            err.print("interrupted: the output is as it was, the same command starts anew")
            raise typer.Exit(130) from None
        run.record(summary)
    _print_summary(planned, summary, run)


def _param_columns(given: Sequence[str]) -> dict[str, str]:
    """``["temperature=col:warmth"]`` → ``{"temperature": "warmth"}``."""
    found = {}
    for text in given:
        name, _, column = text.partition("=col:")
        if not name or not column:
            raise InvalidParameterError(
                f"--param {text} is not of the form NAME=col:COLUMN; a value for all rows has an"
                " option of its own, such as --temperature"
            )
        if name in found:
            raise InvalidParameterError(f"--param {name} is given twice")
        found[name] = column
    return found


def _print_plan(plan: "ScoringPlan") -> None:
    options, model = plan.options, plan.model
    version = "" if plan.input.version is None else f" (version {plan.input.version})"
    alias = "" if model.uri == model.resolved_uri else f" (as {model.uri})"
    wrapped = "" if model.served_uri == model.resolved_uri else ", wrapped for Spark"
    print_field("input", f"{options.input.text}{version}, {options.source.describe(model)}")
    print_field("model", f"{model.resolved_uri}{alias}, {model.kind.value}{wrapped}")
    print_field("output", f"{options.output.text} (mode {options.mode})")
    print_field("columns", ", ".join(plan.columns))
    print_field("rows", f"{plan.rows:,} in {plan.tasks:,} tasks{in_brackets(plan.refused)}")
    if model.one_row_at_a_time:
        out.print(
            "note: this model answers the first row of a batch alone, so it is given one row at a"
            " time, which is slow; let its predict return one string for each row"
        )


def _print_summary(plan: "ScoringPlan", summary: "Summary", run: "ScoringRun") -> None:
    out.print()
    print_field("scored", f"{summary.rows:,} rows in {summary.seconds:.1f} s")
    print_field("errors", f"{sum(summary.errors.values()):,}{in_brackets(summary.errors)}")
    if plan.model.counts_tokens:
        print_field("tokens in", f"{summary.prompt_tokens:,}")
        print_field("tokens out", f"{summary.completion_tokens:,}")
        print_field("speed", f"{summary.tokens_per_second:,.1f} tokens out per second")
    print_field("table", f"{summary.output_path} (version {summary.output_version})")
    print_field("mlflow", run.place)


@contextmanager
def _task_bar(tasks: int) -> Iterator[Callable[[int, int], None]]:
    """Show tasks done: a bar on a terminal, elsewhere a plain line at each tenth."""
    if err.is_terminal:
        bar = Progress(
            TextColumn("scoring"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} tasks"),
            TimeElapsedColumn(),
            console=err,
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
                err.print(f"scoring: {done} of {total} tasks")

        yield line
