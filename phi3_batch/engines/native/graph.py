"""The ONNX graph of an int4 build, read as the layers of a Phi-3.

A graph is followed backwards from its logits, operator by operator. What is found is what the
library computes, or the model is refused: nothing is guessed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from phi3_batch.engines.native.library import INPUTS
from phi3_batch.errors import UnsupportedModelError
from phi3_batch.model_files.onnx_build import ModelFolder

# What an attention operator must say, if it says anything: else it computes something else.
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_ATTENTION = {
    "do_rotary": 1,
    "rotary_interleaved": 0,
    "softcap": 0.0,
    "smooth_softmax": 0,
    "causal": 1,
    "sliding_window_cache": 0,
    "k_quant_type": "NONE",
    "v_quant_type": "NONE",
    "kv_cache_bit_width": 0,
    "qk_output": 0,
}
_ATTENTION_NUMBERS = {"num_heads", "kv_num_heads", "scale", "local_window_size"}
_COS_CACHE, _SIN_CACHE, _FIRST_UNKNOWN_INPUT = 7, 8, 9


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer ``y = x W^T`` with weights in 4 or 8 bits: an ONNX MatMulNBits node.

    Attributes:
        outputs: of the layer.
        inputs: of the layer.
        bits: of a weight.
        block: inputs that share a scale.
        accuracy_level: 4 where activations may be rounded to 8 bits.
        weights: name of the tensor, shaped ``(outputs, blocks, bytes)``.
        scales: name of the tensor, ``outputs x blocks`` values.
        zero_points: name of the tensor, if there is one.
    """

    outputs: int
    inputs: int
    bits: int
    block: int
    accuracy_level: int
    weights: str
    scales: str
    zero_points: str | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; norms are names of tensors.

    Attributes:
        qkv: all three in one, or one each.
        window: tokens that one attends to, itself among them; 0 for all before it.
    """

    attention_norm: str
    qkv: tuple[Linear, ...]
    o: Linear
    mlp_norm: str
    gate: Linear
    up: Linear
    down: Linear
    window: int

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All of its products."""
        return (*self.qkv, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True)
class Plan:
    """A model as the library computes it. Tensors are named; :class:`Graph` reads them.

    Attributes:
        embedding: a table of float32; None where it is the weights of lm_head.
        cos: of the rotary embedding, for short texts and, if they differ, for long ones.
        sin: likewise.
        switch: tokens of the longest text that is short; None where all are.
    """

    layers: tuple[Layer, ...]
    embedding: str | None
    norm: str
    lm_head: Linear
    heads: int
    key_value_heads: int
    head_size: int
    attention_scale: float
    epsilon: float
    cos: tuple[str, ...]
    sin: tuple[str, ...]
    switch: int | None

    @property
    def linears(self) -> Iterator[Linear]:
        """All products, as a step comes to them."""
        for layer in self.layers:
            yield from layer.linears
        yield self.lm_head


class Graph:
    """The file, with its tensors where they are.

    Args:
        folder: the build.

    Raises:
        UnsupportedModelError: the file cannot be read.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder.path
        try:
            model = onnx.load(str(folder.graph), load_external_data=False)
        except DecodeError as error:
            raise UnsupportedModelError(f"{folder.graph} is damaged: {error}") from error
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._by_output = {name: node for node in self.nodes for name in node.output if name}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.tensors[node.output[0]] = node.attribute[0].t

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that a value comes from."""
        return self._by_output.get(name)

    def read(self, name: str) -> NDArray[Any]:
        """The values of a tensor, mapped where they lie in a file of their own."""
        tensor = self.tensors[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        file, offset = self._folder / place["location"], int(place.get("offset", 0))
        try:
            return np.memmap(file, dtype, "r", offset, tuple(tensor.dims))
        except ValueError as error:
            raise UnsupportedModelError(f"{file} is damaged: {error}") from error


def read_plan(graph: Graph, folder: ModelFolder) -> Plan:
    """Find the layers of a model in its graph.

    Raises:
        UnsupportedModelError: the graph has something that is not known here; the message says
            what.
    """
    return _Reader(graph, folder).read()


class _Reader:
    def __init__(self, graph: Graph, folder: ModelFolder) -> None:
        self._graph = graph
        self._folder = folder
        self._hidden = folder.dimensions.hidden_size
        self._attention: list[onnx.NodeProto] = []

    def read(self) -> Plan:
        head = self._expect("logits", "MatMulNBits", "what makes its logits")
        lm_head = self._linear(head)
        value = self._skip_pruning(head.input[0])
        layers: list[Layer] = []
        norm = self._expect(value, "SkipSimplifiedLayerNormalization", "its last norm")
        last, epsilon = norm, _attributes(norm).get("epsilon", 1e-5)
        for found in range(self._folder.dimensions.layers):
            if norm.op_type == "SimplifiedLayerNormalization":
                raise _refusal(f"its graph has {found} layers, its configuration more")
            layer, norm = self._read_layer(norm)
            layers.append(layer)
        if norm.op_type != "SimplifiedLayerNormalization":
            raise _refusal(f"its graph has more layers than the {len(layers)} of its configuration")
        epsilons = {
            _attributes(node).get("epsilon", 1e-5) for node in self._graph.nodes if _is_norm(node)
        }
        if epsilons != {epsilon}:
            raise _refusal("its norms differ in epsilon")
        layers.reverse()
        return Plan(
            layers=tuple(layers),
            embedding=self._read_embedding(norm.input[0], lm_head),
            norm=self._constant(last.input[2], self._hidden),
            lm_head=lm_head,
            epsilon=float(epsilon),
            **self._describe_attention(),
        )

    def _read_layer(self, following: onnx.NodeProto) -> tuple[Layer, onnx.NodeProto]:
        """A layer, by the norm that follows it; and the norm that it begins with."""
        skip, mlp = following.input[:2]
        down = self._expect(mlp, "MatMulNBits", "a layer's MLP")
        product = self._expect(down.input[0], "Mul", "a layer's MLP")
        gated = self._expect(product.input[0], "Mul", "the activation of an MLP")
        up = self._expect(product.input[1], "MatMulNBits", "a layer's MLP")
        gate = self._expect(gated.input[0], "MatMulNBits", "a layer's MLP")
        sigmoid = self._expect(gated.input[1], "Sigmoid", "the activation of an MLP")
        mlp_norm = self._expect(gate.input[0], "SkipSimplifiedLayerNormalization", "an MLP's norm")
        o = self._expect(mlp_norm.input[1], "MatMulNBits", "what follows attention")
        attention = self._expect(o.input[0], "GroupQueryAttention", "attention")
        qkv = [
            self._expect(name, "MatMulNBits", "queries, keys and values")
            for name in attention.input[:3]
            if name
        ]
        norm = self._maker(qkv[0].input[0], "a layer's norm")
        inputs = {node.input[0] for node in qkv}
        if not _is_norm(norm) or inputs != {norm.output[0]}:
            raise _refusal("a layer does not begin with one norm")
        residual = norm.input[0] if len(norm.input) == 2 else norm.output[3]
        if (
            sigmoid.input[0] != gate.output[0]
            or up.input[0] != gate.input[0]
            or gate.input[0] != mlp_norm.output[0]
            or mlp_norm.input[0] != residual
            or skip != mlp_norm.output[3]
        ):
            raise _refusal("a layer is connected in another way than Phi-3's")
        self._attention.append(attention)
        window = int(_attributes(attention).get("local_window_size", -1))
        layer = Layer(
            attention_norm=self._constant(norm.input[-1], self._hidden),
            qkv=tuple(map(self._linear, qkv)),
            o=self._linear(o),
            mlp_norm=self._constant(mlp_norm.input[2], self._hidden),
            gate=self._linear(gate),
            up=self._linear(up),
            down=self._linear(down),
            window=window if 0 < window < self._folder.context_length else 0,
        )
        return layer, norm

    def _describe_attention(self) -> dict[str, Any]:
        found = []
        for node in self._attention:
            attributes = _attributes(node)
            for name in sorted(attributes.keys() - _ATTENTION_NUMBERS):
                if name not in _ATTENTION or attributes[name] != _ATTENTION[name]:
                    raise _refusal(f"its attention has {name} {attributes[name]}")
            if attributes.get("do_rotary") != 1:
                raise _refusal("its rotary embedding is apart from attention")
            if any(node.input[_FIRST_UNKNOWN_INPUT:]):
                raise _refusal("its attention has positions, a bias or sinks")
            numbers = (attributes["num_heads"], attributes["kv_num_heads"], attributes.get("scale"))
            found.append((*numbers, node.input[_COS_CACHE], node.input[_SIN_CACHE]))
        if len(set(found)) != 1:
            raise _refusal("its layers differ in their attention")
        heads, key_value_heads, scale, cos, sin = found[0]
        head_size = self._folder.dimensions.head_size
        if head_size % INPUTS:
            raise _refusal(f"its heads have {head_size} values")
        switch, cos_caches, sin_caches = self._rotary(cos, sin)
        shapes = [tuple(self._graph.tensors[name].dims) for name in (*cos_caches, *sin_caches)]
        if len({shape[1:] for shape in shapes}) != 1 or shapes[: len(shapes) // 2] * 2 != shapes:
            raise _refusal("its tables of cosines and sines differ in size")
        positions = shapes[len(cos_caches) - 1][0]
        if positions < self._folder.context_length:
            raise _refusal(f"it has {positions} positions and a longer context")
        return {
            "heads": heads,
            "key_value_heads": key_value_heads,
            "head_size": head_size,
            "attention_scale": float(scale or head_size**-0.5),
            "cos": cos_caches,
            "sin": sin_caches,
            "switch": switch,
        }

    def _rotary(self, cos: str, sin: str) -> tuple[int | None, tuple[str, ...], tuple[str, ...]]:
        """The tables of cosines and sines, and where long texts begin if there are two of each."""
        branch = self._graph.maker(cos)
        if branch is None or branch.op_type != "If":
            return None, (self._constant(cos),), (self._constant(sin),)
        comparison = self._expect(branch.input[0], "Greater", "what its rotary embedding hangs on")
        switch = int(self._graph.read(self._constant(comparison.input[1])))
        branches = {attribute.name: attribute.g for attribute in branch.attribute}
        tables = []
        for name in ("else_branch", "then_branch"):  # of short texts first
            by_output = {node.output[0]: node for node in branches[name].node}
            for output in branches[name].output:
                node = by_output[output.name]
                if node.op_type != "Constant":
                    raise _refusal("its rotary embedding is computed as it goes")
                self._graph.tensors[output.name] = node.attribute[0].t
                tables.append(output.name)
        places = [list(branch.output).index(name) for name in (cos, sin)]
        cos_caches, sin_caches = (
            tuple(tables[start + place] for start in (0, len(branch.output))) for place in places
        )
        return switch, cos_caches, sin_caches

    def _read_embedding(self, name: str, head: Linear) -> str | None:
        node = self._maker(name, "its embedding")
        if node.op_type == "GatherBlockQuantized":
            self._require_tied(node, head)
            return None
        if node.op_type != "Gather" or node.input[1] != "input_ids":
            raise _refusal("its embedding is no table of token ids")
        return self._constant(node.input[0], self._folder.vocab_size * self._hidden)

    def _require_tied(self, node: onnx.NodeProto, head: Linear) -> None:
        """An embedding in 4 or 8 bits must be lm_head's weights, which the builder reshapes."""
        attributes = _attributes(node)
        weights, ids, scales, *zero_points = node.input
        reshape = self._graph.maker(weights)
        if reshape is not None and reshape.op_type == "Reshape":
            weights = reshape.input[0]
        found = (weights, scales, *zero_points, attributes["bits"], attributes["block_size"])
        points = [head.zero_points] if head.zero_points else []
        wanted = (head.weights, head.scales, *points, head.bits, head.block)
        if found != wanted or ids != "input_ids" or attributes.get("gather_axis", 0) != 0:
            raise _refusal("its embedding has weights in few bits that are not lm_head's")

    def _skip_pruning(self, name: str) -> str:
        """A value before all but its last token was taken off: which tokens matter we say."""
        node = self._graph.maker(name)
        if node is not None and node.op_type == "Unsqueeze":
            gather = self._graph.maker(node.input[0])
            if gather is not None and gather.op_type == "Gather":
                return str(gather.input[0])
        return name

    def _linear(self, node: onnx.NodeProto) -> Linear:
        attributes = _attributes(node)
        weights, scales, *others = node.input[1:]
        zero_points, *unknown = others or [""]
        if any(unknown):
            raise _refusal("its layers have biases, or reorder their inputs")
        inputs, block = int(attributes["K"]), int(attributes["block_size"])
        bits = int(attributes.get("bits", 4))
        if inputs % INPUTS or (block != 16 and block % INPUTS) or bits not in (4, 8):
            raise _refusal(
                f"it has layers of {inputs} inputs, in blocks of {block} and {bits} bits"
            )
        outputs, blocks = int(attributes["N"]), -(-inputs // block)
        return Linear(
            outputs=outputs,
            inputs=inputs,
            bits=bits,
            block=block,
            accuracy_level=int(attributes.get("accuracy_level", 0)),
            weights=self._bytes(weights, outputs * blocks * block * bits // 8),
            scales=self._floats(scales, outputs * blocks),
            zero_points=self._bytes(zero_points, outputs * ((blocks * bits + 7) // 8))
            if zero_points
            else None,
        )

    def _bytes(self, name: str, count: int) -> str:
        if self._graph.tensors[self._constant(name, count)].data_type != onnx.TensorProto.UINT8:
            raise _refusal("its weights or zero points are not whole numbers")
        return name

    def _floats(self, name: str, count: int) -> str:
        if self._graph.tensors[self._constant(name, count)].data_type != onnx.TensorProto.FLOAT:
            raise _refusal("it computes in 16 bits, as builds for GPUs do")
        return name

    def _constant(self, name: str, count: int | None = None) -> str:
        """A tensor, of so many values if that is known, by its name."""
        tensor = self._graph.tensors.get(name)
        if tensor is None:
            raise _refusal(f"{name or 'an input'} is no constant")
        if count is not None and math.prod(tensor.dims) != count:
            raise _refusal(f"{name} has {math.prod(tensor.dims)} values, not {count}")
        return name

    def _maker(self, name: str, what: str) -> onnx.NodeProto:
        node = self._graph.maker(name)
        if node is None:
            raise _refusal(f"{what} is missing")
        return node

    def _expect(self, name: str, operator: str, what: str) -> onnx.NodeProto:
        node = self._maker(name, what)
        if node.op_type != operator:
            raise _refusal(f"{what} is {node.op_type}, not {operator}")
        return node


def _is_norm(node: onnx.NodeProto) -> bool:
    return bool(node.op_type.endswith("SimplifiedLayerNormalization"))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def _refusal(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the native engine cannot run this model: {what}")
