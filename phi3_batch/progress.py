"""How far a job is: a bar on a terminal and in a notebook, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from phi3_batch.words import format_duration, in_brackets

if TYPE_CHECKING:
    from phi3_batch.scoring.job.plan import ScoringPlan
    from phi3_batch.scoring.job.run import Progress

# In a log, a line at each tenth of the rows; where that takes long, one in ten minutes.
_LINE_AFTER_S = 600


@contextmanager
def progress_display(
    plan: "ScoringPlan", console: Console
) -> Iterator[Callable[["Progress"], None]]:
    """Show a job's progress while it runs in the ``with`` block."""
    counts_tokens = plan.counts_tokens
    # rich draws in a notebook by ipywidgets, and says nothing but a warning without
    if console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Bar(*columns, console=console) as bar:
            task = bar.add_task("", total=plan.total)
            yield lambda progress: bar.update(
                task, completed=progress.rows_done, description=_words(progress, counts_tokens)
            )
        return
    tenths_shown, shown_at = -1, 0.0

    def line(progress: "Progress") -> None:
        nonlocal tenths_shown, shown_at
        tenths = 10 * progress.rows_done // max(progress.rows, 1)
        if tenths > tenths_shown or time.monotonic() > shown_at + _LINE_AFTER_S:
            tenths_shown, shown_at = tenths, time.monotonic()
            console.print(f"scoring: {_words(progress, counts_tokens)}")

    yield line


def _words(progress: "Progress", counts_tokens: bool) -> str:
    errors = progress.errors.total()
    parts = [f"{progress.rows_done:,} of {progress.rows:,} rows"]
    if errors:
        parts.append(f"{errors:,} errors{in_brackets(progress.errors)}")
    if progress.requests_done and counts_tokens:
        parts.append(f"{progress.tokens_per_second:,.1f} tokens/s")
    if progress.seconds_left:
        parts.append(f"{format_duration(progress.seconds_left)} left")
    return ", ".join(parts)
