"""Every engine in turn on the same rows and processors, as one table of ratios for each workload.

    python benchmarks/engines.py
    python benchmarks/engines.py --short   # W and S, and fewer rows for slow engines

Each engine has a process of its own for each measurement. The fast ones are measured three times,
the slow ones once in between, on some of the rows where their rate does not depend on how many
there are. A measurement during which other processes were busy is made again. Figures of one run
can be divided by each other; those of two runs cannot. llama.cpp is in it where llama-cpp-python
and gguf are installed.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from measured import Measured, print_ratios
from random_phi3 import HERE, random_phi3
from rich.console import Console
from workloads import workload

from phi3_batch.machine import processors

NAIVE, ONNX = "the naive loop", "our onnxruntime-genai"
NATIVE, OPENVINO = "our native", "our OpenVINO"
RAW, LLAMA = "openvino_genai, raw", "llama.cpp Q4_0"
ONNX_SCRATCH, NATIVE_SCRATCH = f"{ONNX}, prefix not kept", f"{NATIVE}, no prefix caching"
FAST = (NATIVE, NATIVE_SCRATCH, OPENVINO, RAW)
ROUNDS = 3
# share of the processors that others may take during a measurement, and how often it is made
QUIET, TRIES = 0.1, 2
# engines of each workload, and how many of its rows they answer; None is all
FULL: dict[str, dict[str, int | None]] = {
    "W": {NAIVE: None, ONNX: None, NATIVE: None, OPENVINO: None, RAW: None, LLAMA: None},
    "S": {
        NAIVE: 8,
        ONNX_SCRATCH: 8,
        ONNX: None,
        NATIVE_SCRATCH: None,
        NATIVE: None,
        OPENVINO: None,
        RAW: None,
        LLAMA: None,
    },
    "Q": {NAIVE: 12, ONNX: 12, NATIVE: None, OPENVINO: None, RAW: None, LLAMA: 64},
    "L": {NAIVE: 2, ONNX: 2, NATIVE: None, OPENVINO: None, RAW: None, LLAMA: 4},
}
SHORT: dict[str, dict[str, int | None]] = {
    "W": {NAIVE: 6, ONNX: 6, NATIVE: None, OPENVINO: None, RAW: None, LLAMA: 16},
    "S": {NAIVE: 3, NATIVE_SCRATCH: None, NATIVE: None, OPENVINO: None, RAW: None},
}
ONCE = {"Q", "L"}  # long enough to be steady by themselves
AGAINST = {"x naive": NAIVE, "x llama.cpp": LLAMA, "x raw": RAW}


def run_json(script: str, *arguments: str) -> dict[str, Any]:
    """What another benchmark prints on its last line, run with the machine's own settings."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(engine: str, name: str, rows: int | None) -> Measured:
    """One engine on one workload, again if other processes got in the way."""
    count = [] if rows is None else ["--rows", str(rows)]
    tries = []
    for _ in range(TRIES):
        tries.append(Measured(**run_json("measure.py", engine, name, *count)))
        if tries[-1].disturbed < QUIET:
            break
    return min(tries, key=lambda measured: measured.disturbed)


def measure_all(
    name: str, engines: dict[str, int | None], rounds: int, console: Console
) -> dict[str, list[Measured]]:
    """The rounds of each engine, slow engines between those of the fast ones."""
    results: dict[str, list[Measured]] = {engine: [] for engine in engines}
    there = [engine for engine in engines if engine != LLAMA or has_llama_cpp()]
    fast = [engine for engine in there if engine in FAST]
    slow = [engine for engine in there if engine not in FAST]
    for number in range(rounds):
        for engine in (*fast, *slow[number::rounds]):
            measured = measure(engine, name, engines[engine])
            results[engine].append(measured)
            console.print(
                f"  {name}: {engine} {measured.rate:.1f} output tok/s, other processes took"
                f" {100 * measured.disturbed:.0f} % of the processors",
                highlight=False,
            )
    return results


def has_llama_cpp() -> bool:
    """Whether llama.cpp can be run, and its model be made."""
    return all(importlib.util.find_spec(package) for package in ("llama_cpp", "gguf"))


def machine() -> str:
    """The processors, in one line."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = [flag for flag in ("amx_int8", "amx_bf16", "avx512_vnni", "avx2") if flag in text]
    cores = processors()
    return f"{cores} cores, {name[1] if name else '?'} ({', '.join(flags)})"


def main() -> None:
    """Measure, and print a table after each workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="W and S only, and fewer rows")
    parser.add_argument("--workloads", default="", help="some of them, as in WQ")
    options = parser.parse_args()
    console = Console(width=160)
    model = random_phi3()
    onnx_bytes = sum(file.stat().st_size for file in model.glob("model.onnx*"))
    peaks = run_json("peak.py")
    console.print(machine(), highlight=False)
    console.print(
        "matrix peak in GMAC/s: "
        + ", ".join(f"{name} {value:,.0f}" for name, value in peaks.items()),
        highlight=False,
    )
    plan = SHORT if options.short else FULL
    for name in options.workloads or plan:
        rounds = 1 if options.short or name in ONCE else ROUNDS
        results = measure_all(name, plan[name], rounds, console)
        against = AGAINST | ({"x no cache": NATIVE_SCRATCH} if name == "S" else {})
        print_ratios(
            console,
            f"{name}: {workload(name).what}",
            results,
            against,
            # with a shared prefix, most of the work is not done
            None if name == "S" else peaks["bf16"],
            onnx_bytes,
        )


if __name__ == "__main__":
    main()
