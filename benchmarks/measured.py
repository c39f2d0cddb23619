"""What a measurement gives, and the ratios and tables that are made of several."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import random_phi3 as model
from rich.console import Console
from rich.table import Table

# multiplications and additions for a token, in the linear layers: qkv and o, gate-up and down
LAYER_MACS = 4 * model.HIDDEN_SIZE**2 + 3 * model.HIDDEN_SIZE * model.INTERMEDIATE_SIZE
LM_HEAD_MACS = model.HIDDEN_SIZE * model.VOCABULARY


@dataclass(frozen=True)
class Measured:
    """One engine on the rows of one workload.

    Attributes:
        rows: that were answered.
        prompt_tokens: of them.
        output_tokens: that were generated.
        seconds: from the first row's start to the last one's end, without loading.
        load_seconds: of the model.
        peak_bytes: of the process's memory, its resident set.
        cache_bytes: of these, the KV cache, as far as the runtime tells.
        disturbed: share of the processors' time that others took meanwhile.
    """

    rows: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    load_seconds: float = 0.0
    peak_bytes: int = 0
    cache_bytes: int = 0
    disturbed: float = 0.0

    @property
    def rate(self) -> float:
        """Output tokens a second, the reading of the prompts included."""
        return self.output_tokens / self.seconds

    @property
    def gmacs(self) -> float:
        """Billions of multiplications and additions a second that the rows cannot do without.

        Every token goes through the layers, only those that are generated through the lm_head.
        Attention, less than 2 % at these lengths, is left out.
        """
        tokens = self.prompt_tokens + self.output_tokens
        macs = tokens * model.LAYERS * LAYER_MACS + self.output_tokens * LM_HEAD_MACS
        return macs / self.seconds / 1e9


def median(rounds: Sequence[Measured]) -> Measured:
    """The round of median speed; of an even number, the slower of the two in the middle."""
    return sorted(rounds, key=lambda measured: measured.rate)[(len(rounds) - 1) // 2]


def spread_percent(rounds: Sequence[Measured]) -> float:
    """How far the rounds are apart, of their mean."""
    rates = [measured.rate for measured in rounds]
    return 100 * (max(rates) - min(rates)) / statistics.mean(rates)


def ratio(measured: Measured, other: Measured | None) -> str:
    """How many times as fast, or nothing where the other one was not measured."""
    return f"{measured.rate / other.rate:.2f}" if other else ""


def print_ratios(
    console: Console,
    title: str,
    results: Mapping[str, Sequence[Measured]],
    against: Mapping[str, str],
    peak_gmacs: float | None,
    onnx_bytes: int,
) -> None:
    """Print one workload's table.

    Args:
        console: to print on.
        title: of the table.
        results: the rounds of each engine; none of one that could not be run.
        against: a column's heading, and the engine that it divides by.
        peak_gmacs: of the machine; None leaves its column empty.
        onnx_bytes: of the model's file, for the memory column.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for heading in (
        "rows",
        "rounds ±",
        "output tok/s",
        *against,
        "of peak",
        "memory",
        "less cache",
    ):
        table.add_column(heading, justify="right")
    medians = {name: median(rounds) for name, rounds in results.items() if rounds}
    for name, rounds in results.items():
        if not rounds:
            table.add_row(name, "not installed")
            continue
        measured = medians[name]
        less_cache = (measured.peak_bytes - measured.cache_bytes) / onnx_bytes
        noise = f"{spread_percent(rounds) / 2:.0f} %" if len(rounds) > 1 else ""
        table.add_row(
            name,
            str(measured.rows),
            f"{len(rounds)} {noise}".strip(),
            f"{measured.rate:.1f}",
            *(ratio(measured, medians.get(other)) for other in against.values()),
            f"{100 * measured.gmacs / peak_gmacs:.0f} %" if peak_gmacs else "",
            f"{measured.peak_bytes / 1e9:.2f} GB",
            f"{less_cache:.2f} x file",
        )
    console.print(table)
