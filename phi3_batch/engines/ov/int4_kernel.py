"""Products with weights in four bits, by what a processor multiplies fastest with.

The loops are in :mod:`int4_avx2` and :mod:`int4_amx`; here is which of them is for what, and the
threads that run them.
"""

import functools
import platform
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from phi3_batch.engines.ov import amx_tiles, int4_amx, int4_avx2

# Inputs with a scale, of every kind
BLOCK = 32

# Rows from which on the rounding is worth sharing among threads
_SHARED_ROWS = 17
# Parts of a product for each thread: a thread that is held up leaves its to the others.
_PARTS = 4


@dataclass(frozen=True)
class Instructions:
    """What weights are packed for.

    Attributes:
        name: of the set of instructions.
        tile_outputs: outputs must be a multiple of these.
        rounds_to_int8: whether activations are, which a build must ask for; to bfloat16 OpenVINO
            rounds them too where the processor has it.
        pack: makes weights ready, as :func:`int4_avx2.pack` does.
        product: a product in its two steps, as :class:`int4_avx2.Product`.
    """

    name: str
    tile_outputs: int
    rounds_to_int8: bool
    pack: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32]], npt.NDArray[np.uint8]]
    product: type[int4_avx2.Product] | type[int4_amx.Product]


AVX2 = Instructions("avx2", int4_avx2.TILE_OUTPUTS, True, int4_avx2.pack, int4_avx2.Product)
AMX = Instructions("amx", int4_amx.TILE_OUTPUTS, False, int4_amx.pack, int4_amx.Product)

# of an output and a block: weights and a scale
_OUTPUT_BYTES = BLOCK // 2 + 4
_BY_TILE_BYTES = {each.tile_outputs * _OUTPUT_BYTES: each for each in (AVX2, AMX)}


@functools.cache
def fastest_here() -> Instructions | None:
    """What this machine multiplies by faster than by all that OpenVINO has for it, if anything."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    has = {name for name, there in llvm.get_host_cpu_features().items() if there}
    if has >= {"amx-tile", "amx-bf16", "avx512bf16", "avx512bw"} and amx_tiles.is_allowed():
        return AMX
    newer = {"avx512f", "avxvnni"}  # OpenVINO has kernels of its own for these
    return AVX2 if has >= {"avx2", "fma"} and not has & newer else None


def output_count(packed: Sequence[int]) -> int:
    """How many outputs packed weights of a shape have."""
    return packed[0] * packed[2] // _OUTPUT_BYTES


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
    """The threads that multiply.

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
            packed: of instructions that this machine has; shape ``(tiles, K / 32, bytes)``.
            outputs: where the result goes; shape ``(M, N)``, contiguous.
        """
        instructions = _BY_TILE_BYTES[packed.shape[2]]
        product = instructions.product(inputs, packed, outputs, _PARTS * self.threads)
        if len(inputs) < _SHARED_ROWS:
            product.prepare()
        else:
            self._together(product.prepare)
        self._together(product.multiply)

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


__all__ = ["AMX", "AVX2", "BLOCK", "Instructions", "Int4Kernel", "fastest_here", "output_count"]
