"""Linear layers in OpenVINO's graphs, computed by our own kernel (:mod:`int4_kernel`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from phi3_batch.engines.ov.int4_kernel import (
    BLOCK,
    Instructions,
    Int4Kernel,
    fastest_here,
    output_count,
)
from phi3_batch.engines.ov.runtime import Node, Output, openvino, ops
from phi3_batch.model_files.onnx_build import ModelFolder

# The input of a model that says which tokens' logits are wanted
SAMPLED_TOKENS = "sampled_tokens_indices"

# of a build: activations may be rounded to eight bits
_INT8_ACTIVATIONS = 4

_kernel = Int4Kernel(threads=1)


def instructions_for(folder: ModelFolder) -> Instructions | None:
    """What the kernel is to compute a model's linear layers by on this machine, if it is to.

    That is where it is the fastest way, and the build asks for what it does.
    """
    instructions = fastest_here()
    if instructions is None or not instructions.rounds_to_int8:
        return instructions
    asks_for_int8 = folder.quantization.accuracy_level == _INT8_ACTIVATIONS
    return instructions if asks_for_int8 else None


def use_threads(count: int) -> None:
    """Set how many threads the process's linear layers are computed by from now on.

    The runtime makes the operators itself and tells them nothing; so this is of the process, in
    which there is one engine at a time.
    """
    global _kernel
    if _kernel.threads != count:
        _kernel = Int4Kernel(count)


# of what is being made now
_kept: list["Int4Linear"] | None = None


@contextmanager
def kept_layers() -> Iterator[list["Int4Linear"]]:
    """Layers that are made in the ``with`` block, by whom- and whatever thread.

    An operator written in Python works as long as its Python object lives. OpenVINO would have each
    hold itself, so that none is ever freed, and it makes one for every layer and step, to ask it
    for a shape. So ours do not, and who loads a model keeps this list as long as the model.
    """
    global _kept
    layers: list[Int4Linear] = []
    _kept = layers
    try:
        yield layers
    finally:
        _kept = None


class _Name:
    """By its class's name OpenVINO knows our operator, in place of the operator itself."""


_Name.__name__ = "Int4Linear"
# One for all layers: OpenVINO lets go of it without holding the interpreter's lock, so it must not
# be the last reference, nor may it matter if the count is wrong by some.
_NAMES = [_Name()] * 100_000


class Int4Linear(openvino.Op):  # type: ignore[misc]  # a class without types
    """``y = x W^T`` for rows x of the shape ``(..., K)`` and packed weights."""

    def __init__(self, inputs: Sequence[Output] | None = None) -> None:
        super().__init__(_NAMES[0])
        if _kept is not None:
            _kept.append(self)
        if inputs is not None:
            self.set_arguments(inputs)
            self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        """Tell the runtime the shape of the result."""
        shape = self.get_input_partial_shape(0)
        shape[len(shape) - 1] = output_count(self.get_input_shape(1))
        self.set_output_type(0, openvino.Type.f32, shape)

    def clone_with_new_inputs(self, inputs: Sequence[Output]) -> "Int4Linear":
        """The same for other inputs, which the runtime asks for while it changes graphs."""
        return Int4Linear(inputs)

    def visit_attributes(self, _: Any) -> bool:
        """There are no attributes."""
        return True

    def has_evaluate(self) -> bool:
        """Yes: below."""
        return True

    def evaluate(self, outputs: list[openvino.Tensor], inputs: list[openvino.Tensor]) -> bool:
        """Compute the result."""
        # By index: at the end of its vectors and shapes the runtime throws C++ exceptions, which
        # take as long as all else here.
        rows, packed, target = inputs[0].data, inputs[1].data, outputs[0]
        count = output_count(packed.shape)
        target.shape = [*rows.shape[:-1], count]
        _kernel.multiply(rows.reshape(-1, rows.shape[-1]), packed, target.data.reshape(-1, count))
        return True


# what OpenVINO reads graphs with such layers by; it refers to the name of the one that it makes
with kept_layers() as _named:
    EXTENSION = openvino.OpExtension(Int4Linear)


def pack_linear_layers(model: openvino.Model, instructions: Instructions) -> None:
    """Replace the linear layers that the kernel can compute; others stay as they are.

    It can compute those with blocks of whole 32s, and with weights of 0 to 15 around 8.

    Args:
        model: its linear layers are replaced.
        instructions: that the weights are packed for.
    """
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    while found:  # none is held longer than needed: what is replaced is freed at once
        product = found.pop()
        packed = _packed_weights(product, instructions)
        if packed is not None:
            # copied, for a constant that shares the array's memory does not keep it
            constant = openvino.op.Constant(openvino.Tensor(packed), shared_memory=False)
            layer = Int4Linear([product.input_value(0), constant.output(0)])
            product.output(0).replace(layer.output(0))


def take_sampled_tokens(logits: Output) -> list[Node]:
    """Let a last layer of ours compute logits of those tokens alone that a new input names.

    Of a prompt, these are the last one's. OpenVINO GenAI does this to layers that it knows, and to
    an input of this name it gives the tokens' numbers.

    Returns:
        The input, for the model to have; none if the layer is not ours.
    """
    layer = logits.get_node()
    is_ours = layer.get_type_name() == Int4Linear.__name__
    return [gather_sampled_tokens(layer)] if is_ours else []


def gather_sampled_tokens(layer: Node) -> Node:
    """Give a layer no tokens but those that a new input names, and return that input."""
    indices = ops.parameter([-1], np.int64, name=SAMPLED_TOKENS)
    indices.output(0).set_names({SAMPLED_TOKENS})
    # with paged attention all tokens of a step are rows, of one token each
    chosen = ops.gather(layer.input_value(0), indices, ops.constant(np.int64(0)))
    layer.input(0).replace_source_output(chosen.output(0))
    return indices


def _packed_weights(
    product: Node, instructions: Instructions
) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """A linear layer's weights for the kernel: of Reshape((u4 - 8) * scale), transposed."""
    if product.get_attributes() != {"transpose_a": False, "transpose_b": True}:
        return None
    nodes = [product.input_value(1).get_node()]
    for kind in ("Reshape", "Multiply", "Subtract", "Convert"):
        if nodes[-1].get_type_name() != kind:
            return None
        nodes.append(nodes[-1].input_value(0).get_node())
    _, scaled, difference, _, weights = nodes
    zero, scales = (_constant(node.input_value(1).get_node()) for node in (difference, scaled))
    if weights.get_type_name() != "Constant" or weights.get_element_type() != openvino.Type.u4:
        return None
    outputs, blocks, size = weights.get_output_shape(0)
    fits = outputs % instructions.tile_outputs == 0 and size % BLOCK == 0
    if not fits or zero is None or zero.size != 1 or zero.item() != 8 or scales is None:
        return None
    parts = size // BLOCK  # of a block, which have one scale
    by_block = weights.data.view(np.uint8).reshape(outputs, blocks * parts, BLOCK // 2)
    return instructions.pack(by_block, np.repeat(scales.reshape(outputs, blocks), parts, axis=1))


def _constant(node: Node) -> Any | None:
    """The values of a constant, before what changes its type or shape."""
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    unpacked: Any = node.get_data()
    return unpacked


__all__ = [
    "EXTENSION",
    "SAMPLED_TOKENS",
    "Int4Linear",
    "gather_sampled_tokens",
    "instructions_for",
    "kept_layers",
    "pack_linear_layers",
    "take_sampled_tokens",
    "use_threads",
]
