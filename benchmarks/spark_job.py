"""The Spark job against the engine in it: what Spark, MLflow and Delta Lake cost.

    python benchmarks/spark_job.py
    python benchmarks/spark_job.py --workloads WS   # without the 2,100 rows of T
    python benchmarks/spark_job.py --workloads T --rows 480  # ten minutes without AMX

The rows are a Delta table of messages and a max_tokens of their own. What is timed is the command
`phi3-batch score` as users run it, in a process of its own, from Python's start to its end; and
within it, by a clock in Spark's Python workers, the engine's own calls. The same rows are given to
the bare engine too, all in one call. A machine whose speed changes meanwhile makes that the less
exact of the two comparisons.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from contenders import CONTENDERS
from random_phi3 import HERE, RANDOM_PHI3, random_phi3
from rich.console import Console
from rich.table import Table
from workloads import WORKLOADS, Row, workload

from phi3_batch.engines import registry

MODEL_NAME = "phi3-random"
# what the logged model chooses by itself
BARE = {"native": "our native", "openvino": "our OpenVINO"}[registry.fastest().name]
SHARE_OF_RATE = "job's rate, of the bare engine's"


def prepare(store: Path, names: str, count: int | None) -> None:
    """Log the model, and write the tables of so many rows, all where it is None."""
    from phi3_batch import log_chat_model
    from phi3_batch.scoring.session import get_session

    log_chat_model(RANDOM_PHI3, registered_model_name=MODEL_NAME)
    spark = get_session()
    schema = "id long, messages array<struct<role: string, content: string>>, max_tokens long"
    for name in names:
        taken = workload(name).take(count).rows
        rows = [(index, _messages(row), row.max_tokens) for index, row in enumerate(taken)]
        table = spark.createDataFrame(rows, schema)
        table.write.format("delta").save(str(store / f"{name}-in"))
    spark.stop()


def _messages(row: Row) -> list[tuple[str, str]]:
    system = [("system", row.system)] if row.system else []
    return [*system, ("user", row.question)]


def job(store: Path, name: str, started: float) -> dict[str, Any]:
    """Run the command, with clocks around its parts.

    Args:
        store: where the tables are.
        name: of the workload.
        started: when the process was, by ``time.time``.

    Returns:
        Seconds of each part, the tokens generated, and how many chunks and calls there were.
    """
    from phi3_batch import cli, tracking
    from phi3_batch.scoring import session
    from phi3_batch.scoring.job import plan
    from phi3_batch.scoring.job import run as runner

    seconds = {"Python and imports": time.time() - started}
    sessions: list[Any] = []

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            before = time.perf_counter()
            result = function(*given, **named)
            seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - before
            if part == "session":
                sessions.append(result)
            return result

        return run

    session.get_session = clocked("session", session.get_session)  # type: ignore[assignment]
    plan.plan_scoring = clocked("plan", plan.plan_scoring)  # type: ignore[assignment]
    runner.run_scoring = clocked("scoring", runner.run_scoring)  # type: ignore[assignment]
    record = clocked("report", tracking.ScoringRun.record)
    tracking.ScoringRun.record = record  # type: ignore[method-assign]
    clock = store / f"{name}-clock"
    # Spark hands both to its workers
    os.environ |= {"ENGINE_CLOCK": str(clock), "PYTHONPATH": str(HERE / "worker_clock")}
    output = store / f"{name}-out"
    command = ["score", "--model", f"models:/{MODEL_NAME}/1", "--input", str(store / f"{name}-in")]
    command += ["--output", str(output), "--column", "messages", "--keep", "id"]
    with redirect_stdout(sys.stderr):
        code = cli.main([*command, "--param", "max_tokens=col:max_tokens"])
    if code:
        raise SystemExit(code)
    seconds["command"] = time.time() - started
    spark = sessions[0]
    table = spark.read.format("delta").load(str(output))
    rows = table.select("scored_at", "completion_tokens", "error").collect()
    failed = [row for row in rows if row["error"]]
    if failed:
        raise RuntimeError(f"{len(failed)} rows failed: {failed[0]['error']}")
    calls = [float(line) for line in clock.read_text(encoding="utf-8").split()]
    return {
        "seconds": seconds | {"engine": sum(calls)},
        "tokens": sum(row["completion_tokens"] for row in rows),
        "rows": len(rows),
        "chunks": len({row["scored_at"] for row in rows}),
        "calls": len(calls),
    }


def bare(name: str, count: int | None) -> dict[str, Any]:
    """The engine alone, so many rows in one call."""
    engine = CONTENDERS[BARE](RANDOM_PHI3)
    rows = workload(name).take(count)
    engine.answer([rows.warm_up])
    started = time.perf_counter()
    tokens = engine.answer(rows.rows)
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def child(store: Path, *arguments: str) -> dict[str, Any]:
    """Run a part of this script in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--store", str(store), *arguments],
        check=True,
        cwd=store,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"},
        input=str(time.time()),
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {}


def compare(store: Path, name: str, size: list[str]) -> dict[str, str]:
    """One workload, as a column of the table."""
    one_call = child(store, "--bare", name, *size)
    done = child(store, "--job", name)
    seconds, rate = done["seconds"], one_call["tokens"] / one_call["seconds"]
    accounted = ("Python and imports", "session", "plan", "scoring", "report")

    def of_rate(taken: float) -> str:
        return f"{done['tokens'] / taken / rate:.3f}"

    def at(taken: float) -> str:
        return f"{taken:.1f} s"

    return {
        "rows, chunks, calls of the engine": f"{done['rows']:,}, {done['chunks']}, {done['calls']}",
        "bare engine, one call": f"{at(one_call['seconds'])}, {rate:.1f} tok/s",
        "whole command": at(seconds["command"]),
        "  Python and imports": at(seconds["Python and imports"]),
        "  Spark session": at(seconds["session"]),
        "  plan: tables, model, requests": at(seconds["plan"]),
        "  scoring": at(seconds["scoring"]),
        "    of it the engine's calls": at(seconds["engine"]),
        "    beyond them: workers, model's loading, commits": at(
            seconds["scoring"] - seconds["engine"]
        ),
        "  report": at(seconds["report"]),
        "  the rest": at(seconds["command"] - sum(seconds[part] for part in accounted)),
        "engine's share of the scoring's time": f"{seconds['engine'] / seconds['scoring']:.3f}",
        "engine's share of the whole command's": f"{seconds['engine'] / seconds['command']:.3f}",
        f"scoring {SHARE_OF_RATE}": of_rate(seconds["scoring"]),
        f"whole {SHARE_OF_RATE}": of_rate(seconds["command"]),
    }


def main() -> None:
    """Prepare, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="WST", help="some of them, as in WS")
    parser.add_argument("--rows", type=int, help="so many of each, short and long ones; else all")
    for part in ("--store", "--prepare", "--job", "--bare"):
        parser.add_argument(part, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store:
        _run_part(options)
        return
    random_phi3()
    size = ["--rows", str(options.rows)] if options.rows else []
    models = HERE / ".models"
    console = Console(width=160)
    with tempfile.TemporaryDirectory(dir=models) as scratch:
        store = Path(scratch)
        child(store, "--prepare", options.workloads, *size)
        columns = {name: compare(store, name, size) for name in options.workloads}
    table = Table(title=f"phi3-batch score against {BARE}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(f"{name}: {WORKLOADS[name][0]}", justify="right")
    for line in next(iter(columns.values())):
        table.add_row(line, *(column[line] for column in columns.values()))
    console.print(table)


def _run_part(options: argparse.Namespace) -> None:
    started = float(sys.stdin.read())
    store = Path(options.store)
    if options.prepare:
        prepare(store, options.prepare, options.rows)
    elif options.job:
        print(json.dumps(job(store, options.job, started)))
    else:
        print(json.dumps(bare(options.bare, options.rows)))


if __name__ == "__main__":
    main()
