"""Rounding the weights of a build anew, by what rounding does to a text: GPTQ, layer by layer.

A weight is not rounded for itself: what that does to the layer's outputs on a text is made good by
the weights that are rounded after it. Every layer sees the text as the rounded layers before it
leave it. The form is the build's own, symmetric int4 with a scale for each block of a row, and so
are size and speed.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2023), with ``act_order``. Scales are found first: of several, that with the least
squared error, each column by what the text puts on it.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from phi3_batch.engines.torch.engine import load_model
from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Checkpoint

WINDOW = 512
_WINDOWS_TOGETHER = 4
_COLUMNS_TOGETHER = 128
# of the mean of the diagonal, added to it: so that a text of few tokens does not decide alone
_DAMPING = 0.01
# of the scale that keeps a block's largest weight as it is
_SHRINKING = (*np.linspace(0.70, 1.06, 19).tolist(),)

# a layer's products, and what the builder makes of each: one, or its parts, by rows
_PRODUCTS = {
    "self_attn.qkv_proj": ("attn.qkv_proj", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "self_attn.o_proj": ("attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


def round_anew(build: Path, checkpoint: Checkpoint, token_ids: list[int]) -> None:
    """Round the int4 weights of a build, in place; takes minutes to an hour.

    Layers that it keeps in 8 bits stay as they are.

    Args:
        build: the ONNX file of a build of the checkpoint, of symmetric int4.
        checkpoint: what it was built of.
        token_ids: of a text like what the model will read; whole windows of 512 are read.

    Raises:
        EngineError: the checkpoint cannot be loaded.
        InvalidModelError: the build has another form.
    """
    weights = _Weights(build)
    model = load_model(checkpoint, dtype="auto")
    windows = torch.tensor(token_ids[: len(token_ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    with torch.inference_mode():
        hidden, arguments = _embed(model, windows)
        for index, layer in enumerate(model.model.layers):
            layer.float()
            products = {name: layer.get_submodule(name) for name in _PRODUCTS}
            with _hessians(products.values()) as hessians:
                _run(layer, hidden, arguments)
            for name, product in products.items():
                parts = [f"model.layers.{index}.{part}" for part in _PRODUCTS[name]]
                weights.round(parts, product, hessians[product])
            hidden = _run(layer, hidden, arguments)
            model.model.layers[index] = nn.Identity()  # its memory is for the next
        norm, head = model.model.norm.float(), model.lm_head.float()
        with _hessians([head]) as hessians:
            _run(nn.Sequential(norm, head), hidden, {})
        weights.round(["lm_head"], head, hessians[head])
    weights.require_all_rounded()


def gptq(weight: Tensor, hessian: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Round a weight to codes from -8 to 7, and a scale for each block of a row.

    Args:
        weight: shape ``(outputs, inputs)``, inputs a multiple of the block size.
        hessian: of the inputs, the sum of their products with each other; ``(inputs, inputs)``.
        block_size: weights of a row that share a scale.

    Returns:
        Codes, shape ``(outputs, inputs)``, and scales, ``(outputs, inputs / block_size)``.
    """
    matters = torch.diagonal(hessian)
    scales = _find_scales(weight, matters, block_size)
    order = torch.argsort(matters, descending=True)
    weight, each = weight[:, order], scales.repeat_interleave(block_size, 1)[:, order]
    damping = torch.diag(_DAMPING * matters.mean() + (matters == 0).float())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky((hessian + damping)[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(weight)
    for start in range(0, weight.shape[1], _COLUMNS_TOGETHER):
        here = slice(start, start + _COLUMNS_TOGETHER)
        part, passed_on = weight[:, here], torch.empty_like(weight[:, here])
        for place in range(part.shape[1]):
            column, scale = start + place, each[:, start + place]
            codes[:, column] = (part[:, place] / scale).round().clamp(-8, 7)
            error = (part[:, place] - codes[:, column] * scale) / upper[column, column]
            part[:, place:] -= error[:, None] * upper[column, column : here.start + part.shape[1]]
            passed_on[:, place] = error
        weight[:, here.stop :] -= passed_on @ upper[here, here.stop :]
    return codes[:, torch.argsort(order)], scales


def _find_scales(weight: Tensor, matters: Tensor, block_size: int) -> Tensor:
    blocks = weight.view(len(weight), -1, block_size)
    of_columns = matters.view(-1, block_size)
    largest, where = blocks.abs().max(-1, keepdim=True)
    # as the largest weight's own sign has it, for there are eight steps down and seven up
    signed = blocks.gather(-1, where) / -8
    signed = torch.where(largest == 0, 1.0, signed)
    best, least = signed, torch.full_like(signed, torch.inf)
    for scale in (*(signed * share for share in _SHRINKING), -signed * 8 / 7):
        error = (blocks / scale).round().clamp(-8, 7) * scale - blocks
        loss = (error.square() * of_columns).sum(-1, keepdim=True)
        best, least = torch.where(loss < least, scale, best), torch.minimum(loss, least)
    return best.squeeze(-1)


def _embed(model: Any, windows: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """What goes into the first layer, and what every layer is called with beside that."""
    caught: list[tuple[Tensor, dict[str, Any]]] = []

    class FirstLayerError(Exception):
        """The first layer is reached, and the others need not run."""

    def catch(_: nn.Module, given: tuple[Tensor], arguments: dict[str, Any]) -> None:
        caught.append((given[0], arguments))
        raise FirstLayerError

    model.model.embed_tokens.float()
    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for part in torch.split(windows, _WINDOWS_TOGETHER):
        with contextlib.suppress(FirstLayerError):
            model(input_ids=part, use_cache=False)
    hook.remove()
    return [hidden for hidden, _ in caught], caught[0][1]


def _run(layer: nn.Module, hidden: list[Tensor], arguments: Mapping[str, Any]) -> list[Tensor]:
    outputs = (layer(part, **arguments) for part in hidden)
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


@contextlib.contextmanager
def _hessians(products: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Of what goes into products in the ``with`` block."""
    sums: dict[nn.Module, Tensor] = {}

    def add(product: nn.Module, given: tuple[Tensor]) -> None:
        rows = given[0].flatten(end_dim=-2)
        sums.setdefault(product, torch.zeros(rows.shape[1], rows.shape[1])).addmm_(rows.T, rows)

    hooks = [product.register_forward_pre_hook(add) for product in products]
    yield sums
    for hook in hooks:
        hook.remove()


class _Weights:
    """The int4 weights of a build, to be written over."""

    def __init__(self, file: Path) -> None:
        graph = onnx.load(file, load_external_data=False).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._folder = file.parent
        self._left = {}
        for node in graph.node:
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "MatMulNBits" and numbers.get("bits", 4) == 4:
                _, codes, scales, *zero_points = node.input
                if any(zero_points):
                    raise InvalidModelError(f"{file} has zero points, which is another form")
                name = codes.partition(".MatMul.")[0]
                self._left[name] = (tensors[codes], tensors[scales])
                self._block_size = numbers["block_size"]

    def round(self, names: list[str], product: nn.Linear, hessian: Tensor) -> None:
        """Round a product's weight, and have it as the build now has it.

        Args:
            names: of what may be in the build in its place: itself, or its parts by rows.
            product: the checkpoint's.
            hessian: of its inputs.
        """
        there = [self._left.pop(name) for name in names if name in self._left]
        if not there:  # it is in 8 bits
            return
        inputs = product.in_features
        more = -inputs % self._block_size  # the last block is filled up
        weight, hessian = F.pad(product.weight, (0, more)), F.pad(hessian, (0, more, 0, more))
        codes, scales = gptq(weight, hessian, self._block_size)
        back = codes * scales.repeat_interleave(self._block_size, 1)
        product.weight.copy_(back[:, :inputs])
        start = 0
        for codes_tensor, scales_tensor in there:
            rows = slice(start, start + codes_tensor.dims[0])
            start = rows.stop
            unsigned = (codes[rows] + 8).to(torch.uint8).numpy()
            # the first of two in the lower half of a byte
            self._write(codes_tensor, unsigned[:, ::2] | unsigned[:, 1::2] << 4)
            self._write(scales_tensor, scales[rows].numpy())

    def require_all_rounded(self) -> None:
        """Raise an InvalidModelError where the build has int4 weights that were not rounded."""
        if self._left:
            raise InvalidModelError(f"{self._folder} has a product {min(self._left)}: not Phi-3's")

    def _write(self, tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        file = np.memmap(
            self._folder / place["location"],
            dtype,
            "r+",
            int(place.get("offset", 0)),
            tuple(tensor.dims),
        )
        file[:] = values.reshape(file.shape)
        file.flush()
