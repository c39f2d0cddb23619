"""Phi-3-mini at its full size: how long loading takes, how much memory, and how fast it is.

    python benchmarks/full_size.py

The random model's eight layers are repeated until there are 32, each with weights of its own in
the file, for the model builder would need 22 GB of memory for a checkpoint of that size. Engines
are loaded by the product's own code, each in a process of its own: the first of the native engine
and of OpenVINO finds no model in its form and makes it, the second finds it in the machine's cache.
All files are read before each of them, so that the disk is not in the times. Needs 9 GB of disk
while it runs, 12 GB of memory, and patience.
"""

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from contenders import NaiveLoop, OurEngine, used_cache_bytes
from engines import NAIVE, machine, run_json
from measure import measure_rows, peak_bytes
from measured import Measured, ratio
from native_model import native_cache_bytes
from random_phi3 import LAYERS, random_phi3
from rich.console import Console
from rich.table import Table
from workloads import workload

from phi3_batch.engines import this_process
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.model_files import Manifest, ModelFolder

FULL_LAYERS = 32
# in this order: what each is called, the engine, and how many of W's rows it answers
RUNS = (
    ("native, model packed first", "native", 1),
    ("native", "native", 32),
    ("OpenVINO, model converted first", "openvino", 1),
    ("OpenVINO", "openvino", 32),
    ("onnxruntime-genai", "onnxruntime-genai", 16),
    (NAIVE, NAIVE, 16),
)
# of the places of external data in a file
PAGE_BYTES = 4096
_LAYER = re.compile(r"\b(layers|past_key_values|present)\.(\d+)\b")


class AsLogged(OurEngine):
    """An engine as a logged model loads it: by its digests, and through the machine's cache."""

    def __init__(self, folder: ModelFolder, manifest: Manifest, choice: str) -> None:
        self._engine = this_process.engine(folder, manifest, choice)
        self._folder = folder

    def cache_bytes(self) -> int:
        """Of those that have one of their own, as they tell after the rows."""
        if isinstance(self._engine, NativeEngine):
            return native_cache_bytes(self._engine, self._folder)
        pipeline = getattr(self._engine, "_pipeline", None)
        return used_cache_bytes(pipeline) if pipeline else 0


def write_full_size(source: Path, target: Path) -> None:
    """Write a build of 32 layers, made of a smaller one that the model builder wrote."""
    shutil.copytree(source, target)
    config = json.loads((source / "genai_config.json").read_text())
    config["model"]["decoder"]["num_hidden_layers"] = FULL_LAYERS
    (target / "genai_config.json").write_text(json.dumps(config, indent=4))
    model = onnx.load(str(source / "model.onnx"), load_external_data=False)
    with (target / "model.onnx.data").open("r+b") as data:
        _add_layers(model.graph, data)
    onnx.save(model, str(target / "model.onnx"))


def _add_layers(graph: onnx.GraphProto, data: BinaryIO) -> None:
    """Put copies of the layers, but for the first, which begins otherwise, behind the last one."""
    *body, final_norm, lm_head = graph.node
    for layer in range(LAYERS, FULL_LAYERS):
        like = 1 + (layer - 1) % (LAYERS - 1)

        def copies(items: Iterable[Any], mark: str, by: int = layer - like) -> list[Any]:
            return [_moved(item, by) for item in items if mark in item.name]

        body += copies(body, f"layers.{like}/")
        graph.input.extend(copies(graph.input, f".{like}."))
        graph.output.extend(copies(graph.output, f".{like}."))
        for weights in copies(graph.initializer, f"layers.{like}."):
            _copy_data(weights, data, rolled_by=4 * layer)
            graph.initializer.append(weights)
    final_norm.input[:2] = [_move(name, FULL_LAYERS - LAYERS) for name in final_norm.input[:2]]
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*body, final_norm, lm_head])


def _moved(item: Any, by: int) -> Any:
    """A copy of a node, value or tensor that belongs to a later layer."""
    copy = type(item)()
    copy.CopyFrom(item)
    copy.name = _move(item.name, by)
    if isinstance(item, onnx.NodeProto):
        copy.input[:] = [_move(name, by) for name in item.input]
        copy.output[:] = [_move(name, by) for name in item.output]
    return copy


def _move(name: str, by: int) -> str:
    return _LAYER.sub(lambda found: f"{found[1]}.{int(found[2]) + by}", name)


def _copy_data(tensor: onnx.TensorProto, data: BinaryIO, rolled_by: int) -> None:
    """Give a tensor bytes of its own, those that it refers to in another order.

    Both runtimes find out what is equal and keep it once.
    """
    place = {entry.key: entry for entry in tensor.external_data}
    data.seek(int(place["offset"].value))
    content = data.read(int(place["length"].value))
    end = data.seek(0, os.SEEK_END)
    place["offset"].value = str(data.seek(-end % PAGE_BYTES, os.SEEK_CUR))
    data.write(content[rolled_by:] + content[:rolled_by])


@dataclass(frozen=True)
class AtFullSize:
    """What was measured of one engine.

    Attributes:
        loaded_bytes: the process's peak when it had loaded and answered one row.
        measured: loading, and then rows of W.
    """

    loaded_bytes: int
    measured: Measured


def measure(engine: str, model: Path, rows: int) -> AtFullSize:
    """Load an engine, warm it up, and have it answer rows of W."""
    folder = ModelFolder.open(model)
    manifest = folder.read_manifest()  # which a logged model brings with it
    started = time.perf_counter()
    loaded = NaiveLoop(model) if engine == NAIVE else AsLogged(folder, manifest, engine)
    load_seconds = time.perf_counter() - started
    given = workload("W").take(rows)
    loaded.answer([given.warm_up])
    loaded_bytes = peak_bytes()
    measured = replace(measure_rows(loaded, given.rows), load_seconds=load_seconds)
    return AtFullSize(loaded_bytes, measured)


def print_table(console: Console, results: dict[str, AtFullSize], onnx_bytes: int) -> None:
    """Print what was measured, and its ratios to the ONNX file and to the naive loop."""
    table = Table(
        title=f"{FULL_LAYERS} layers, an ONNX file of {onnx_bytes / 1e9:.2f} GB",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("", no_wrap=True)
    for heading in ("load", "loaded", "W's rows", "output tok/s", "x naive", "memory", "KV cache"):
        table.add_column(heading, justify="right")
    for name, found in results.items():
        measured = found.measured
        table.add_row(
            name,
            f"{measured.load_seconds:.1f} s",
            f"{found.loaded_bytes / 1e9:.2f} GB, {found.loaded_bytes / onnx_bytes:.2f} x file",
            str(measured.rows),
            f"{measured.rate:.2f}",
            ratio(measured, results[NAIVE].measured),
            f"{measured.peak_bytes / 1e9:.2f} GB",
            f"{measured.cache_bytes / 1e9:.2f} GB" if measured.cache_bytes else "",
        )
    console.print(table)


def _read_all(folder: Path) -> None:
    """Have the kernel hold all files in memory."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                while opened.read(1 << 24):
                    pass


def main() -> None:
    """Make the model, measure each engine in a process of its own, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        engine, folder, rows = options.measure
        print(json.dumps(asdict(measure(engine, Path(folder), int(rows)))))
        return
    console = Console(width=160)
    console.print(machine(), highlight=False)
    small = random_phi3()
    with tempfile.TemporaryDirectory(dir=small.parent) as scratch:
        model = Path(scratch, "int4")
        write_full_size(small, model)
        os.environ["XDG_CACHE_HOME"] = scratch  # where the converted model is kept
        results = {}
        for name, engine, rows in RUNS:
            _read_all(Path(scratch))
            told = run_json("full_size.py", "--measure", engine, str(model), str(rows))
            results[name] = AtFullSize(told["loaded_bytes"], Measured(**told["measured"]))
            console.print(f"  {name}: {results[name]}", highlight=False)
        onnx_bytes = sum(file.stat().st_size for file in model.glob("model.onnx*"))
    print_table(console, results, onnx_bytes)


if __name__ == "__main__":
    main()
