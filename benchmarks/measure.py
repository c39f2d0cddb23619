"""One engine on one workload, in a process of its own; engines.py starts it.

python benchmarks/measure.py 'our OpenVINO' W
"""

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from contenders import CONTENDERS, THREADS, Contender
from measured import Measured
from random_phi3 import RANDOM_PHI3
from workloads import WORKLOADS, Row, Workload, workload


def measure(contender: str, given: Workload) -> Measured:
    """Load, warm up, answer."""
    started = time.perf_counter()
    engine = CONTENDERS[contender](RANDOM_PHI3)
    load_seconds = time.perf_counter() - started
    engine.answer([given.warm_up])
    return replace(measure_rows(engine, given.rows), load_seconds=load_seconds)


def measure_rows(engine: Contender, rows: Sequence[Row]) -> Measured:
    """Answer rows with an engine that is warm."""
    everybody, mine = busy_seconds(), time.process_time()
    started = time.perf_counter()
    output_tokens = engine.answer(rows)
    seconds = time.perf_counter() - started
    others = (busy_seconds() - everybody) - (time.process_time() - mine)
    return Measured(
        rows=len(rows),
        prompt_tokens=sum(len(row.prompt_ids) for row in rows),
        output_tokens=output_tokens,
        seconds=seconds,
        peak_bytes=peak_bytes(),
        cache_bytes=engine.cache_bytes(),
        disturbed=max(0.0, others / seconds / THREADS),
    )


def busy_seconds() -> float:
    """Seconds that this machine's processors have worked, for us and others, or were lent away."""
    # https://docs.kernel.org/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system, _, _, *interrupts_and_stolen = map(int, line.split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """The largest resident set so far; getrusage would give the parent's where that is larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    assert found, "Linux says it"
    return int(found[1]) * 1024


def main() -> None:
    """Print the measurement as a line of JSON, for the parent to read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=list(CONTENDERS))
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--rows", type=int, help="so many in place of all")
    options = parser.parse_args()
    measured = measure(options.contender, workload(options.workload).take(options.rows))
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
