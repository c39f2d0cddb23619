"""The command line. The only package that prints; it turns errors into one line and an exit code.

Exit codes: 0 done (rows with errors included: they are data), 1 an error said in one line,
2 wrong usage, 3 a budget was spent and rows are left, 130 interrupted, 141 nobody reads the output
any more, 143 terminated.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from phi3_batch import __version__, platforms
from phi3_batch.cli.console import err, out
from phi3_batch.cli.log import log_app
from phi3_batch.cli.manage import build, doctor, promote, verify
from phi3_batch.cli.plan import plan
from phi3_batch.cli.score import score
from phi3_batch.cli.values import CheckedCommand
from phi3_batch.errors import EnvironmentProblemError, Phi3BatchError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(log_app, name="log")


def _say_version(asked: bool) -> None:
    if asked:
        out.print(f"phi3-batch {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options_of_every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_say_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Batch inference with Phi-3 on Spark, on CPUs, through MLflow."""


for command in (plan, score, verify, promote, build, doctor):
    app.command(cls=CheckedCommand)(command)


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
        # written at once: Spark's JVM and workers write to the same stderr
        err.print(Text.assemble(("error:", "red"), " ", line))
        return 1
    return 0


def _one_line(error: Exception) -> str | None:
    """What to tell the user, if it is for the user."""
    if isinstance(error, Phi3BatchError):
        return str(error)
    if isinstance(error, ImportError):  # of a package of the platform's, that is missing or old
        try:
            platforms.check()
        except EnvironmentProblemError as problem:
            return str(problem)
        return None
    from phi3_batch.user_errors import in_one_line

    return in_one_line(error)


def run() -> None:
    """Entry point of the command ``phi3-batch``."""
    # else Python looks once more through all that was imported before it ends: for a second
    atexit.register(gc.freeze)
    if code := main():  # Databricks takes any exit for a failed task
        sys.exit(code)
