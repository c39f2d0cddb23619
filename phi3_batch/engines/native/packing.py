"""A model's weights in the form in which the library multiplies with them.

They are packed once for a machine, and mapped by all of its processes (:mod:`packed_model`). This
module imports onnx, which a process does not need that finds them packed.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from phi3_batch.engines.native import library
from phi3_batch.engines.native.graph import Graph, Linear, Plan, read_plan
from phi3_batch.engines.native.packed_model import MATRIX_FIELDS
from phi3_batch.engines.threads import thread_count
from phi3_batch.model_files import ModelFolder

_LINE_BYTES = 64  # of the processor's caches
# The highest accuracy level of MatMulNBits: activations may be rounded to 8 bits.
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_INT8_ACTIVATIONS = 4


def pack_model(folder: ModelFolder, file: BinaryIO) -> dict[str, Any]:
    """Write a model's packed weights.

    Args:
        folder: the model.
        file: an empty file. Parts of it begin at whole lines of the processor's caches.

    Returns:
        The model's shape, and what is where in the file: fit for JSON.

    Raises:
        UnsupportedModelError: the library cannot compute it.
        OSError: the disk is full.
    """
    graph = Graph(folder)
    plan = read_plan(graph, folder)
    with ThreadPoolExecutor(thread_count()) as threads:
        index = _Writer(file, graph, threads).write(plan, folder)
    file.flush()  # who maps it sees what is in the file alone
    return index


class _Writer:
    def __init__(self, file: BinaryIO, graph: Graph, threads: ThreadPoolExecutor) -> None:
        self._file = file
        self._graph = graph
        self._threads = threads

    def write(self, plan: Plan, folder: ModelFolder) -> dict[str, Any]:
        blocks = {linear.block for linear in plan.linears}
        levels = {linear.accuracy_level for linear in plan.linears}
        return {
            "shape": {
                "layers": len(plan.layers),
                "hidden": folder.dimensions.hidden_size,
                "intermediate": plan.layers[0].gate.outputs,
                "heads": plan.heads,
                "key_value_heads": plan.key_value_heads,
                "head_size": plan.head_size,
                "vocabulary": folder.vocab_size,
                "half_rotary": self._graph.read(plan.cos[0]).shape[1],
                "unit": min(*blocks, library.INPUTS),
                "digits": 1 if levels == {_INT8_ACTIVATIONS} else 2,
                "epsilon": plan.epsilon,
                "attention_scale": plan.attention_scale,
            },
            "positions": [len(self._graph.read(name)) for name in plan.cos],
            "switch": plan.switch,
            "layers": [
                {
                    "attention_norm": self._floats(layer.attention_norm),
                    "mlp_norm": self._floats(layer.mlp_norm),
                    "qkv": list(map(self._linear, layer.qkv)),
                    **{
                        name: self._linear(getattr(layer, name))
                        for name in ("o", "gate", "up", "down")
                    },
                    "window": layer.window,
                }
                for layer in plan.layers
            ],
            "embedding": None if plan.embedding is None else self._floats(plan.embedding),
            "cos": [self._floats(name) for name in plan.cos],
            "sin": [self._floats(name) for name in plan.sin],
            "norm": self._floats(plan.norm),
            "lm_head": self._linear(plan.lm_head),
        }

    def _floats(self, name: str) -> int:
        return self._append(np.ascontiguousarray(self._graph.read(name), np.float32))

    def _linear(self, linear: Linear) -> dict[str, int]:
        matrix = library.Matrix(
            outputs=linear.outputs,
            inputs=linear.inputs,
            bits=linear.bits,
            block=linear.block,
            zero_points=linear.zero_points is not None,
        )
        return {"place": self._append(self._pack(matrix, linear))} | {
            name: getattr(matrix, name) for name in MATRIX_FIELDS
        }

    def _pack(self, matrix: library.Matrix, linear: Linear) -> NDArray[np.uint8]:
        """A matrix's tiles, some by each thread."""
        weights, scales, zero_points = (
            None if name is None else self._graph.read(name).reshape(linear.outputs, -1)
            for name in (linear.weights, linear.scales, linear.zero_points)
        )
        assert weights is not None
        assert scales is not None
        packed = np.empty(library.packed_size(matrix), np.uint8)
        tiles = -(-linear.outputs // library.OUTPUTS)
        share = -(-tiles // self._threads._max_workers)

        def pack(first: int) -> None:
            part = library.Matrix.from_buffer_copy(matrix)
            start, end = first * library.OUTPUTS, (first + share) * library.OUTPUTS
            part.outputs = min(end, linear.outputs) - start
            points = None if zero_points is None else zero_points[start:end]
            at = len(packed) // tiles * first
            library.pack(part, weights[start:end], scales[start:end], points, packed[at:])

        list(self._threads.map(pack, range(0, tiles, share)))
        return packed

    def _append(self, array: NDArray[Any]) -> int:
        """Write an array; returns where it begins."""
        place = -(-self._file.tell() // _LINE_BYTES) * _LINE_BYTES
        self._file.seek(place)
        self._file.write(array.data.cast("B"))
        return place
