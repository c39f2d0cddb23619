"""The model as openvino_genai runs it, one step at a time and under our eyes.

openvino_genai turns the converted model into one with paged attention and runs that step by step;
so does this, with OpenVINO alone, to see the logits of every token and where the time goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contenders import THREADS

from phi3_batch.engines.kv_budget import BLOCK_TOKENS
from phi3_batch.engines.ov.engine import MODEL_XML, kv_cache_precision
from phi3_batch.engines.ov.int4 import (
    EXTENSION,
    SAMPLED_TOKENS,
    gather_sampled_tokens,
    kept_layers,
    use_threads,
)
from phi3_batch.engines.ov.runtime import openvino


@dataclass(frozen=True)
class Piece:
    """What a step reads of one sequence: so many tokens behind those in the cache."""

    sequence: int
    ids: Sequence[int]
    past: int


class PagedModel:
    """The converted model with paged attention.

    Args:
        folder: of the converted model.
        sequences: how many there are at most.
        context: tokens of each, at most.
        properties: for OpenVINO, beside those that the engine sets.
        expand_weights: to bfloat16 when it is loaded, not in every step.
    """

    def __init__(
        self,
        folder: Path,
        sequences: int,
        context: int,
        properties: Mapping[str, object] | None = None,
        *,
        expand_weights: bool = False,
    ) -> None:
        from openvino._offline_transformations import paged_attention_transformation

        core = openvino.Core()
        core.add_extension(EXTENSION)
        use_threads(THREADS)
        with kept_layers() as self._layers:
            model = core.read_model(folder / MODEL_XML)
        paged_attention_transformation(model)
        if not any(SAMPLED_TOKENS in given.get_names() for given in model.inputs):
            _take_sampled_tokens(model)
        if expand_weights:
            _expand_weights(model)
        settings = {
            "INFERENCE_NUM_THREADS": THREADS,
            "KV_CACHE_PRECISION": kv_cache_precision(),
            **(properties or {}),
        }
        with kept_layers() as compiled_layers:
            compiled = core.compile_model(model, "CPU", settings)
        self._layers += compiled_layers
        self._request = compiled.create_infer_request()
        self._steps = 0
        self._blocks_each = -(-context // BLOCK_TOKENS)
        for given in compiled.inputs:
            name = given.get_any_name()
            if "_cache." in name:
                shape = given.get_partial_shape()
                shape[0] = sequences * self._blocks_each
                cache = openvino.Tensor(given.get_element_type(), shape.to_shape())
                self._request.set_tensor(name, cache)

    def step(self, pieces: Sequence[Piece], *, all_logits: bool = False) -> np.ndarray:
        """Logits of each piece's last token, or of all tokens, one row each."""
        ends = np.cumsum([len(piece.ids) for piece in pieces])
        positions = [np.arange(len(piece.ids)) + piece.past for piece in pieces]
        totals = [piece.past + len(piece.ids) for piece in pieces]
        used = [-(-total // BLOCK_TOKENS) for total in totals]
        blocks = [
            np.arange(count) + piece.sequence * self._blocks_each
            for piece, count in zip(pieces, used, strict=True)
        ]
        given = {
            "input_ids": np.concatenate([np.asarray(piece.ids, np.int64) for piece in pieces]),
            "position_ids": np.concatenate(positions).astype(np.int64),
            "max_context_len": np.array(max(totals), np.int32),
            "past_lens": np.array([piece.past for piece in pieces], np.int32),
            "subsequence_begins": np.array([0, *ends], np.int32),
            "block_indices_begins": np.array([0, *np.cumsum(used)], np.int32),
            "block_indices": np.concatenate(blocks).astype(np.int32),
            SAMPLED_TOKENS: np.arange(ends[-1]) if all_logits else ends - 1,
        }
        for name, value in given.items():
            self._request.set_tensor(name, openvino.Tensor(value))
        self._request.infer()
        self._steps += 1
        logits = self._request.get_output_tensor(0).data
        return logits.reshape(-1, logits.shape[-1]).copy()

    def node_times(self) -> list[tuple[str, str, float]]:
        """Type, kernel and milliseconds of each node in all steps so far, with PERF_COUNT set."""
        # OpenVINO's counters are means over all of a model's steps
        milliseconds = 1000 * self._steps
        return [
            (info.node_type, info.exec_type, milliseconds * info.real_time.total_seconds())
            for info in self._request.get_profiling_info()
        ]


def _take_sampled_tokens(model: openvino.Model) -> None:
    """Keep all tokens but the chosen ones out of the lm_head, as openvino_genai does."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    model.add_parameters([gather_sampled_tokens(node)])


def _expand_weights(model: openvino.Model) -> None:
    ops = openvino.opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().inputs():
            source = node.input_value(1)
            compiled = openvino.Core().compile_model(openvino.Model([source], [], "w"), "CPU")
            weights = compiled([])[0]
            constant = ops.constant(openvino.Tensor(weights).data, dtype=openvino.Type.bf16)
            wide = ops.convert(constant, "f32")
            node.input(1).replace_source_output(wide.output(0))
