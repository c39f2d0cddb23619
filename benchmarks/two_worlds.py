"""One checkpoint, two worlds: the transformers pipeline and its int4 ONNX build, on the same rows.

    python benchmarks/two_worlds.py

The checkpoint has eight of Phi-3-mini's layers and random weights; its int4 build is made of it
here. Each engine has a process of its own, all processors, and the same chats as token ids: what
is printed is each one's speed and memory, and their ratios within this run. Needs the `build`
extra, 12 GB of memory and some minutes.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_phi3 import HERE, build

from phi3_batch.engines import Checkpoint, Engine, ModelFolder, get_engine
from phi3_batch.generation import GenerationParams, Request

# ids of the tokenizer's characters and merges
FIRST_ID, LAST_ID = 259, 999
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 48
ENGINES = ("checkpoint", "int4")


def make_requests(rows: int) -> list[Request]:
    """Rows with nothing in common."""
    ids = random.Random(0)  # the same rows in every run
    params = GenerationParams(max_tokens=OUTPUT_TOKENS)
    return [
        Request(tuple(ids.choices(range(FIRST_ID, LAST_ID), k=PROMPT_TOKENS)), params)
        for _ in range(rows)
    ]


def load(kind: str, path: Path) -> Engine:
    """The engine that a logged model would have."""
    folder = Checkpoint.open(path) if kind == "checkpoint" else ModelFolder.open(path)
    return get_engine(folder, folder.read_manifest())


def measure(kind: str, path: Path, rows: int) -> None:
    """Print seconds, output tokens and peak memory in bytes, for the parent to read."""
    engine = load(kind, path)
    requests = make_requests(rows)
    engine.generate(requests[:1])  # reads the weights from disk
    started = time.perf_counter()
    completions = engine.generate(requests)
    seconds = time.perf_counter() - started
    tokens = sum(completion.usage.completion_tokens for completion in completions)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{engine.name}\t{seconds}\t{tokens}\t{peak_bytes}")


def main() -> None:
    """Build both, measure each in a process of its own, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--measure", nargs=2, metavar=("ENGINE", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, path = options.measure
        measure(kind, Path(path), options.rows)
        return

    models = HERE / ".models"
    models.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as scratch:
        paths = {kind: Path(scratch, kind) for kind in ENGINES}
        # in a process of its own, whose memory is given back
        save = "import sys, pathlib, random_phi3 as r; r.save_checkpoint(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", save, str(paths["checkpoint"])], cwd=HERE, check=True)
        build(paths["int4"], paths["checkpoint"])
        print(f"{'engine':<28}{'disk':>8}{'memory':>9}{'output tok/s':>14}{'ratio':>7}")
        first = None
        for kind in ENGINES:
            command = [sys.executable, __file__, "--rows", str(options.rows), "--measure"]
            done = subprocess.run(
                [*command, kind, str(paths[kind])], check=True, stdout=subprocess.PIPE, text=True
            )
            name, seconds, tokens, peak_bytes = done.stdout.splitlines()[-1].split("\t")
            speed = int(tokens) / float(seconds)
            first = first or speed
            disk = sum(file.stat().st_size for file in paths[kind].iterdir())
            print(
                f"{name:<28}{disk / 1e9:>5.2f} GB{int(peak_bytes) / 1e9:>6.1f} GB"
                f"{speed:>14.1f}{speed / first:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
