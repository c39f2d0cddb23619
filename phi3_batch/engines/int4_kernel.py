"""Products with weights in four bits by eight-bit activations, in AVX2's own instructions.

What an int4 build asks for, its accuracy level 4: activations are rounded to eight bits, by blocks
of 32 with a scale each, and the products of a block are summed as integers. Where a processor has
nothing newer than AVX2, OpenVINO multiplies in float32, eight numbers an instruction; the
instruction VPMADDUBSW takes 32 (docs/benchmarks.md has what that gives).
"""

import platform
import threading
import weakref
from collections.abc import Callable

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


class _Helper:
    """A thread that joins another in a piece of work.

    The two meet by locks: an executor's queue and futures take as long as a small product.
    """

    def __init__(self) -> None:
        self._asked, self._done = threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._done.acquire()
        self._work = list[Callable[[], None]]()
        parts = self._asked, self._done, self._work
        threading.Thread(target=_serve, args=parts, name="int4", daemon=True).start()
        weakref.finalize(self, self._asked.release)

    def begin(self, work: Callable[[], None]) -> None:
        """Have the thread do what leaves nothing to do for who comes late."""
        self._work.append(work)
        self._asked.release()

    def end(self) -> None:
        """Wait until it has done it; a thread that has not begun by now need not any more."""
        if self._asked.acquire(blocking=False):
            self._work.pop()
        else:
            self._done.acquire()


def _serve(asked: threading.Lock, done: threading.Lock, work: list[Callable[[], None]]) -> None:
    while asked.acquire() and work:  # without any its helper is gone
        work.pop()()
        done.release()


class Int4Kernel:
    """The compiled loops and the threads that run them.

    Args:
        threads: for one product. They are started here: a thread that one of the runtime's starts
            would be bound to that one's processor.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._helpers = [_Helper() for _ in range(threads - 1)]
        self._helpers_are_mine = threading.Lock()

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
        taken = np.zeros(2, np.int64)
        x, w, a, s, y, t = (
            array.ctypes.data for array in (inputs, packed, rounded, scales, outputs, taken)
        )
        loops = compiled_loops()

        def quantize() -> None:
            loops.quantize(x, a, s, t, rows, blocks, self._step(-(-rows // TILE_ROWS)))

        def product() -> None:
            loops.product(w, a, s, y, t + 8, rows, blocks, tiles, self._step(tiles))

        if rows < _SHARED_ROWS:
            quantize()
        else:
            self._together(quantize)
        self._together(product)

    def _step(self, size: int) -> int:
        return max(1, size // (_PARTS * self.threads))

    def _together(self, work: Callable[[], None]) -> None:
        if not self._helpers_are_mine.acquire(blocking=False):
            work()  # alone: another engine of this process has them
            return
        for helper in self._helpers:
            helper.begin(work)
        try:
            work()
        finally:  # nobody may write any more when an interrupt is passed on
            for helper in self._helpers:
                helper.end()
            self._helpers_are_mine.release()


__all__ = ["BLOCK", "TILE_OUTPUTS", "Int4Kernel", "is_fastest_here", "pack"]
