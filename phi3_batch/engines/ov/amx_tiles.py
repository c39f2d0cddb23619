"""AMX's tiles in LLVM's language: registers of 16 rows of 64 bytes.

TDPBF16PS multiplies two of them, of bfloat16, and adds the result to a third, of float32:
``c[m, n] += a[m, 2 k] b[k, 2 n] + a[m, 2 k + 1] b[k, 2 n + 1]`` for m, n and k of 0 to 15, in 16
cycles.
"""

import ctypes
from collections.abc import Sequence

from llvmlite import ir

from phi3_batch.engines.ov.llvm_ir import F32, I8, I32, VOID, call, i64

SIDE = 16  # rows of a tile, and float32 numbers of a row
TILE_BYTES = SIDE * 64

FLOATS, INTS = ir.VectorType(F32, SIDE), ir.VectorType(I32, SIDE)


def is_allowed() -> bool:
    """Whether the system gives this process AMX's registers, which it asks for.

    Linux has them asked for by arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), once for all
    threads (https://docs.kernel.org/arch/x86/xstate.html).
    """
    syscall = getattr(ctypes.CDLL(None), "syscall", None)
    return syscall is not None and syscall(158, 0x1023, 18) == 0


class _BFloat(ir.Type):  # type: ignore[misc]  # a class without types
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def tile_op(b: ir.IRBuilder, name: str, *operands: int | ir.Value) -> None:
    """One of LLVM's intrinsic functions for tiles; numbers are tiles'."""
    values = [ir.Constant(I8, each) if isinstance(each, int) else each for each in operands]
    call(b, f"llvm.x86.{name}", VOID, *values)


def load_tile(b: ir.IRBuilder, tile: int, source: ir.Value) -> None:
    """Load a tile whose rows lie one behind the other."""
    tile_op(b, "tileloadd64", tile, source, i64(64))


def store_tile(b: ir.IRBuilder, tile: int, target: ir.Value) -> None:
    """Store a tile, its rows one behind the other."""
    tile_op(b, "tilestored64", tile, target, i64(64))


def every_tile_whole(module: ir.Module) -> ir.GlobalVariable:
    """The configuration that LDTILECFG loads: palette 1, eight tiles of 16 rows of 64 bytes."""
    data = bytearray(64)
    data[0] = 1
    data[16:32:2] = bytes([64] * 8)
    data[48:56] = bytes([16] * 8)
    kind = ir.ArrayType(I8, 64)
    configuration = ir.GlobalVariable(module, kind, "configuration")
    configuration.initializer = ir.Constant(kind, data)
    configuration.global_constant = True
    configuration.linkage = "internal"
    return configuration


def to_bfloat16(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """32 numbers in float32, rounded to bfloat16: as 16 pairs."""
    kind = ir.VectorType(_BFloat(), 2 * SIDE)
    return b.bitcast(call(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", kind, high, low), INTS)


def transposed(b: ir.IRBuilder, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """16 vectors of 16, turned: one bit of a vector's number and of places in it at a time."""
    turned = list(vectors)
    for bit in (1, 2, 4, 8):
        first = [place if not place & bit else 16 + (place ^ bit) for place in range(16)]
        second = [place | bit if not place & bit else 16 + place for place in range(16)]
        for low in range(16):
            if not low & bit:
                pair = turned[low], turned[low | bit]
                turned[low] = b.shuffle_vector(*pair, ir.Constant(INTS, first))
                turned[low | bit] = b.shuffle_vector(*pair, ir.Constant(INTS, second))
    return turned


__all__ = [
    "FLOATS",
    "INTS",
    "SIDE",
    "TILE_BYTES",
    "every_tile_whole",
    "is_allowed",
    "load_tile",
    "store_tile",
    "tile_op",
    "to_bfloat16",
    "transposed",
]
