"""Products with weights in four bits by eight-bit activations, in AVX2's own instructions.

What an int4 build asks for, its accuracy level 4: activations are rounded to eight bits, by blocks
of 32 with a scale each, and the products of a block are summed as integers. Where a processor has
nothing newer than AVX2, OpenVINO multiplies in float32, eight numbers an instruction; the
instruction VPMADDUBSW takes 32 (docs/benchmarks.md has what that gives).
"""

import itertools
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from phi3_batch.engines.int4_loops import BLOCK, TILE_BYTES, TILE_OUTPUTS, TILE_ROWS, compiled_loops

# Rows from which on the rounding is worth sharing among threads
_SHARED_ROWS = 16
# Parts of a product for each thread: a thread that is held up leaves its to the others.
_PARTS = 4


def is_fastest_here() -> bool:
    """Whether this machine multiplies faster by this kernel than by what OpenVINO has for it."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    has = llvm.get_host_cpu_features()
    newer = ("avx512f", "avxvnni")  # OpenVINO has kernels of its own for these
    return has.get("avx2", False) and has.get("fma", False) and not any(has.get(n) for n in newer)


def pack(weights: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Weights as the kernel reads them.

    Args:
        weights: two to a byte, the first in the low bits; shape ``(N, K / 32, 16)``.
        scales: shape ``(N, K / 32)``.

    Returns:
        Shape ``(N / 16, K / 32, 320)``.
    """
    outputs, blocks, _ = weights.shape
    tiles = outputs // TILE_OUTPUTS
    packed = np.empty((tiles, blocks, TILE_BYTES), np.uint8)
    fours = np.ascontiguousarray(weights).view(np.uint32).reshape(tiles, TILE_OUTPUTS, blocks, 4)
    words = packed.view(np.uint32)
    of_weights = 4 * TILE_OUTPUTS
    words[:, :, :of_weights] = fours.transpose(0, 2, 3, 1).reshape(tiles, blocks, of_weights)
    by_tile = scales.astype(np.float32).reshape(tiles, TILE_OUTPUTS, blocks).transpose(0, 2, 1)
    words[:, :, of_weights:] = np.ascontiguousarray(by_tile).view(np.uint32)
    return packed


class Int4Kernel:
    """The compiled loops and the threads that run them.

    Args:
        threads: for one product. They are started here: a thread that one of the runtime's starts
            would be bound to that one's processor.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._helpers = ThreadPoolExecutor(threads - 1, "int4") if threads > 1 else None
        if self._helpers:
            started = threading.Barrier(threads)
            for _ in range(threads - 1):
                self._helpers.submit(started.wait)
            started.wait()

    def multiply(
        self,
        inputs: npt.NDArray[np.float32],
        packed: npt.NDArray[np.uint8],
        outputs: npt.NDArray[np.float32],
    ) -> None:
        """Multiply rows by weights.

        A row's result is the same bit by bit whatever other rows there are.

        Args:
            inputs: shape ``(M, K)``, contiguous.
            packed: what :func:`pack` gave.
            outputs: where the result goes; shape ``(M, N)``, contiguous.
        """
        rows, width = inputs.shape
        tiles, blocks, _ = packed.shape
        rounded = np.empty(rows * width, np.int8)
        scales = np.empty(rows * blocks * 2, np.float32)
        x, w, a, s, y = (array.ctypes.data for array in (inputs, packed, rounded, scales, outputs))

        loops = compiled_loops()

        def quantize(first: int, last: int) -> None:
            loops.quantize(x, a, s, rows, blocks, first, last)

        def product(first: int, last: int) -> None:
            loops.product(w, a, s, y, rows, blocks, tiles, first, last)

        self._share(quantize, -(-rows // TILE_ROWS), alone=rows < _SHARED_ROWS)
        self._share(product, tiles)

    def _share(self, work: Callable[[int, int], None], size: int, *, alone: bool = False) -> None:
        """Do ``size`` pieces of work, among the threads."""
        if alone or not self._helpers:
            work(0, size)
            return
        parts = min(size, _PARTS * self.threads)
        bounds = [size * part // parts for part in range(parts + 1)]
        left = iter(list(itertools.pairwise(bounds)))

        def run() -> None:
            for first, last in left:
                work(first, last)

        helping = [self._helpers.submit(run) for _ in range(self.threads - 1)]
        run()
        for helper in helping:
            if not helper.cancel():  # one that never came to begin is not waited for
                helper.result()


__all__ = ["BLOCK", "TILE_OUTPUTS", "Int4Kernel", "is_fastest_here", "pack"]
