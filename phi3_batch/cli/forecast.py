"""What a plan looks like in print."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from phi3_batch.cli.console import out, print_field
from phi3_batch.words import format_duration, in_brackets

if TYPE_CHECKING:
    from phi3_batch.scoring.job.forecast import Forecast
    from phi3_batch.scoring.job.plan import ScoringPlan


def print_plan(plan: "ScoringPlan") -> None:
    """Say what a job reads, writes and has to do."""
    options, found, input = plan.options, plan.job.model, plan.job.input
    version = "" if input.version is None else f" (version {input.version})"
    alias = "" if found.uri == found.resolved_uri else f" (as {found.uri})"
    print_field("input", f"{options.input.text}{version}, {options.source.describe(found)}")
    print_field("model", f"{found.resolved_uri}{alias}{_describe(plan)}")
    print_field("output", f"{options.output.text} (mode {options.mode})")
    print_field("columns", ", ".join(plan.columns))
    if plan.changes:
        changes = plan.changes
        print_field(
            "changes",
            f"{changes.new:,} new, {changes.changed:,} changed, {changes.failed:,} failed before,"
            f" {changes.unchanged:,} unchanged, {changes.removed:,} removed"
            + (f", {changes.updated:,} updated in kept columns alone" if changes.updated else ""),
        )
    _print_rows(plan)
    print_field("run", plan.run.fingerprint)
    for note in plan.notes:
        out.print(f"note: {note}")
    if plan.work and plan.work.model.one_row_at_a_time:
        out.print(
            "note: this model answers the first row of a batch alone, so it is given one row at a"
            " time, which is slow; let its predict return one string for each row"
        )


def _describe(plan: "ScoringPlan") -> str:
    """How a model answers; nothing where it need not be loaded."""
    if plan.work is None:
        return ""
    model = plan.work.model
    wrapped = "" if model.served_uri == model.resolved_uri else ", wrapped for Spark"
    return f", {model.kind.value}{wrapped}"


def _print_rows(plan: "ScoringPlan") -> None:
    if plan.work is None:
        to_score = "none to score"
    else:
        requests = sum(chunk.requests for chunk in plan.chunks)
        to_score = f"{requests:,} requests in {len(plan.chunks):,} chunks"
    print_field("rows", f"{plan.total:,}{in_brackets(plan.refused)}, {to_score}")
    if plan.done:
        there = sum(chunk.rows for chunk in plan.chunks if chunk.number in plan.done)
        print_field(
            "resumed",
            f"{there:,} rows are in the output, {len(plan.to_do):,} chunks are to do",
        )


def print_forecast(forecast: "Forecast", refused: Mapping[str, int]) -> None:
    """Say what a job would take."""
    tokens, pilot = forecast.tokens, forecast.pilot
    failing = Counter(refused)
    if tokens:
        counted = "exact" if tokens.exact else f"from {tokens.counted:,} of them"
        print_field(
            "tokens in", f"{tokens.prompt_tokens:,} in {tokens.requests:,} requests ({counted})"
        )
        failing.update(tokens.errors)
    print_field("will fail", f"{failing.total():,}{in_brackets(failing)}")
    if pilot:
        generated = "" if pilot.tokens_each is None else f", {pilot.tokens_each:,.1f} tokens out"
        print_field(
            "pilot",
            f"{pilot.requests} requests on one executor: {pilot.seconds_each:,.2f} s{generated}"
            " each",
        )
        print_field(
            "expected",
            f"{format_duration(forecast.hours * 3600)} for {forecast.requests:,} requests on"
            f" {forecast.executors:,} executors with {forecast.cores_each} cores each:"
            f" {forecast.core_hours:,.2f} core-hours",
        )
    if tokens and tokens.memory_bytes:
        print_field(
            "memory",
            f"about {tokens.memory_bytes / 1e9:,.1f} GB per executor, outside Spark's heap, for"
            f" up to {tokens.longest:,} tokens",
        )
    out.print("nothing was scored into the output")
