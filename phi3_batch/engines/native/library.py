"""The library in C, as Python sees it: ``native/phi3.h`` says what each name means."""

import ctypes
import functools
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phi3_batch.engines.native.spec import LIBRARY
from phi3_batch.errors import EngineError

OUTPUTS = 32  # of a tile of weights
INPUTS = 32  # what numbers of inputs are multiples of
BLOCK_TOKENS = 32  # of a block of the KV cache
TABLES = 2  # of rotary embeddings

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p

_FAILURES = {
    -1: "there is not enough memory",
    -2: "the system starts no more threads",
    -3: "its library does not take such a model or step",
    -4: "this processor lacks the instructions",
}


class Matrix(ctypes.Structure):
    """``phi3_matrix``."""

    _fields_ = (
        ("tiles", _pointer),
        *((name, _int) for name in ("outputs", "inputs", "bits", "block", "zero_points")),
    )


class Layer(ctypes.Structure):
    """``phi3_layer``."""

    _fields_ = (
        ("attention_norm", _pointer),
        ("mlp_norm", _pointer),
        ("qkv", Matrix * 3),
        *((name, Matrix) for name in ("o", "gate", "up", "down")),
        ("window", _int),
    )


class Shape(ctypes.Structure):
    """``phi3_shape``."""

    _fields_ = (
        *((name, _int) for name in ("layers", "hidden", "intermediate", "heads")),
        *((name, _int) for name in ("key_value_heads", "head_size", "vocabulary", "half_rotary")),
        ("positions", _int * TABLES),
        ("unit", _int),
        ("digits", _int),
        ("epsilon", _float),
        ("attention_scale", _float),
        ("layer", ctypes.POINTER(Layer)),
        ("embedding", _pointer),
        ("cos", _pointer * TABLES),
        ("sin", _pointer * TABLES),
        ("norm", _pointer),
        ("lm_head", Matrix),
    )


class Room(ctypes.Structure):
    """``phi3_room``: sizes of what a model works with."""

    _fields_ = tuple((name, _int) for name in ("threads", "rows", "wanted", "blocks"))


class _Batch(ctypes.Structure):
    """``phi3_batch``."""

    _fields_ = (
        ("rows", _int),
        *((name, _pointer) for name in ("tokens", "positions", "sequences", "block_tables")),
        ("table_length", _int),
        ("tables", _pointer),
        ("wanted_rows", _int),
        ("wanted", _pointer),
    )


class LibraryError(EngineError):
    """The library has refused to make a model or a step."""

    def __init__(self, code: int) -> None:
        super().__init__(_FAILURES.get(code, f"error {code}"))


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens that a step reads; ``phi3_batch`` says what is asked of them.

    Attributes:
        tokens: of each row.
        positions: of each row, in its sequence.
        sequences: each row's place in the two below.
        block_tables: of each sequence, the blocks of its keys and values.
        tables: which rotary embedding each sequence has.
        wanted: rows whose next token is asked for, ascending.
    """

    tokens: list[int]
    positions: list[int]
    sequences: list[int]
    block_tables: list[list[int]]
    tables: list[int]
    wanted: list[int]


@dataclass(frozen=True, slots=True)
class Results:
    """What a step gives for each wanted row.

    Attributes:
        best: the likeliest token, shape ``(wanted,)``.
        log_probability: its, natural logarithm; no number where the logits are none.
        logits: shape ``(wanted, vocabulary)``, where they were asked for.
    """

    best: NDArray[np.int32]
    log_probability: NDArray[np.float32]
    logits: NDArray[np.float32] | None


class Model:
    """A model in the library.

    Args:
        shape: sizes and weights, which have to stay where they are.
        room: sizes of what it works with.
        instructions: one of :func:`instruction_sets`.

    Raises:
        LibraryError: there is no memory, or no such model.
    """

    def __init__(self, shape: Shape, room: Room, instructions: str) -> None:
        self._library = load()
        self._vocabulary = shape.vocabulary
        self._model = ctypes.c_void_p()
        name = instructions.encode()
        code = self._library.phi3_create(
            ctypes.byref(shape), ctypes.byref(room), name, ctypes.byref(self._model)
        )
        if code:
            raise LibraryError(code)
        # not by __del__, before which an interpreter that ends may have taken all else away
        weakref.finalize(self, self._library.phi3_free, self._model).atexit = False

    def step(self, step: Step, *, logits: bool = False) -> Results:
        """Read tokens; other threads of Python go on meanwhile.

        Args:
            step: the tokens.
            logits: whether all logits of wanted rows are asked for.

        Raises:
            LibraryError: it is no step for this model.
        """
        tokens, positions, sequences, wanted = (
            np.array(values, np.int32)
            for values in (step.tokens, step.positions, step.sequences, step.wanted)
        )
        length = max(map(len, step.block_tables))
        block_tables = np.full((len(step.block_tables), length), -1, np.int32)
        for row, blocks in zip(block_tables, step.block_tables, strict=True):
            row[: len(blocks)] = blocks
        tables = np.array(step.tables, np.uint8)
        results = Results(
            best=np.empty(len(wanted), np.int32),
            log_probability=np.empty(len(wanted), np.float32),
            logits=np.empty((len(wanted), self._vocabulary), np.float32) if logits else None,
        )
        batch = _Batch(
            rows=len(tokens),
            tokens=tokens.ctypes.data,
            positions=positions.ctypes.data,
            sequences=sequences.ctypes.data,
            block_tables=block_tables.ctypes.data,
            table_length=length,
            tables=tables.ctypes.data,
            wanted_rows=len(wanted),
            wanted=wanted.ctypes.data,
        )
        code = self._library.phi3_step(
            self._model,
            ctypes.byref(batch),
            None if results.logits is None else results.logits.ctypes.data,
            results.best.ctypes.data,
            results.log_probability.ctypes.data,
        )
        if code:
            raise LibraryError(code)
        return results

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block of the KV cache.

        Raises:
            LibraryError: there is no such block.
        """
        if code := self._library.phi3_copy_block(self._model, source, target):
            raise LibraryError(code)


@functools.cache
def load() -> ctypes.CDLL:
    """The library.

    Raises:
        OSError: it is not there, or not for this system.
    """
    library = ctypes.CDLL(str(LIBRARY))
    library.phi3_instructions.restype = ctypes.c_char_p
    library.phi3_packed_size.restype = ctypes.c_int64
    library.phi3_pack.restype = None
    library.phi3_pack.argtypes = [ctypes.POINTER(Matrix), *[_pointer] * 4]
    library.phi3_step.argtypes = [_pointer, ctypes.POINTER(_Batch), *[_pointer] * 3]
    library.phi3_copy_block.argtypes = [_pointer, _int, _int]
    library.phi3_free.restype = None
    library.phi3_free.argtypes = [_pointer]
    return library


def instruction_sets() -> list[str]:
    """Sets of instructions that this processor has, the fastest first."""
    names: list[str] = []
    while name := load().phi3_instructions(len(names)):
        names.append(name.decode())
    return names


def packed_size(matrix: Matrix) -> int:
    """Bytes of the packed weights of a matrix; 0 for one that cannot be packed."""
    return int(load().phi3_packed_size(ctypes.byref(matrix)))


def pack(
    matrix: Matrix,
    weights: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None,
    packed: NDArray[np.uint8],
) -> None:
    """Pack the weights of an ONNX MatMulNBits node; ``phi3_pack`` says in which form they are."""
    arrays = [np.ascontiguousarray(array) for array in (weights, scales)]
    points = None if zero_points is None else np.ascontiguousarray(zero_points)
    load().phi3_pack(
        ctypes.byref(matrix),
        *(array.ctypes.data for array in arrays),
        None if points is None else points.ctypes.data,
        packed.ctypes.data,
    )
