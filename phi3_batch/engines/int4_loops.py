"""The loops of :mod:`int4_kernel`, which LLVM compiles when they are first needed.

It does so for the processor it finds: users have no compiler, and packages none for every one.

Layouts, for N outputs of K inputs and M rows, in blocks of 32 inputs:

- weights, ``(N / 16, K / 32, 320)`` bytes: a tile of 16 outputs and one block. Of its first 256
  bytes byte ``64 g + 4 n + k`` has the weights, 0 to 15, of output n and inputs 8 g + 2 k (low
  bits) and 8 g + 2 k + 1; then 16 scales in float32. A weight of w stands for (w - 8) x scale.
- activations, in tiles of 5 rows (the last may have less): by block, by row 32 bytes; in each eight
  of them the even inputs first, then the odd ones.
- their scales, in the same order, two float32 each: the scale, and what makes up for the 8.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import llvmlite.binding as llvm
from llvmlite import ir

BLOCK = 32  # inputs with a scale
TILE_OUTPUTS = 16
TILE_ROWS = 5
_HALVES = 2  # vectors of 32 bytes that a tile's outputs take
_GROUP = 8  # inputs that are multiplied at a time
_GROUP_BYTES = TILE_OUTPUTS * _GROUP // 2
_WEIGHT_BYTES = TILE_OUTPUTS * BLOCK // 2
_GROUPS = BLOCK // _GROUP
# Rows from which on a tile's weights are unpacked once for all of them, not for every five
_MANY_ROWS = 40
TILE_BYTES = _WEIGHT_BYTES + TILE_OUTPUTS * 4


class Loops:
    """The compiled functions, as Python calls them; none holds the interpreter's lock."""

    def __init__(self, engine: llvm.ExecutionEngine) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._engine = engine  # which has the code
        self.quantize = ctypes.CFUNCTYPE(None, *[pointer] * 4, *[number] * 3)(
            engine.get_function_address("quantize")
        )
        self.product = ctypes.CFUNCTYPE(None, *[pointer] * 5, *[number] * 4)(
            engine.get_function_address("product")
        )


@functools.cache
def compiled_loops() -> Loops:
    """The functions, compiled at the first call; it takes 0.3 s."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features="+avx2,+fma", opt=3, jit=True
    )
    module = llvm.parse_assembly(str(_module()))
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()  # no other: they unroll the loops, and then there are too few registers
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3)))
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return Loops(engine)


# LLVM's intermediate language, by llvmlite's builder
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()
_PTR = ir.PointerType()
_VOID = ir.VoidType()
_BYTES, _WORDS, _INTS = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
_FLOATS = ir.VectorType(_F32, 8)
_BLOCK_FLOATS, _BLOCK_INTS = ir.VectorType(_F32, BLOCK), ir.VectorType(_I32, BLOCK)


def _module() -> ir.Module:
    module = ir.Module("int4")
    tiles = [_tile(module, rows) for rows in range(1, TILE_ROWS + 1)]
    _quantize(module)
    of_many = _tile(module, TILE_ROWS, unpacked=True)
    _product(module, [*tiles, of_many], _unpack(module))
    return module


def _function(
    module: ir.Module, name: str, pointers: int, numbers: int
) -> tuple[ir.IRBuilder, list[ir.Argument]]:
    kind = ir.FunctionType(_VOID, [*[_PTR] * pointers, *[_I64] * numbers])
    function = ir.Function(module, kind, name)
    return ir.IRBuilder(function.append_basic_block()), list(function.args)


def _int(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _each(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


@contextmanager
def _loop(b: ir.IRBuilder, first: ir.Value, end: ir.Value, step: int = 1) -> Iterator[ir.Value]:
    """A loop from ``first`` up to, not including, ``end``."""
    before = b.block
    head, body, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(_I64)
    index.add_incoming(first, before)
    b.cbranch(b.icmp_signed("<", index, end), body, after)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, _int(step)), b.block)
    b.branch(head)
    b.position_at_end(after)


@contextmanager
def _shared_loop(
    b: ir.IRBuilder, taken: ir.Value, end: ir.Value, step: ir.Value
) -> Iterator[ir.Value]:
    """A loop from what ``taken`` holds to ``end``, of which a thread takes ``step`` at a time."""
    head, body, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    first = b.atomic_rmw("add", taken, step, "monotonic")
    b.cbranch(b.icmp_signed("<", first, end), body, after)
    b.position_at_end(body)
    last = b.add(first, step)
    with _loop(b, first, b.select(b.icmp_signed("<", last, end), last, end)) as index:
        yield index
    b.branch(head)
    b.position_at_end(after)


def _at(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    return b.gep(pointer, [index], source_etype=kind)


def _load(b: ir.IRBuilder, pointer: ir.Value, kind: ir.Type, scalar_bytes: int) -> ir.Value:
    return b.load(pointer, align=scalar_bytes, typ=kind)


def _vector(b: ir.IRBuilder, pointer: ir.Value, offset: int, kind: ir.VectorType) -> ir.Value:
    """The vector so many bytes behind a pointer."""
    return _load(b, _at(b, pointer, _int(offset), _I8), kind, 1)


def _splat(b: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    return b.shuffle_vector(one, one, zeros)


def _call(b: ir.IRBuilder, name: str, kind: ir.Type, *values: ir.Value) -> ir.Value:
    """Call one of LLVM's intrinsic functions."""
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(kind, [value.type for value in values]), name
    )
    return b.call(function, values)


def _tile(module: ir.Module, rows: int, *, unpacked: bool = False) -> ir.Function:
    """``tile(w, u, a, s, y, t, blocks, stride)``: 16 outputs of so many rows.

    Weights are those in ``u``, if they are unpacked there. Rows of outputs are ``stride`` numbers
    apart. Until all blocks are summed the sums are in ``t``: the registers are for the products of
    a block, and rows of y may lie whole pages apart, where the processor takes what it stored to
    one for what it loads from another.
    """
    name = f"tile{rows}" + "_unpacked" * unpacked
    b, (w, u, a, s, y, t, blocks, stride) = _function(module, name, 6, 2)
    b.function.linkage = "internal"
    source, group_bytes, block_bytes, weights_at = (
        (u, 2 * _GROUP_BYTES, 2 * _WEIGHT_BYTES, _unpacked_weights)
        if unpacked
        else (w, _GROUP_BYTES, TILE_BYTES, _packed_weights)
    )
    sums = [_at(b, t, _int(8 * place), _F32) for place in range(rows * _HALVES)]
    for total in sums:
        b.store(_each(_FLOATS, 0.0), total, align=4)
    products = [b.alloca(_WORDS) for _ in sums]
    with _loop(b, _int(0), blocks) as block:
        weights = _at(b, source, b.mul(block, _int(block_bytes)), _I8)
        inputs = _at(b, a, b.mul(block, _int(rows * BLOCK)), _I8)
        scales = _at(b, s, b.mul(block, _int(rows * 2)), _F32)
        _multiply_group(b, weights_at(b, weights), inputs, products, first=True)
        with _loop(b, _int(1), _int(_GROUPS)) as group:
            of_group = weights_at(b, _at(b, weights, b.mul(group, _int(group_bytes)), _I8))
            eight = _at(b, inputs, b.mul(group, _int(_GROUP)), _I8)
            _multiply_group(b, of_group, eight, products, first=False)
        of_block = _at(b, w, b.mul(block, _int(TILE_BYTES)), _I8)
        of_outputs = [
            _vector(b, of_block, _WEIGHT_BYTES + 32 * half, _FLOATS) for half in range(_HALVES)
        ]
        wholes = [
            _call(b, "llvm.x86.avx2.pmadd.wd", _INTS, b.load(each, typ=_WORDS), _each(_WORDS, 1))
            for each in products
        ]
        for row in range(rows):
            scale, correction = (
                _splat(b, _load(b, _at(b, scales, _int(2 * row + place), _F32), _F32, 4), _FLOATS)
                for place in range(2)
            )
            for half in range(_HALVES):
                place = row * _HALVES + half
                value = _fma(b, b.sitofp(wholes[place], _FLOATS), scale, correction)
                total = _load(b, sums[place], _FLOATS, 4)
                b.store(_fma(b, value, of_outputs[half], total), sums[place], align=4)
    for place, total in enumerate(sums):
        row, half = divmod(place, _HALVES)
        target = _at(b, y, b.add(b.mul(stride, _int(row)), _int(8 * half)), _F32)
        b.store(_load(b, total, _FLOATS, 4), target, align=4)
    b.ret_void()
    return b.function


def _packed_weights(b: ir.IRBuilder, weights: ir.Value) -> list[list[ir.Value]]:
    """A group's weights, those of even inputs first: for each, two vectors of four a number."""
    pairs = [_vector(b, weights, 32 * half, _BYTES) for half in range(_HALVES)]
    low = [b.and_(pair, _each(_BYTES, 15)) for pair in pairs]
    return [low, [b.lshr(pair, _each(_BYTES, 4)) for pair in pairs]]


def _unpacked_weights(b: ir.IRBuilder, weights: ir.Value) -> list[list[ir.Value]]:
    """The same, one weight to a byte."""
    vectors = [_vector(b, weights, 32 * place, _BYTES) for place in range(2 * _HALVES)]
    return [vectors[:_HALVES], vectors[_HALVES:]]


def _unpack(module: ir.Module) -> ir.Function:
    """``unpack(w, u, blocks)``: a tile's weights from w, one to a byte, to u."""
    b, (w, u, blocks) = _function(module, "unpack", 2, 1)
    b.function.linkage = "internal"
    with _loop(b, _int(0), blocks) as block:
        source = _at(b, w, b.mul(block, _int(TILE_BYTES)), _I8)
        target = _at(b, u, b.mul(block, _int(2 * _WEIGHT_BYTES)), _I8)
        for group in range(_GROUPS):
            low, high = _packed_weights(b, _at(b, source, _int(group * _GROUP_BYTES), _I8))
            for place, vector in enumerate([*low, *high]):
                offset = _int(group * 2 * _GROUP_BYTES + 32 * place)
                b.store(vector, _at(b, target, offset, _I8), align=1)
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
            place = _int(row * BLOCK + part * _GROUP // 2)
            four = _load(b, _at(b, inputs, place, _I8), _I32, 1)
            fours = b.bitcast(_splat(b, four, _INTS), _BYTES)
            for half, value in enumerate(values):
                product = _call(b, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, these[half], fours)
                values[half] = product if value is None else b.add(value, product)
        for value, target in zip(values, sums, strict=True):
            b.store(value, target)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return _call(b, "llvm.fma.v8f32", _FLOATS, x, y, z)


def _product(module: ir.Module, tiles: list[ir.Function], unpack: ir.Function) -> None:
    """``product(w, a, s, y, taken, rows, blocks, tiles, step)``: the tiles that are not taken yet.

    Of ``tiles`` the n-th is for n rows, and the last for as many as the one before, of many.
    """
    b, (w, a, s, y, taken, rows, blocks, tile_count, step) = _function(module, "product", 5, 4)
    sums = b.bitcast(b.alloca(ir.ArrayType(_FLOATS, TILE_ROWS * _HALVES)), _PTR)
    width, stride = b.mul(blocks, _int(BLOCK)), b.mul(tile_count, _int(TILE_OUTPUTS))
    many = b.icmp_signed(">=", rows, _int(_MANY_ROWS))
    unpacked_blocks = b.select(many, blocks, _int(0))
    unpacked = b.alloca(_I8, b.mul(unpacked_blocks, _int(2 * _WEIGHT_BYTES)))
    unpacked.align = 32
    with _shared_loop(b, taken, tile_count, step) as tile:
        weights = _at(b, w, b.mul(tile, b.mul(blocks, _int(TILE_BYTES))), _I8)
        b.call(unpack, [weights, unpacked, unpacked_blocks])
        with _loop(b, _int(0), rows, TILE_ROWS) as row:
            inputs = _at(b, a, b.mul(row, width), _I8)
            scales = _at(b, s, b.mul(row, b.mul(blocks, _int(2))), _F32)
            place = b.add(b.mul(row, stride), b.mul(tile, _int(TILE_OUTPUTS)))
            target = _at(b, y, place, _F32)
            here = _tile_rows(b, rows, row)
            whole = b.icmp_signed("==", here, _int(TILE_ROWS))
            number = b.select(b.and_(many, whole), _int(len(tiles)), here)
            done = b.append_basic_block()
            choice = b.switch(number, done)
            for count, function in enumerate(tiles, 1):
                b.position_at_end(case := b.append_basic_block())
                choice.add_case(_int(count), case)
                arguments = [weights, unpacked, inputs, scales, target, sums, blocks, stride]
                b.call(function, arguments)
                b.branch(done)
            b.position_at_end(done)
    b.ret_void()


def _tile_rows(b: ir.IRBuilder, rows: ir.Value, first: ir.Value) -> ir.Value:
    left = b.sub(rows, first)
    return b.select(b.icmp_signed("<", left, _int(TILE_ROWS)), left, _int(TILE_ROWS))


def _quantize(module: ir.Module) -> None:
    """``quantize(x, a, s, taken, rows, blocks, step)``: tiles of rows that are not taken yet."""
    b, (x, a, s, taken, rows, blocks, step) = _function(module, "quantize", 4, 3)
    width = b.mul(blocks, _int(BLOCK))
    even_first = [8 * eight + place for eight in range(4) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    tiles = b.sdiv(b.add(rows, _int(TILE_ROWS - 1)), _int(TILE_ROWS))
    with _shared_loop(b, taken, tiles, step) as tile:
        start = b.mul(tile, _int(TILE_ROWS))
        here = _tile_rows(b, rows, start)
        with _loop(b, _int(0), here) as row, _loop(b, _int(0), blocks) as block:
            source = b.add(b.mul(b.add(start, row), width), b.mul(block, _int(BLOCK)))
            values = _load(b, _at(b, x, source, _F32), _BLOCK_FLOATS, 4)
            # Bits without the sign are ordered as numbers are, with NaN behind infinity: it must be
            # kept, for a broken model must not look sound.
            sizes = b.and_(b.bitcast(values, _BLOCK_INTS), _each(_BLOCK_INTS, 0x7FFFFFFF))
            largest = b.bitcast(_call(b, "llvm.vector.reduce.umax.v32i32", _I32, sizes), _F32)
            is_zero = b.fcmp_ordered("==", largest, ir.Constant(_F32, 0.0))
            factor = b.fdiv(
                ir.Constant(_F32, 127.0), b.select(is_zero, ir.Constant(_F32, 1.0), largest)
            )
            scaled = b.fmul(values, _splat(b, factor, _BLOCK_FLOATS))
            nearest = _call(b, "llvm.rint.v32f32", _BLOCK_FLOATS, scaled)
            whole = b.fptosi(nearest, _BLOCK_INTS)
            total = _call(b, "llvm.vector.reduce.add.v32i32", _I32, whole)
            narrow = b.trunc(whole, _BYTES)
            ordered = b.shuffle_vector(narrow, narrow, ir.Constant(_BLOCK_INTS, even_first))
            # by tile, in it by block, in that by row
            place = b.add(b.mul(start, blocks), b.add(b.mul(block, here), row))
            b.store(ordered, _at(b, a, b.mul(place, _int(BLOCK)), _I8), align=1)
            scale = b.fmul(largest, ir.Constant(_F32, 1 / 127))
            of_eights = b.fmul(b.sitofp(total, _F32), ir.Constant(_F32, -8.0))
            target = b.mul(place, _int(2))
            b.store(scale, _at(b, s, target, _F32), align=4)
            b.store(b.fmul(scale, of_eights), _at(b, s, b.add(target, _int(1)), _F32), align=4)
    b.ret_void()


__all__ = ["BLOCK", "TILE_BYTES", "TILE_OUTPUTS", "TILE_ROWS", "Loops", "compiled_loops"]
