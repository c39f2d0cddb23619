"""A packed model: a file of weights, mapped, and an index that says what is where in it."""

import mmap
from typing import Any, BinaryIO

import numpy as np

from phi3_batch.engines.native import library

# Part of what packed models are known by: raise it when their form changes.
FORMAT = 1

MATRIX_FIELDS = ("outputs", "inputs", "bits", "block", "zero_points")


class PackedModel:
    """A packed model, mapped: one copy for all processes of a machine.

    Args:
        index: as :func:`~phi3_batch.engines.native.packing.pack_model` returns it.
        file: the weights; it may be closed and removed then.

    Attributes:
        shape: for the library; as long as this object lives.
        switch: tokens of the longest text that has the first rotary embedding; None where all have.
    """

    def __init__(self, index: dict[str, Any], file: BinaryIO) -> None:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._weights = np.frombuffer(mapped, np.uint8)
        self._base = self._weights.ctypes.data
        self._layers = (library.Layer * len(index["layers"]))(*map(self._layer, index["layers"]))
        self.switch: int | None = index["switch"]
        self.shape = library.Shape(
            **index["shape"],
            layer=self._layers,
            embedding=self._at(index["embedding"]),
            norm=self._at(index["norm"]),
            lm_head=self._matrix(index["lm_head"]),
        )
        for table in range(library.TABLES):  # a model with one has it twice
            of = min(table, len(index["cos"]) - 1)
            self.shape.positions[table] = index["positions"][of]
            self.shape.cos[table] = self._at(index["cos"][of])
            self.shape.sin[table] = self._at(index["sin"][of])

    def _at(self, place: int | None) -> int | None:
        return None if place is None else self._base + place

    def _matrix(self, described: dict[str, int]) -> library.Matrix:
        sizes = {name: described[name] for name in MATRIX_FIELDS}
        return library.Matrix(tiles=self._at(described["place"]), **sizes)

    def _layer(self, described: dict[str, Any]) -> library.Layer:
        qkv = list(map(self._matrix, described["qkv"]))
        return library.Layer(
            attention_norm=self._at(described["attention_norm"]),
            mlp_norm=self._at(described["mlp_norm"]),
            qkv=(library.Matrix * 3)(*qkv),
            window=described["window"],
            **{name: self._matrix(described[name]) for name in ("o", "gate", "up", "down")},
        )
