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

from phi3_batch.engines import Engine
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.torch.engine import TransformersEngine
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import Checkpoint, ModelFolder

# ids of the tokenizer's characters and merges
FIRST_ID, LAST_ID = 259, 999
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 48
CHECKPOINT, INT4 = "checkpoint", "int4"
# what is measured: a name, the model, and how many rows the engine may decode together
WAYS = (
    ("pipeline, row by row", CHECKPOINT, 1),
    ("pipeline, 16 rows at a time", CHECKPOINT, 16),
    ("int4 ONNX", INT4, 1),
)


def make_requests(rows: int) -> list[Request]:
    """Rows with nothing in common."""
    ids = random.Random(0)  # the same rows in every run
    params = GenerationParams(max_tokens=OUTPUT_TOKENS)
    return [
        Request(tuple(ids.choices(range(FIRST_ID, LAST_ID), k=PROMPT_TOKENS)), params)
        for _ in range(rows)
    ]


def load(path: Path, batch_rows: int) -> Engine:
    """The engine that a logged model would have, with the pipeline's batches made smaller."""
    if path.name == INT4:
        return OnnxRuntimeGenAIEngine(ModelFolder.open(path))
    return TransformersEngine(Checkpoint.open(path), batch_rows=batch_rows)


def measure(path: Path, batch_rows: int, rows: int) -> None:
    """Print seconds, output tokens and peak memory in bytes, for the parent to read."""
    engine = load(path, batch_rows)
    requests = make_requests(rows)
    engine.generate(requests[:1])  # reads the weights from disk
    started = time.perf_counter()
    completions = engine.generate(requests)
    seconds = time.perf_counter() - started
    tokens = sum(completion.usage.completion_tokens for completion in completions)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{seconds}\t{tokens}\t{peak_bytes}")


def main() -> None:
    """Build both, measure each in a process of its own, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        path, batch_rows = options.measure
        measure(Path(path), int(batch_rows), options.rows)
        return

    models = HERE / ".models"
    models.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as scratch:
        paths = {name: Path(scratch, name) for name in (CHECKPOINT, INT4)}
        # in a process of its own, whose memory is given back
        save = "import sys, pathlib, random_phi3 as r; r.save_checkpoint(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", save, str(paths[CHECKPOINT])], cwd=HERE, check=True)
        build(paths[INT4], paths[CHECKPOINT])
        print(f"{'':<28}{'disk':>8}{'memory':>9}{'output tok/s':>14}{'ratio':>7}")
        first = None
        for name, model, batch_rows in WAYS:
            command = [sys.executable, __file__, "--rows", str(options.rows), "--measure"]
            done = subprocess.run(
                [*command, str(paths[model]), str(batch_rows)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            seconds, tokens, peak_bytes = done.stdout.splitlines()[-1].split("\t")
            speed = int(tokens) / float(seconds)
            first = first or speed
            disk = sum(file.stat().st_size for file in paths[model].iterdir())
            print(
                f"{name:<28}{disk / 1e9:>5.2f} GB{int(peak_bytes) / 1e9:>6.1f} GB"
                f"{speed:>14.1f}{speed / first:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
