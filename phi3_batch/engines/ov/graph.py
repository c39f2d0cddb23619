"""The ONNX int4 graph as OpenVINO GenAI wants it: with keys and values as state of the model.

OpenVINO reads the ONNX file itself, weights in four bits and all. What it leaves is the attention
operator of the ONNX runtime, which takes the KV cache as inputs and gives it back as outputs.
Each is replaced by rotary embedding, keys and values as stateful variables, and plain
scaled-dot-product attention; that form OpenVINO GenAI turns into paged attention.
"""

import re
from dataclasses import dataclass

import numpy as np

from phi3_batch.engines.ov.int4 import (
    kept_layers,
    pack_linear_layers,
    take_sampled_tokens,
)
from phi3_batch.engines.ov.int4_kernel import Instructions
from phi3_batch.engines.ov.runtime import Node, Output, openvino, ops
from phi3_batch.engines.ov.weights import read_quantized_embedding, sign_weights
from phi3_batch.errors import UnsupportedModelError
from phi3_batch.model_files.onnx_build import ModelFolder

# Part of the key of converted models on disk: raise it when the result changes.
CONVERTER_VERSION = 4

# Inputs of com.microsoft.GroupQueryAttention, by their places
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_QUERY, _KEY, _VALUE, _COS_CACHE, _SIN_CACHE, _POSITION_IDS = 0, 1, 2, 7, 8, 9
_UNKNOWN_INPUTS = range(10, 16)  # attention_bias, head_sink, and later ones

# Its attributes, and what they must be: else it computes what is not written here.
_REQUIRED = {
    "causal": True,
    "do_rotary": True,
    "rotary_interleaved": False,
    "sliding_window_cache": False,
    "smooth_softmax": False,
    "k_quant_type": "NONE",
    "v_quant_type": "NONE",
    "kv_cache_bit_width": 0,
}
_NUMBERS = {"num_heads", "kv_num_heads", "scale", "local_window_size"}
_ATTENTION = "GroupQueryAttention"


def convert(folder: ModelFolder, instructions: Instructions | None = None) -> openvino.Model:
    """Convert a model.

    Args:
        folder: an int4 ONNX build of Phi-3.
        instructions: that our own kernel is to compute its linear layers by, if it is.

    Returns:
        A model with the inputs ``input_ids``, ``attention_mask``, ``position_ids`` (each int64 of
        the shape batch x tokens) and ``beam_idx`` (int32, batch), the output ``logits`` (batch x
        tokens x vocabulary), and keys and values of earlier tokens as state. Its weights are those
        of the file, which must stay until the model is saved. With our kernel it may have one
        input more (:func:`~phi3_batch.engines.ov.int4.take_sampled_tokens`).

    Raises:
        UnsupportedModelError: the graph has something that is not known here; the message says
            what.
    """
    try:
        return _convert(folder, instructions)
    except RuntimeError as error:  # OpenVINO's, in its own words
        raise UnsupportedModelError(f"OpenVINO cannot read this model: {_reason(error)}") from error


def _convert(folder: ModelFolder, instructions: Instructions | None) -> openvino.Model:
    core = openvino.Core()
    core.add_extension(read_quantized_embedding)
    model = core.read_model(folder.graph)
    layers = _find_attention(model, folder)
    inputs = _Inputs.of(model)
    masks = {window: _mask(inputs, window) for window in {layer.window for layer in layers}}
    sinks = []
    for number, layer in enumerate(layers):
        cos, sin = (
            _at_positions(layer.node.input_value(place), inputs.position_ids)
            for place in (_COS_CACHE, _SIN_CACHE)
        )
        query = _rotate(layer.node.input_value(_QUERY), cos, sin, layer.head_size)
        key = _rotate(layer.node.input_value(_KEY), cos, sin, layer.head_size)
        value = layer.node.input_value(_VALUE)
        key, key_sink = _remember(key, f"{number}.key", layer, inputs)
        value, value_sink = _remember(value, f"{number}.value", layer, inputs)
        sinks += [key_sink, value_sink]
        layer.node.output(0).replace(_attend(layer, query, key, value, masks[layer.window]))
    with kept_layers() as own_layers:
        if instructions:
            pack_linear_layers(model, instructions)
    sign_weights(model)
    # which fails if anything but these inputs is left that the logits depend on
    logits = _find_logits(model)
    parameters = [*inputs.parameters, *take_sampled_tokens(logits)]
    converted = openvino.Model([logits], sinks, parameters, folder.model_type)
    converted.own_layers = own_layers  # which live as long
    return converted


def _reason(error: RuntimeError) -> str:
    """The one line of OpenVINO's many that says what is wrong, as far as one does."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"[A-Z]\w+: ", line)]  # by an operator's name
    summary = lines[lines.index("Summary:") + 1 :] if "Summary:" in lines else lines[-1:]
    return next(iter([*said, *summary]), "no reason given")[:200]


@dataclass(frozen=True, slots=True)
class _Attention:
    """One layer's attention, as it is in the ONNX graph."""

    node: Node
    heads: int
    key_value_heads: int
    head_size: int
    scale: float
    window: int | None


def _find_attention(model: openvino.Model, folder: ModelFolder) -> list[_Attention]:
    """The attention operators in the order of the layers."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == _ATTENTION]
    if len(nodes) != folder.dimensions.layers:
        raise UnsupportedModelError(
            f"OpenVINO cannot run this model: {len(nodes)} of its {folder.dimensions.layers}"
            f" layers have the operator {_ATTENTION}"
        )
    return [_describe(node, folder.context_length) for node in nodes]


def _describe(node: Node, context_length: int) -> _Attention:
    attributes = node.get_attributes()
    for name in sorted(attributes.keys() - _NUMBERS):
        if name not in _REQUIRED or attributes[name] != _REQUIRED[name]:
            raise UnsupportedModelError(
                f"OpenVINO cannot run this model: its attention has {name} {attributes[name]}"
            )
    for place in (_COS_CACHE, _SIN_CACHE):
        if node.input_value(place).get_node().get_type_name() != "Constant":
            raise UnsupportedModelError(
                "OpenVINO cannot run this model: its rotary embedding depends on how long a text"
                " is (LongRoPE)"
            )
        places = node.input_value(place).get_shape()[0]
        if places < context_length:
            raise UnsupportedModelError(
                f"OpenVINO cannot run this model: it has places for {places} tokens, of a context"
                f" of {context_length}"
            )
    if _is_given(node, _POSITION_IDS):
        raise UnsupportedModelError(
            "OpenVINO cannot run this model: its attention is told the tokens' places"
        )
    if any(_is_given(node, place) for place in _UNKNOWN_INPUTS):
        raise UnsupportedModelError(
            "OpenVINO cannot run this model: its attention has a bias or sinks"
        )
    query = node.input_value(_QUERY)
    element_type = query.get_element_type()
    if element_type != openvino.Type.f32:
        raise UnsupportedModelError(
            f"OpenVINO cannot run this model: it computes in {element_type.to_string()}, as builds"
            " for GPUs do"
        )
    shape = query.get_partial_shape()
    heads, head_size = attributes["num_heads"], shape[len(shape) - 1].get_length()
    window = attributes["local_window_size"]
    return _Attention(
        node=node,
        heads=heads,
        key_value_heads=attributes["kv_num_heads"],
        head_size=head_size,
        scale=attributes["scale"] or head_size**-0.5,
        window=window if 0 < window < context_length else None,
    )


def _is_given(node: Node, place: int) -> bool:
    """Whether an optional input is there: of one that is not, there is an empty constant."""
    if place >= node.get_input_size():
        return False
    shape = node.input_value(place).get_partial_shape()
    return bool(shape.is_dynamic or shape.get_shape() != openvino.Shape([0]))


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs of the converted model."""

    input_ids: Node
    attention_mask: Node
    position_ids: Node
    beam_idx: Node

    @classmethod
    def of(cls, model: openvino.Model) -> "_Inputs":
        found = {
            name: node for node in model.get_parameters() for name in node.output(0).get_names()
        }
        for name in ("input_ids", "attention_mask"):
            if name not in found:
                raise UnsupportedModelError(
                    f"OpenVINO cannot run this model: its graph has no input {name}"
                )
        position_ids = found.get("position_ids") or _parameter("position_ids", [-1, -1], "i64")
        return cls(
            input_ids=found["input_ids"],
            attention_mask=found["attention_mask"],
            position_ids=position_ids,
            beam_idx=_parameter("beam_idx", [-1], "i32"),
        )

    @property
    def parameters(self) -> list[Node]:
        return [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]

    @property
    def batch_size(self) -> Output:
        """Shape ``(1,)``."""
        return _size(self.input_ids, 0)


def _parameter(name: str, shape: list[int], element_type: str) -> Node:
    node = ops.parameter(shape, getattr(openvino.Type, element_type), name=name)
    node.get_output_tensor(0).set_names({name})
    return node


def _mask(inputs: _Inputs, window: int | None) -> Output:
    """What each token attends to: itself and those before it, padding left out.

    With a window, so many of them at most, itself among them; in these steps, the last of which
    change nothing, for by them OpenVINO GenAI finds the window when it does away with the mask
    (gpt_oss_sliding_window_pattern in OpenVINO's state_management_pattern.cpp). Where it does not
    find them, tokens attend to everything before them.

    Shape ``(batch, 1, tokens, tokens seen)``.
    """
    zero, one = _scalar(0), _scalar(1)
    seen = ops.range(zero, ops.squeeze(_size(inputs.attention_mask, 1), zero), one, "i64")
    places = ops.unsqueeze(seen, ops.constant([0, 1, 2]))
    own = ops.unsqueeze(inputs.position_ids, ops.constant([1, 3]))
    before = ops.less_equal(places, own)
    attended = ops.unsqueeze(inputs.attention_mask, ops.constant([1, 2]))
    no_padding = ops.convert(attended, "boolean")
    if window is None:
        return ops.logical_and(before, no_padding).output(0)
    near = ops.greater(places, ops.add(own, _scalar(-window)))
    allowed = ops.bitwise_and(ops.bitwise_and(before, near), no_padding)
    true, false = ops.constant(True), ops.constant(False)
    allowed = ops.bitwise_and(ops.bitwise_and(true, allowed), true)
    everywhere = ops.broadcast(allowed, ops.shape_of(allowed, output_type="i64"))
    mask = ops.select(everywhere, true, false)
    start, stop, step, axis = (ops.constant(np.array([n], np.int64)) for n in (0, 2**31, 1, 3))
    return ops.slice(mask, start, stop, step, axis).output(0)


def _at_positions(table: Output, position_ids: Node) -> Output:
    """Rows of a table of cosines or sines; shape ``(batch, 1, tokens, rotated size / 2)``."""
    return ops.unsqueeze(ops.gather(table, position_ids, _scalar(0)), _scalar(1)).output(0)


def _rotate(states: Output, cos: Output, sin: Output, head_size: int) -> Output:
    """Rotary embedding of queries or keys, of shape ``(batch, heads, tokens, head size)``.

    The first and second half of what is rotated are the two coordinates; what a head has beyond
    that stays as it is. In these steps, for OpenVINO looks for them and makes one of them.
    """
    shape = cos.get_partial_shape()
    half = shape[len(shape) - 1].get_length()
    lengths = [half, half, head_size - 2 * half]
    if lengths[-1] == 0:
        lengths.pop()
    parts = ops.variadic_split(states, _scalar(-1), ops.constant(np.array(lengths, np.int64)))
    x, y, *rest = parts.outputs()
    rotated = [
        ops.subtract(ops.multiply(x, cos), ops.multiply(y, sin)),
        ops.add(ops.multiply(y, cos), ops.multiply(x, sin)),
    ]
    return ops.concat([*rotated, *rest], -1).output(0)


def _remember(states: Output, name: str, layer: _Attention, inputs: _Inputs) -> tuple[Output, Node]:
    """Keys or values of all tokens so far, and what keeps them for the next call.

    Shape ``(batch, key/value heads, tokens seen, head size)``.
    """
    heads, size = layer.key_value_heads, layer.head_size
    info = openvino.op.util.VariableInfo()
    info.data_shape = openvino.PartialShape([-1, heads, -1, size])
    info.data_type = openvino.Type.f32
    # by this name OpenVINO GenAI knows what it is
    info.variable_id = f"past_key_values.{name}present.{name}"
    variable = openvino.op.util.Variable(info)
    empty = ops.concat([inputs.batch_size, ops.constant(np.array([heads, 0, size], np.int64))], 0)
    past = ops.read_value(ops.broadcast(ops.constant(np.float32(0)), empty), variable)
    of_beam = ops.gather(past, inputs.beam_idx, _scalar(0))
    all_states = ops.concat([of_beam, states], 2)
    return all_states.output(0), ops.assign(all_states, variable)


def _attend(layer: _Attention, query: Output, key: Output, value: Output, mask: Output) -> Output:
    """Attention, with the heads side by side; shape ``(batch, tokens, heads * head size)``."""
    key, value = (_repeat_heads(states, layer) for states in (key, value))
    scale = ops.constant(np.float32(layer.scale))
    attended = ops.scaled_dot_product_attention(query, key, value, mask, scale, causal=False)
    by_token = ops.transpose(attended, ops.constant(np.array([0, 2, 1, 3])))
    shape = ops.constant(np.array([0, 0, layer.heads * layer.head_size]))
    return ops.reshape(by_token, shape, special_zero=True).output(0)


def _repeat_heads(states: Output, layer: _Attention) -> Output:
    """Keys or values for every head of the queries, where several share one.

    In these steps, for OpenVINO GenAI looks for them and undoes them.
    """
    group = layer.heads // layer.key_value_heads
    if group == 1:
        return states
    apart = ops.unsqueeze(states, _scalar(2))
    shape = ops.concat(
        [
            _size(states.get_node(), 0),
            ops.constant(np.array([layer.key_value_heads, group], np.int64)),
            _size(states.get_node(), 2),
            ops.constant(np.array([layer.head_size], np.int64)),
        ],
        0,
    )
    repeated = ops.broadcast(apart, shape, "BIDIRECTIONAL")
    together = ops.constant(np.array([0, layer.heads, -1, layer.head_size], np.int64))
    return ops.reshape(repeated, together, special_zero=True).output(0)


def _find_logits(model: openvino.Model) -> Output:
    for result in model.get_results():
        if "logits" in result.input_value(0).get_names() | result.output(0).get_names():
            return result.input_value(0)
    raise UnsupportedModelError("OpenVINO cannot run this model: its graph has no output logits")


def _size(node: Node, axis: int) -> Output:
    """One dimension of a node's shape; shape ``(1,)``."""
    shape = ops.shape_of(node, output_type="i64")
    return ops.gather(shape, ops.constant(np.array([axis], np.int64)), _scalar(0)).output(0)


def _scalar(value: int) -> Node:
    return ops.constant(np.int64(value))


__all__ = ["CONVERTER_VERSION", "convert"]
