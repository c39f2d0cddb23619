"""Products with weights in four bits by eight-bit activations, in AVX2's own instructions.

What an int4 build asks for, its accuracy level 4: activations are rounded to eight bits, by blocks
of 32 with a scale each, and the products of a block are summed as integers. Where a processor has
nothing newer than AVX2, OpenVINO multiplies in float32, eight numbers an instruction; the
instruction VPMADDUBSW takes 32 (docs/benchmarks.md has what that gives).

Layouts, for N outputs of K inputs and M rows, in blocks of 32 inputs:

- weights, ``(N / 16, K / 32, 320)`` bytes: a tile of 16 outputs and one block. Of its first 256
  bytes byte ``64 g + 4 n + k`` has the weights, 0 to 15, of output n and inputs 8 g + 2 k (low
  bits) and 8 g + 2 k + 1; then 16 scales in float32. A weight of w stands for (w - 8) x scale.
- activations, in tiles of 5 rows (the last may have less): by block, by row 32 bytes; in each eight
  of them the even inputs first, then the odd ones.
- their scales, in the same order, two float32 each: the scale, and what makes up for the 8.
"""

import functools

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from phi3_batch.engines.ov.llvm_ir import (
    F32,
    I8,
    I16,
    I32,
    PTR,
    Code,
    at,
    call,
    filled,
    function,
    i64,
    least,
    load,
    loop,
    shared_parts,
    splat,
    vector,
)

BLOCK = 32  # inputs with a scale
TILE_OUTPUTS = 16
_TILE_ROWS = 5
_HALVES = 2  # vectors of 32 bytes that a tile's outputs take
_GROUP = 8  # inputs that are multiplied at a time
_GROUP_BYTES = TILE_OUTPUTS * _GROUP // 2
_WEIGHT_BYTES = TILE_OUTPUTS * BLOCK // 2
_GROUPS = BLOCK // _GROUP
# Rows from which on a tile's weights are unpacked once for all of them, not for every five
_MANY_ROWS = 40
_TILE_BYTES = _WEIGHT_BYTES + TILE_OUTPUTS * 4


def pack(weights: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Weights as :class:`Product` reads them.

    Args:
        weights: two to a byte, the first in the low bits; shape ``(N, K / 32, 16)``.
        scales: shape ``(N, K / 32)``.

    Returns:
        Shape ``(N / 16, K / 32, 320)``.
    """
    outputs, blocks, _ = weights.shape
    tiles = outputs // TILE_OUTPUTS
    packed = np.empty((tiles, blocks, _TILE_BYTES), np.uint8)
    fours = np.ascontiguousarray(weights).view(np.uint32).reshape(tiles, TILE_OUTPUTS, blocks, 4)
    words = packed.view(np.uint32)
    of_weights = 4 * TILE_OUTPUTS
    words[:, :, :of_weights] = fours.transpose(0, 2, 3, 1).reshape(tiles, blocks, of_weights)
    by_tile = scales.astype(np.float32).reshape(tiles, TILE_OUTPUTS, blocks).transpose(0, 2, 1)
    words[:, :, of_weights:] = np.ascontiguousarray(by_tile).view(np.uint32)
    return packed


class Product:
    """Rows by weights, in two steps; several threads that do one at once share the work.

    Args:
        inputs: shape ``(M, K)``, contiguous.
        packed: what :func:`pack` gave.
        outputs: where the result goes; shape ``(M, N)``, contiguous.
        parts: into how many each step is divided, at least.
    """

    def __init__(
        self,
        inputs: npt.NDArray[np.float32],
        packed: npt.NDArray[np.uint8],
        outputs: npt.NDArray[np.float32],
        parts: int,
    ) -> None:
        rows, width = inputs.shape
        tiles, blocks, _ = packed.shape
        rounded = np.empty(rows * width, np.int8)
        scales = np.empty(rows * blocks * 2, np.float32)
        taken = np.zeros(2, np.int64)
        self._arrays = arrays = inputs, packed, rounded, scales, outputs, taken
        x, w, a, s, y, t = (array.ctypes.data for array in arrays)
        row_step = max(1, -(-rows // _TILE_ROWS) // parts)
        self._rounding = x, a, s, t, rows, blocks, row_step
        self._product = w, a, s, y, t + 8, rows, blocks, tiles, max(1, tiles // parts)

    def prepare(self) -> None:
        """Round the rows."""
        _code().run("quantize", *self._rounding)

    def multiply(self) -> None:
        """Multiply the rounded rows."""
        _code().run("multiply", *self._product)


@functools.cache
def _code() -> Code:
    """What rounds and what multiplies, compiled at the first call; it takes 0.3 s."""
    module = ir.Module("int4")
    tiles = [_tile(module, rows) for rows in range(1, _TILE_ROWS + 1)]
    _quantize(module)
    of_many = _tile(module, _TILE_ROWS, unpacked=True)
    _multiply(module, [*tiles, of_many], _unpack(module))
    return Code(module, "+avx2,+fma", {"quantize": (4, 3), "multiply": (5, 4)})


_BYTES, _WORDS, _INTS = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
_FLOATS = ir.VectorType(F32, 8)
_BLOCK_FLOATS, _BLOCK_INTS = ir.VectorType(F32, BLOCK), ir.VectorType(I32, BLOCK)


def _tile(module: ir.Module, rows: int, *, unpacked: bool = False) -> ir.Function:
    """``tile(w, u, a, s, y, t, blocks, stride)``: 16 outputs of so many rows.

    Weights are those in ``u``, if they are unpacked there. Rows of outputs are ``stride`` numbers
    apart. Until all blocks are summed the sums are in ``t``: the registers are for the products of
    a block, and rows of y may lie whole pages apart, where the processor takes what it stored to
    one for what it loads from another.
    """
    name = f"tile{rows}" + "_unpacked" * unpacked
    b, (w, u, a, s, y, t, blocks, stride) = function(module, name, 6, 2, internal=True)
    source, group_bytes, block_bytes, weights_at = (
        (u, 2 * _GROUP_BYTES, 2 * _WEIGHT_BYTES, _unpacked_weights)
        if unpacked
        else (w, _GROUP_BYTES, _TILE_BYTES, _packed_weights)
    )
    sums = [at(b, t, i64(8 * place), F32) for place in range(rows * _HALVES)]
    for total in sums:
        b.store(filled(_FLOATS, 0.0), total, align=4)
    products = [b.alloca(_WORDS) for _ in sums]
    with loop(b, i64(0), blocks) as block:
        weights = at(b, source, b.mul(block, i64(block_bytes)))
        inputs = at(b, a, b.mul(block, i64(rows * BLOCK)))
        scales = at(b, s, b.mul(block, i64(rows * 2)), F32)
        _multiply_group(b, weights_at(b, weights), inputs, products, first=True)
        with loop(b, i64(1), i64(_GROUPS)) as group:
            of_group = weights_at(b, at(b, weights, b.mul(group, i64(group_bytes))))
            eight = at(b, inputs, b.mul(group, i64(_GROUP)))
            _multiply_group(b, of_group, eight, products, first=False)
        of_block = at(b, w, b.mul(block, i64(_TILE_BYTES)))
        of_outputs = [
            vector(b, of_block, _WEIGHT_BYTES + 32 * half, _FLOATS) for half in range(_HALVES)
        ]
        wholes = [
            call(b, "llvm.x86.avx2.pmadd.wd", _INTS, b.load(each, typ=_WORDS), filled(_WORDS, 1))
            for each in products
        ]
        for row in range(rows):
            scale, correction = (
                splat(b, load(b, at(b, scales, i64(2 * row + place), F32), F32, 4), _FLOATS)
                for place in range(2)
            )
            for half in range(_HALVES):
                place = row * _HALVES + half
                value = _fma(b, b.sitofp(wholes[place], _FLOATS), scale, correction)
                total = load(b, sums[place], _FLOATS, 4)
                b.store(_fma(b, value, of_outputs[half], total), sums[place], align=4)
    for place, total in enumerate(sums):
        row, half = divmod(place, _HALVES)
        target = at(b, y, b.add(b.mul(stride, i64(row)), i64(8 * half)), F32)
        b.store(load(b, total, _FLOATS, 4), target, align=4)
    b.ret_void()
    return b.function


def _packed_weights(b: ir.IRBuilder, weights: ir.Value) -> list[list[ir.Value]]:
    """A group's weights, those of even inputs first: for each, two vectors of four a number."""
    pairs = [vector(b, weights, 32 * half, _BYTES) for half in range(_HALVES)]
    low = [b.and_(pair, filled(_BYTES, 15)) for pair in pairs]
    return [low, [b.lshr(pair, filled(_BYTES, 4)) for pair in pairs]]


def _unpacked_weights(b: ir.IRBuilder, weights: ir.Value) -> list[list[ir.Value]]:
    """The same, one weight to a byte."""
    vectors = [vector(b, weights, 32 * place, _BYTES) for place in range(2 * _HALVES)]
    return [vectors[:_HALVES], vectors[_HALVES:]]


def _unpack(module: ir.Module) -> ir.Function:
    """``unpack(w, u, blocks)``: a tile's weights from w, one to a byte, to u."""
    b, (w, u, blocks) = function(module, "unpack", 2, 1, internal=True)
    with loop(b, i64(0), blocks) as block:
        source = at(b, w, b.mul(block, i64(_TILE_BYTES)))
        target = at(b, u, b.mul(block, i64(2 * _WEIGHT_BYTES)))
        for group in range(_GROUPS):
            low, high = _packed_weights(b, at(b, source, i64(group * _GROUP_BYTES)))
            for place, vector in enumerate([*low, *high]):
                offset = i64(group * 2 * _GROUP_BYTES + 32 * place)
                b.store(vector, at(b, target, offset), align=1)
    b.ret_void()
    return b.function


def _multiply_group(
    b: ir.IRBuilder,
    weights: list[list[ir.Value]],
    inputs: ir.Value,
    products: list[ir.Value],
    *,
    first: bool,
) -> None:
    """Eight inputs of each row by the weights of 16 outputs: two sums of each.

    A sum grows by 2 x 15 x 127 at most each time, which it does eight times in a block: 16 bits are
    enough.
    """
    for row in range(len(products) // _HALVES):
        sums = products[row * _HALVES : (row + 1) * _HALVES]
        values = [None if first else b.load(each, typ=_WORDS) for each in sums]
        # one after the other, for there are no registers for more
        for part, these in enumerate(weights):
            place = i64(row * BLOCK + part * _GROUP // 2)
            four = load(b, at(b, inputs, place), I32, 1)
            fours = b.bitcast(splat(b, four, _INTS), _BYTES)
            for half, value in enumerate(values):
                product = call(b, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, these[half], fours)
                values[half] = product if value is None else b.add(value, product)
        for value, target in zip(values, sums, strict=True):
            b.store(value, target)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return call(b, "llvm.fma.v8f32", _FLOATS, x, y, z)


def _multiply(module: ir.Module, tiles: list[ir.Function], unpack: ir.Function) -> None:
    """``multiply(w, a, s, y, taken, rows, blocks, tiles, step)``: the tiles that are not taken yet.

    Of ``tiles`` the n-th is for n rows, and the last for as many as the one before, of many.
    """
    b, (w, a, s, y, taken, rows, blocks, tile_count, step) = function(module, "multiply", 5, 4)
    sums = b.bitcast(b.alloca(ir.ArrayType(_FLOATS, _TILE_ROWS * _HALVES)), PTR)
    width, stride = b.mul(blocks, i64(BLOCK)), b.mul(tile_count, i64(TILE_OUTPUTS))
    many = b.icmp_signed(">=", rows, i64(_MANY_ROWS))
    unpacked_blocks = b.select(many, blocks, i64(0))
    unpacked = b.alloca(I8, b.mul(unpacked_blocks, i64(2 * _WEIGHT_BYTES)))
    unpacked.align = 32
    with shared_parts(b, taken, tile_count, step) as part, loop(b, *part) as tile:
        weights = at(b, w, b.mul(tile, b.mul(blocks, i64(_TILE_BYTES))))
        b.call(unpack, [weights, unpacked, unpacked_blocks])
        with loop(b, i64(0), rows, _TILE_ROWS) as row:
            inputs = at(b, a, b.mul(row, width))
            scales = at(b, s, b.mul(row, b.mul(blocks, i64(2))), F32)
            place = b.add(b.mul(row, stride), b.mul(tile, i64(TILE_OUTPUTS)))
            target = at(b, y, place, F32)
            here = _tile_rows(b, rows, row)
            whole = b.icmp_signed("==", here, i64(_TILE_ROWS))
            number = b.select(b.and_(many, whole), i64(len(tiles)), here)
            done = b.append_basic_block()
            choice = b.switch(number, done)
            for count, of_rows in enumerate(tiles, 1):
                b.position_at_end(case := b.append_basic_block())
                choice.add_case(i64(count), case)
                arguments = [weights, unpacked, inputs, scales, target, sums, blocks, stride]
                b.call(of_rows, arguments)
                b.branch(done)
            b.position_at_end(done)
    b.ret_void()


def _tile_rows(b: ir.IRBuilder, rows: ir.Value, first: ir.Value) -> ir.Value:
    return least(b, b.sub(rows, first), i64(_TILE_ROWS))


def _quantize(module: ir.Module) -> None:
    """``quantize(x, a, s, taken, rows, blocks, step)``: tiles of rows that are not taken yet."""
    b, (x, a, s, taken, rows, blocks, step) = function(module, "quantize", 4, 3)
    width = b.mul(blocks, i64(BLOCK))
    even_first = [8 * eight + place for eight in range(4) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    tiles = b.sdiv(b.add(rows, i64(_TILE_ROWS - 1)), i64(_TILE_ROWS))
    with shared_parts(b, taken, tiles, step) as part, loop(b, *part) as tile:
        start = b.mul(tile, i64(_TILE_ROWS))
        here = _tile_rows(b, rows, start)
        with loop(b, i64(0), here) as row, loop(b, i64(0), blocks) as block:
            source = b.add(b.mul(b.add(start, row), width), b.mul(block, i64(BLOCK)))
            values = load(b, at(b, x, source, F32), _BLOCK_FLOATS, 4)
            # Bits without the sign are ordered as numbers are, with NaN behind infinity: it must be
            # kept, for a broken model must not look sound.
            sizes = b.and_(b.bitcast(values, _BLOCK_INTS), filled(_BLOCK_INTS, 0x7FFFFFFF))
            largest = b.bitcast(call(b, "llvm.vector.reduce.umax.v32i32", I32, sizes), F32)
            is_zero = b.fcmp_ordered("==", largest, ir.Constant(F32, 0.0))
            factor = b.fdiv(
                ir.Constant(F32, 127.0), b.select(is_zero, ir.Constant(F32, 1.0), largest)
            )
            scaled = b.fmul(values, splat(b, factor, _BLOCK_FLOATS))
            nearest = call(b, "llvm.rint.v32f32", _BLOCK_FLOATS, scaled)
            whole = b.fptosi(nearest, _BLOCK_INTS)
            total = call(b, "llvm.vector.reduce.add.v32i32", I32, whole)
            narrow = b.trunc(whole, _BYTES)
            ordered = b.shuffle_vector(narrow, narrow, ir.Constant(_BLOCK_INTS, even_first))
            # by tile, in it by block, in that by row
            place = b.add(b.mul(start, blocks), b.add(b.mul(block, here), row))
            b.store(ordered, at(b, a, b.mul(place, i64(BLOCK))), align=1)
            scale = b.fmul(largest, ir.Constant(F32, 1 / 127))
            of_eights = b.fmul(b.sitofp(total, F32), ir.Constant(F32, -8.0))
            target = b.mul(place, i64(2))
            b.store(scale, at(b, s, target, F32), align=4)
            b.store(b.fmul(scale, of_eights), at(b, s, b.add(target, i64(1)), F32), align=4)
    b.ret_void()


__all__ = ["BLOCK", "TILE_OUTPUTS", "Product", "pack"]
