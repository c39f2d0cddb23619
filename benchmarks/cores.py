"""How the native engine's steps gain by cores: one engine on all of them, and several on two each.

    python benchmarks/cores.py

It needs no ONNX build: random weights of eight of Phi-3-mini's layers are made on the spot, in the
form in which the library multiplies with them, in memory that all processes share. Each engine is a
process that is bound to its cores. Prompts are read by 512 tokens, as the engine does it; rows that
generate are behind 128 tokens each.
"""

import argparse
import mmap
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from engines import machine
from rich.console import Console
from rich.table import Table

from phi3_batch.engines.native import library
from phi3_batch.engines.native.batch import SEQUENCES, STEP_TOKENS
from phi3_batch.engines.native.library import BLOCK_TOKENS, Layer, Matrix, Model, Room, Shape, Step

PHI3_MINI = {
    "hidden": 3072,
    "intermediate": 8192,
    "heads": 32,
    "key_value_heads": 32,
    "head_size": 96,
    "vocabulary": 32064,
    "half_rotary": 48,
}
LAYERS = 8
POSITIONS = 4096
BEHIND = 128  # tokens of rows that generate
SECONDS = 3.0
SPAWN = multiprocessing.get_context("fork")  # which shares the weights


class RandomWeights:
    """A model's packed weights, all random, and its shape.

    Attributes:
        weights_bytes: that a step of one row reads.
    """

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._kept: list[mmap.mmap] = []
        self.weights_bytes = 0
        hidden, own = PHI3_MINI["hidden"], PHI3_MINI["heads"] * PHI3_MINI["head_size"]
        intermediate = PHI3_MINI["intermediate"]
        layers = []
        for _ in range(LAYERS):
            layer = Layer(attention_norm=self._floats(hidden), mlp_norm=self._floats(hidden))
            layer.qkv[0] = self._matrix(3 * own, hidden)
            layer.o = self._matrix(hidden, own)
            layer.gate = self._matrix(intermediate, hidden)
            layer.up = self._matrix(intermediate, hidden)
            layer.down = self._matrix(hidden, intermediate)
            layers.append(layer)
        self._layers = (Layer * LAYERS)(*layers)
        self.shape = Shape(
            **PHI3_MINI,
            layers=LAYERS,
            unit=32,
            digits=1,
            epsilon=1e-5,
            attention_scale=PHI3_MINI["head_size"] ** -0.5,
            layer=self._layers,
            embedding=self._floats(PHI3_MINI["vocabulary"] * hidden),
            norm=self._floats(hidden),
            lm_head=self._matrix(PHI3_MINI["vocabulary"], hidden),
        )
        for table in range(library.TABLES):
            self.shape.positions[table] = POSITIONS
            self.shape.cos[table] = self._floats(POSITIONS * PHI3_MINI["half_rotary"])
            self.shape.sin[table] = self._floats(POSITIONS * PHI3_MINI["half_rotary"])

    def read(self, threads: int) -> None:
        """Read all of them once, as a step of one row does, and do nothing else."""
        arrays = [np.frombuffer(kept, np.int64) for kept in self._kept]
        parts = [part for array in arrays for part in np.array_split(array, threads)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(np.max, parts))

    def _floats(self, count: int) -> int:
        values = self._take(4 * count).view(np.float32)
        values[:] = self._rng.uniform(-1, 1, count)
        return values.ctypes.data

    def _matrix(self, outputs: int, inputs: int) -> Matrix:
        matrix = Matrix(outputs=outputs, inputs=inputs, bits=4, block=32, zero_points=0)
        size = library.packed_size(matrix)
        packed = self._take(size)
        packed[:] = np.frombuffer(self._rng.bytes(size), np.uint8)
        # a tile's weights, two in a byte, and then its scales
        tiles = packed.reshape(-(-outputs // library.OUTPUTS), -1)
        scales = tiles[:, library.OUTPUTS * inputs // 2 :]
        scales[:] = np.frombuffer(np.float32(1 / inputs).tobytes(), np.uint8)[
            np.arange(scales.shape[1]) % 4
        ]
        self.weights_bytes += size
        matrix.tiles = packed.ctypes.data
        return matrix

    def _take(self, size: int) -> np.ndarray:
        """Memory that processes share which are forked later."""
        self._kept.append(mmap.mmap(-1, -(-size // 4096) * 4096))
        return np.frombuffer(self._kept[-1], np.uint8)[:size]


@dataclass(frozen=True)
class Work:
    """A step, by the rows that generate in it or by the tokens of a prompt that it reads."""

    name: str
    rows: int
    prompt_tokens: int = 0

    @property
    def tokens(self) -> int:
        """What is counted."""
        return self.rows + self.prompt_tokens

    def step(self, number: int) -> Step:
        """The step; one of a prompt's goes on where the one before it ended."""
        if self.prompt_tokens:
            start = number * self.prompt_tokens % POSITIONS
            positions = list(range(start, start + self.prompt_tokens))
            table = list(range(POSITIONS // BLOCK_TOKENS))
            sequences = [0] * self.prompt_tokens
            return Step(positions, positions, sequences, [table], [0], [self.prompt_tokens - 1])
        rows, blocks = list(range(self.rows)), BEHIND // BLOCK_TOKENS + 1
        tables = [list(range(row * blocks, (row + 1) * blocks)) for row in rows]
        return Step(rows, [BEHIND] * self.rows, rows, tables, [0] * self.rows, rows)


WORKS = (
    Work("1 row", 1),
    Work("8 rows", 8),
    Work("128 rows", SEQUENCES),
    Work("a prompt of 4,096 tokens", 0, STEP_TOKENS),
)


def rate(weights: RandomWeights, work: Work, engines: list[list[int]]) -> float:
    """Tokens a second of engines that work at the same time, each on its cores."""
    barrier, queue = SPAWN.Barrier(len(engines)), SPAWN.SimpleQueue()

    def run(cores: list[int]) -> None:
        os.sched_setaffinity(0, cores)
        room = Room(threads=len(cores), rows=STEP_TOKENS, wanted=SEQUENCES, blocks=1024)
        model = Model(weights.shape, room, library.instruction_sets()[0])
        steps = [work.step(number) for number in range(POSITIONS // STEP_TOKENS)]
        for step in steps:
            model.step(step)
        barrier.wait()
        count, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < SECONDS:
            model.step(steps[count % len(steps)])
            count += 1
        queue.put(count * work.tokens / seconds)

    processes = [SPAWN.Process(target=run, args=(cores,)) for cores in engines]
    for process in processes:
        process.start()
    total = sum(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def readable(weights: RandomWeights, cores: list[int]) -> float:
    """Bytes a second that so many cores can read of the weights, the best of some times."""
    times = []
    os.sched_setaffinity(0, cores)
    for _ in range(5):
        started = time.perf_counter()
        weights.read(len(cores))
        times.append(time.perf_counter() - started)
    return sum(len(kept) for kept in weights._kept) / min(times)


def main() -> None:
    """Measure 1, 2, 4, … and all cores, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    all_cores = sorted(os.sched_getaffinity(0))
    counts = [count for count in (2**power for power in range(10)) if count < len(all_cores)]
    console = Console(width=160)
    console.print(machine(), library.instruction_sets()[0], highlight=False)
    weights = RandomWeights()
    table = Table(title="tokens a second; of one core", title_justify="left")
    table.add_column("cores, engines", no_wrap=True)
    for work in WORKS:
        table.add_column(work.name, justify="right")
    table.add_column("1 row, of what can be read", justify="right")
    one: list[float] = []
    for count in (*counts, len(all_cores)):
        cores = all_cores[:count]
        shapes = {f"{count}, one engine": [cores]}
        if count > 2 and count % 2 == 0:
            pairs = [cores[start : start + 2] for start in range(0, count, 2)]
            shapes[f"{count}, {len(pairs)} of two"] = pairs
        for name, engines in shapes.items():
            rates = [rate(weights, work, engines) for work in WORKS]
            one = one or rates
            cells = [
                f"{found:,.1f}; {found / first:.2f}"
                for found, first in zip(rates, one, strict=True)
            ]
            if len(engines) == 1:
                bandwidth = rates[0] * weights.weights_bytes
                cells.append(f"{bandwidth / readable(weights, cores):.2f}")
            table.add_row(name, *cells)
        os.sched_setaffinity(0, all_cores)
    console.print(table)


if __name__ == "__main__":
    main()
