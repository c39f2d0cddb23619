"""How far a job is: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from phi3_batch.cli.console import err, in_brackets
from phi3_batch.words import format_duration

if TYPE_CHECKING:
    from phi3_batch.scoring.job.plan import ScoringPlan
    from phi3_batch.scoring.job.run import Progress

# In a log, a line at each tenth of the rows; where that takes long, one in ten minutes.
_LINE_AFTER_S = 600


@contextmanager
def progress_display(plan: "ScoringPlan") -> Iterator[Callable[["Progress"], None]]:
    """Show a job's progress while it runs in the ``with`` block."""
    counts_tokens = plan.counts_tokens
    if err.is_terminal:
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Bar(*columns, console=err) as bar:
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
            err.print(f"scoring: {_words(progress, counts_tokens)}")

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
