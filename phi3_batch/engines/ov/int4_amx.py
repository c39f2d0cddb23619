"""Products with weights in four bits by activations in bfloat16, in AMX's tiles.

OpenVINO multiplies by them too, and rounds as this does, weights and activations to bfloat16, sums
in float32; what is gained is told in docs/benchmarks.md. It rearranges weights when it loads them,
for seconds; here they are multiplied from where the file has them.

Layouts, for N outputs of K inputs and M rows, in blocks of 32 inputs:

- weights, ``(N / 32, K / 32, 640)`` bytes: two tiles of 16 outputs and one block. Of a tile's 320
  bytes word ``32 q + k`` of the first 256 has the weights, 0 to 15, of input k and outputs 4 q to
  4 q + 3, the first of them in the lowest bits; then 16 scales in float32. A weight of w stands for
  (w - 8) x scale.
- weights that are expanded: the same tiles as AMX wants them on the left, by output 32 inputs.
- activations, on the right: by 16 rows, by block, by pair of inputs, by row two numbers; a last row
  is there again for those that are missing.
- sums, by 16 rows, by tile of outputs: by output 16 rows.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from phi3_batch.engines.ov.amx_tiles import (
    FLOATS,
    INTS,
    SIDE,
    TILE_BYTES,
    every_tile_whole,
    is_allowed,
    load_tile,
    store_tile,
    tile_op,
    to_bfloat16,
    transposed,
)
from phi3_batch.engines.ov.llvm_ir import (
    F32,
    I8,
    I16,
    I32,
    VOID,
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
TILE_OUTPUTS = 32  # of two tiles, which are multiplied by the same rows
_HALVES = TILE_OUTPUTS // SIDE
_WEIGHT_BYTES = SIDE * BLOCK // 2
_HALF_BYTES = _WEIGHT_BYTES + SIDE * 4
_PACKED_BYTES = _HALVES * _HALF_BYTES
_PAIR = 2  # tiles of rows that are multiplied at a time

# Blocks of weights that are expanded at a time, for many rows: with two tiles of rows they fit into
# the first cache.
_BLOCKS = 8
# Rows and tiles of outputs whose sums are kept meanwhile: these, and the rows' blocks, fit into the
# second cache.
_PANEL = 256
_GROUP = 8
# of memory, ahead of what is expanded for few rows
_AHEAD = 3


def pack(weights: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Weights as :class:`Product` reads them.

    Args:
        weights: two to a byte, the first in the low bits; shape ``(N, K / 32, 16)``.
        scales: shape ``(N, K / 32)``.

    Returns:
        Shape ``(N / 32, K / 32, 640)``.
    """
    outputs, blocks, _ = weights.shape
    tiles = outputs // TILE_OUTPUTS
    packed = np.empty((tiles, blocks, _HALVES, _HALF_BYTES), np.uint8)
    for tile, target in enumerate(packed):  # one by one, for they are spread to words meanwhile
        of_tile = weights[tile * TILE_OUTPUTS : (tile + 1) * TILE_OUTPUTS]
        fours = np.stack([of_tile & 15, of_tile >> 4], axis=-1).astype(np.uint16)
        # by half, four, output of it, block, input
        fours = fours.reshape(_HALVES, 4, 4, blocks, BLOCK)
        shifts = np.arange(0, 16, 4, dtype=np.uint16).reshape(4, 1, 1)
        words = np.bitwise_or.reduce(fours << shifts, axis=2)
        ordered = np.ascontiguousarray(words.transpose(2, 0, 1, 3)).view(np.uint8)
        target[:, :, :_WEIGHT_BYTES] = ordered.reshape(blocks, _HALVES, _WEIGHT_BYTES)
    by_half = scales.astype(np.float32).reshape(tiles, _HALVES, SIDE, blocks)
    packed[..., _WEIGHT_BYTES:] = np.ascontiguousarray(by_half.transpose(0, 3, 1, 2)).view(np.uint8)
    return packed.reshape(tiles, blocks, _PACKED_BYTES)


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
        rows, _ = inputs.shape
        tiles, blocks, _ = packed.shape
        row_tiles = -(-rows // SIDE)
        rounded = np.empty(row_tiles * blocks * TILE_BYTES + 64, np.uint8)
        taken = np.zeros(2, np.int64)
        self._arrays = arrays = inputs, packed, rounded, outputs, taken
        x, w, a, y, t = (array.ctypes.data for array in arrays)
        a += -a % 64  # a row of a tile is one line of the cache
        self._rounding = x, a, t, rows, blocks, max(1, row_tiles // parts)
        step = min(_GROUP, max(1, tiles // parts))
        self._product = w, a, y, t + 8, rows, blocks, tiles, step

    def prepare(self) -> None:
        """Round the rows."""
        _code().run("round", *self._rounding)

    def multiply(self) -> None:
        """Multiply the rounded rows."""
        _code().run("multiply", *self._product)


@functools.cache
def _code() -> Code:
    """What rounds and what multiplies, compiled at the first call; it takes 0.3 s."""
    if not is_allowed():  # in this process: what it was packed by may have been another
        raise OSError("the system does not allow the processor's AMX")
    module = ir.Module("int4")
    _round(module)
    _multiply(module)
    features = "+amx-tile,+amx-bf16,+avx512bf16,+avx512bw,+avx512f"
    return Code(module, features, {"round": (3, 3), "multiply": (4, 4)})


_WORDS = ir.VectorType(I16, BLOCK)
# what the 16 values of a weight are, but for the scale
_LEVELS = ir.Constant(FLOATS, [float(value - 8) for value in range(16)])

# AMX's registers: sums of two tiles of rows and two of outputs, rows, and weights
_SUMS, _ROWS, _WEIGHTS = 0, 4, 6


def _multiply_block(b: ir.IRBuilder, weights: ir.Value, rows: Sequence[ir.Value]) -> None:
    """Add a block's products to the sums: one or two tiles of rows by expanded weights."""
    for half in range(_HALVES):
        load_tile(b, _WEIGHTS + half, at(b, weights, i64(half * TILE_BYTES)))
    for place, tile in enumerate(rows):
        load_tile(b, _ROWS + place, tile)
        for half in range(_HALVES):
            target = _SUMS + place * _HALVES + half
            tile_op(b, "tdpbf16ps", target, _WEIGHTS + half, _ROWS + place)


def _expand(b: ir.IRBuilder, packed: ir.Value, target: ir.Value) -> None:
    """Weights of a block in bfloat16, for AMX.

    Of each output the 16 values that its weights can have are computed, and each weight looked up:
    in float32, rounded, of which VPERMW takes the upper half.
    """
    for half in range(_HALVES):
        for place in range(SIDE):
            four, shift = divmod(place, 4)
            if shift == 0:
                words = vector(b, packed, half * _HALF_BYTES + 64 * four, _WORDS)
            scale_at = at(b, packed, i64(half * _HALF_BYTES + _WEIGHT_BYTES + 4 * place))
            values = b.fmul(_LEVELS, splat(b, load(b, scale_at, F32, 4), FLOATS))
            rounded = b.add(b.bitcast(values, INTS), filled(INTS, 0x8000))
            # number w is word 2 w + 1; of more than five bits VPERMW takes no notice
            twice = (
                b.lshr(words, filled(_WORDS, 4 * shift - 1))
                if shift
                else b.shl(words, filled(_WORDS, 1))
            )
            chosen = call(
                b,
                "llvm.x86.avx512.permvar.hi.512",
                _WORDS,
                b.bitcast(rounded, _WORDS),
                b.or_(twice, filled(_WORDS, 1)),
            )
            row = at(b, target, i64(half * TILE_BYTES + 64 * place))
            b.store(chosen, row, align=64)


def _round(module: ir.Module) -> None:
    """``round(x, a, taken, rows, blocks, step)``: tiles of rows that are not taken yet."""
    b, (x, a, taken, rows, blocks, step) = function(module, "round", 3, 3)
    width, last = b.mul(blocks, i64(BLOCK)), b.sub(rows, i64(1))
    with shared_parts(b, taken, _tiles(b, rows), step) as part, loop(b, *part) as tile:
        first = b.mul(tile, i64(SIDE))
        sources = [
            at(b, x, b.mul(least(b, b.add(first, i64(row)), last), width), F32)
            for row in range(SIDE)
        ]
        target = at(b, a, b.mul(tile, b.mul(blocks, i64(TILE_BYTES))))
        with loop(b, i64(0), blocks) as block:
            rounded = []
            for source in sources:
                here = at(b, source, b.mul(block, i64(BLOCK)), F32)
                low, high = (vector(b, here, 64 * half, FLOATS) for half in range(2))
                rounded.append(to_bfloat16(b, low, high))
            of_block = at(b, target, b.mul(block, i64(TILE_BYTES)))
            for pair, values in enumerate(transposed(b, rounded)):
                b.store(values, at(b, of_block, i64(64 * pair)), align=64)
    b.ret_void()


def _tiles(b: ir.IRBuilder, rows: ir.Value) -> ir.Value:
    return b.sdiv(b.add(rows, i64(SIDE - 1)), i64(SIDE))


def _few(module: ir.Module, tiles: int) -> ir.Function:
    """``few(w, a, u, c, blocks)``: the sums of one or two tiles of rows, in registers.

    Weights of a block are expanded, to ``u``, while the one before it is multiplied.
    """
    b, (w, a, u, c, blocks) = function(module, f"few{tiles}", 4, 1, internal=True)
    places = 4

    def expanded_at(block: ir.Value) -> ir.Value:
        return at(b, u, b.mul(b.and_(block, i64(places - 1)), i64(_HALVES * TILE_BYTES)))

    def expand(block: ir.Value) -> None:
        packed = at(b, w, b.mul(block, i64(_PACKED_BYTES)))
        for line in range(_PACKED_BYTES // 64):
            later = at(b, packed, i64(_AHEAD * _PACKED_BYTES + 64 * line))
            into_the_first_cache = [ir.Constant(I32, value) for value in (0, 3, 1)]
            call(b, "llvm.prefetch.p0", VOID, later, *into_the_first_cache)
        _expand(b, packed, expanded_at(block))

    def multiply(block: ir.Value) -> None:
        rows = [
            at(b, a, b.mul(b.add(b.mul(blocks, i64(tile)), block), i64(TILE_BYTES)))
            for tile in range(tiles)
        ]
        _multiply_block(b, expanded_at(block), rows)

    for place in range(tiles * _HALVES):
        tile_op(b, "tilezero", _SUMS + place)
    expand(i64(0))
    with loop(b, i64(1), blocks) as block:
        expand(block)
        multiply(b.sub(block, i64(1)))
    multiply(b.sub(blocks, i64(1)))
    for place in range(tiles * _HALVES):
        store_tile(b, _SUMS + place, at(b, c, i64(place * TILE_BYTES)))
    b.ret_void()
    return b.function


def _expand_blocks(module: ir.Module) -> ir.Function:
    """``expand(w, u, count)``: so many blocks of weights."""
    b, (w, u, count) = function(module, "expand", 2, 1, internal=True)
    with loop(b, i64(0), count) as block:
        target = at(b, u, b.mul(block, i64(_HALVES * TILE_BYTES)))
        _expand(b, at(b, w, b.mul(block, i64(_PACKED_BYTES))), target)
    b.ret_void()
    return b.function


def _many(module: ir.Module, tiles: int) -> ir.Function:
    """``many(u, a, c, count, blocks, first)``: so many blocks added to the sums in ``c``.

    They are of one or two tiles of rows; before the ``first`` block there is nothing to add to.
    """
    b, (u, a, c, count, blocks, first) = function(module, f"many{tiles}", 3, 3, internal=True)
    sums = [(_SUMS + place, i64(place * TILE_BYTES)) for place in range(tiles * _HALVES)]
    with b.if_else(b.icmp_signed("==", first, i64(0))) as (is_first, is_later):
        with is_first:
            for tile, _ in sums:
                tile_op(b, "tilezero", tile)
        with is_later:
            for tile, offset in sums:
                load_tile(b, tile, at(b, c, offset))
    with loop(b, i64(0), count) as block:
        rows = [
            at(b, a, b.mul(b.add(b.mul(blocks, i64(tile)), block), i64(TILE_BYTES)))
            for tile in range(tiles)
        ]
        _multiply_block(b, at(b, u, b.mul(block, i64(_HALVES * TILE_BYTES))), rows)
    for tile, offset in sums:
        store_tile(b, tile, at(b, c, offset))
    b.ret_void()
    return b.function


def _write(module: ir.Module) -> ir.Function:
    """``write(c, t, y, rows, stride)``: sums of two tiles of outputs to rows of outputs.

    Rows of ``y`` are ``stride`` numbers apart.
    """
    b, (c, t, y, rows, stride) = function(module, "write", 3, 2, internal=True)
    with loop(b, i64(0), rows, SIDE) as first:
        here = least(b, b.sub(rows, first), i64(SIDE))
        for half in range(_HALVES):
            sums = at(b, c, b.add(b.mul(first, i64(_HALVES * 64)), i64(half * TILE_BYTES)))
            vectors = [vector(b, sums, 64 * output, FLOATS) for output in range(SIDE)]
            for row, values in enumerate(transposed(b, vectors)):
                b.store(values, at(b, t, i64(64 * row)), align=64)
            with loop(b, i64(0), here) as row:
                place = b.add(b.mul(b.add(first, row), stride), i64(half * SIDE))
                values = load(b, at(b, t, b.mul(row, i64(64))), FLOATS, 64)
                b.store(values, at(b, y, place, F32), align=4)
    b.ret_void()
    return b.function


def _multiply(module: ir.Module) -> None:
    """``multiply(w, a, y, taken, rows, blocks, tiles, step)``: tiles that are not taken yet."""
    configuration = every_tile_whole(module)
    few, many = _few_rows(module), _many_rows(module)
    b, (w, a, y, taken, rows, blocks, tiles, step) = function(module, "multiply", 4, 4)
    # Others have the tiles configured in another way, and think that it stays so.
    before = _scratch(b, i64(64))
    tile_op(b, "sttilecfg", before)
    tile_op(b, "ldtilecfg", configuration)
    are_few = b.icmp_signed("<=", rows, i64(_PAIR * SIDE))
    expanded = _scratch(b, i64(_BLOCKS * _HALVES * TILE_BYTES))
    sums_bytes = b.select(
        are_few, i64(_PAIR * _HALVES * TILE_BYTES), i64(_GROUP * _PANEL * _HALVES * 64)
    )
    sums, turned = _scratch(b, sums_bytes), _scratch(b, i64(TILE_BYTES))
    with shared_parts(b, taken, tiles, step) as (first, end):
        weights = at(b, w, b.mul(first, b.mul(blocks, i64(_PACKED_BYTES))))
        outputs = at(b, y, b.mul(first, i64(TILE_OUTPUTS)), F32)
        stride = b.mul(tiles, i64(TILE_OUTPUTS))
        pointers = [weights, a, outputs, expanded, sums, turned]
        arguments = [*pointers, rows, blocks, b.sub(end, first), stride]
        with b.if_else(are_few) as (yes, no):
            with yes:
                b.call(few, arguments)
            with no:
                b.call(many, arguments)
    tile_op(b, "ldtilecfg", before)
    b.ret_void()


def _scratch(b: ir.IRBuilder, size: ir.Value) -> ir.Value:
    """So many bytes of the stack."""
    place = b.alloca(I8, size)
    place.align = 64
    return place


def _few_rows(module: ir.Module) -> ir.Function:
    """``few_rows(w, a, y, u, c, t, rows, blocks, count, stride)``: so many tiles of outputs."""
    of_one, of_two, write = _few(module, 1), _few(module, 2), _write(module)
    b, (w, a, y, u, c, t, rows, blocks, count, stride) = function(
        module, "few_rows", 6, 4, internal=True
    )
    is_one = b.icmp_signed("<=", rows, i64(SIDE))
    with loop(b, i64(0), count) as tile:
        arguments = [at(b, w, b.mul(tile, b.mul(blocks, i64(_PACKED_BYTES)))), a, u, c, blocks]
        with b.if_else(is_one) as (one, two):
            with one:
                b.call(of_one, arguments)
            with two:
                b.call(of_two, arguments)
        target = at(b, y, b.mul(tile, i64(TILE_OUTPUTS)), F32)
        b.call(write, [c, t, target, rows, stride])
    b.ret_void()
    return b.function


def _many_rows(module: ir.Module) -> ir.Function:
    """``many_rows(w, a, y, u, c, t, rows, blocks, count, stride)``: so many tiles of outputs."""
    expand, of_one, of_two = _expand_blocks(module), _many(module, 1), _many(module, 2)
    write = module.globals["write"]
    b, (w, a, y, u, c, t, rows, blocks, count, stride) = function(
        module, "many_rows", 6, 4, internal=True
    )
    row_bytes = b.mul(blocks, i64(TILE_BYTES))  # of a tile of rows
    sums_of_tile = i64(_PANEL * _HALVES * 64)
    with loop(b, i64(0), rows, _PANEL) as first:
        here = least(b, b.sub(rows, first), i64(_PANEL))
        row_tiles = _tiles(b, here)
        even = b.and_(row_tiles, i64(-_PAIR))
        panel = at(b, a, b.mul(b.sdiv(first, i64(SIDE)), row_bytes))
        with loop(b, i64(0), blocks, _BLOCKS) as block, loop(b, i64(0), count) as tile:
            these = least(b, b.sub(blocks, block), i64(_BLOCKS))
            place = b.add(b.mul(tile, blocks), block)
            b.call(expand, [at(b, w, b.mul(place, i64(_PACKED_BYTES))), u, these])
            inputs = at(b, panel, b.mul(block, i64(TILE_BYTES)))
            sums = at(b, c, b.mul(tile, sums_of_tile))

            def add(
                of_rows: ir.Function,
                row_tile: ir.Value,
                *,
                inputs: ir.Value = inputs,
                sums: ir.Value = sums,
                numbers: Sequence[ir.Value] = (these, blocks, block),
            ) -> None:
                these_rows = at(b, inputs, b.mul(row_tile, row_bytes))
                of_sums = at(b, sums, b.mul(row_tile, i64(_HALVES * TILE_BYTES)))
                b.call(of_rows, [u, these_rows, of_sums, *numbers])

            with loop(b, i64(0), even, _PAIR) as row_tile:
                add(of_two, row_tile)
            with b.if_then(b.icmp_signed("<", even, row_tiles)):
                add(of_one, even)
        with loop(b, i64(0), count) as tile:
            place = b.add(b.mul(first, stride), b.mul(tile, i64(TILE_OUTPUTS)))
            sums = at(b, c, b.mul(tile, sums_of_tile))
            b.call(write, [sums, t, at(b, y, place, F32), here, stride])
    b.ret_void()
    return b.function


__all__ = ["BLOCK", "TILE_OUTPUTS", "Product", "pack"]
