"""LLVM's intermediate language by llvmlite's builder: what our own kernels are written with.

LLVM compiles them when they are first needed, for the processor it finds: users have no compiler,
and packages none for every processor.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import llvmlite.binding as llvm
from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
PTR = ir.PointerType()
VOID = ir.VoidType()


class Code:
    """A module's functions, compiled for this processor.

    Args:
        module: what is to be compiled.
        features: of the processor, such as ``+avx2``.
        signatures: of each function that Python calls, how many pointers and numbers it takes.
    """

    def __init__(
        self, module: ir.Module, features: str, signatures: Mapping[str, tuple[int, int]]
    ) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
        )
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        passes = llvm.create_new_module_pass_manager()
        # no other: they unroll the loops, and then there are too few registers
        passes.add_sroa_pass()
        options = llvm.create_pipeline_tuning_options(3)
        passes.run(parsed, llvm.create_pass_builder(machine, options))
        self._engine = llvm.create_mcjit_compiler(parsed, machine)
        self._engine.finalize_object()

        self._functions = {
            name: ctypes.CFUNCTYPE(
                None, *[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * numbers
            )(self._engine.get_function_address(name))
            for name, (pointers, numbers) in signatures.items()
        }

    def run(self, name: str, *values: int) -> None:
        """Run a function with addresses and numbers; it does not hold the interpreter's lock."""
        self._functions[name](*values)


def function(
    module: ir.Module, name: str, pointers: int, numbers: int, *, internal: bool = False
) -> tuple[ir.IRBuilder, list[ir.Argument]]:
    """Begin a function of so many pointers and then 64-bit numbers, that returns nothing."""
    kind = ir.FunctionType(VOID, [*[PTR] * pointers, *[I64] * numbers])
    made = ir.Function(module, kind, name)
    if internal:
        made.linkage = "internal"
    return ir.IRBuilder(made.append_basic_block()), list(made.args)


def i64(value: int) -> ir.Constant:
    """A 64-bit number."""
    return ir.Constant(I64, value)


def filled(kind: ir.VectorType, value: float) -> ir.Constant:
    """A vector of equal values."""
    return ir.Constant(kind, [value] * kind.count)


@contextmanager
def loop(b: ir.IRBuilder, first: ir.Value, end: ir.Value, step: int = 1) -> Iterator[ir.Value]:
    """A loop from ``first`` up to, not including, ``end``."""
    before = b.block
    head, body, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(first, before)
    b.cbranch(b.icmp_signed("<", index, end), body, after)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, i64(step)), b.block)
    b.branch(head)
    b.position_at_end(after)


@contextmanager
def shared_parts(
    b: ir.IRBuilder, taken: ir.Value, end: ir.Value, step: ir.Value
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """A loop over parts, from what ``taken`` holds to ``end``: a thread takes ``step`` at a time.

    Gives the first of a part, and what its last one is before.
    """
    head, body, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    first = b.atomic_rmw("add", taken, step, "monotonic")
    b.cbranch(b.icmp_signed("<", first, end), body, after)
    b.position_at_end(body)
    yield first, least(b, b.add(first, step), end)
    b.branch(head)
    b.position_at_end(after)


def least(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The lesser of two numbers."""
    return b.select(b.icmp_signed("<", x, y), x, y)


def at(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value, kind: ir.Type = I8) -> ir.Value:
    """A pointer so many values of a type behind another: bytes, if no type is given."""
    return b.gep(pointer, [index], source_etype=kind)


def load(b: ir.IRBuilder, pointer: ir.Value, kind: ir.Type, align: int) -> ir.Value:
    """What a pointer points to, at an address that is a multiple of ``align``."""
    return b.load(pointer, align=align, typ=kind)


def vector(b: ir.IRBuilder, pointer: ir.Value, offset: int, kind: ir.VectorType) -> ir.Value:
    """The vector so many bytes behind a pointer."""
    return load(b, at(b, pointer, i64(offset)), kind, 1)


def splat(b: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector with a value in each place."""
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
    return b.shuffle_vector(one, one, zeros)


def call(b: ir.IRBuilder, name: str, kind: ir.Type, *values: ir.Value) -> ir.Value:
    """Call one of LLVM's intrinsic functions."""
    kinds = [PTR if value.type.is_pointer else value.type for value in values]
    called = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(kind, kinds), name)
    return b.call(called, values)


__all__ = [
    "F32",
    "I8",
    "I16",
    "I32",
    "I64",
    "PTR",
    "VOID",
    "Code",
    "at",
    "call",
    "filled",
    "function",
    "i64",
    "least",
    "load",
    "loop",
    "shared_parts",
    "splat",
    "vector",
]
