"""Graphs are read as what they are, and compute what onnxruntime computes, or are refused."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.native.spec import NATIVE
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.errors import UnsupportedModelError
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import ModelFolder
from tests.conftest import TINY_MODEL
from tests.engines.conftest import pack
from tests.engines.graphs import (
    ATTENTION,
    exactly,
    logits_by_onnxruntime,
    nodes,
    numbers_in_config,
    of_kind,
    random_ids,
    renamed,
    with_attribute,
    with_input,
    with_one_more_input,
    without_attention,
)
from tests.engines.random_builds import BUILDS, PRUNED

RUN = [name for name in (*BUILDS, "4 and 8 bits", "LongRoPE") if name != "apart"]


def native(folder: ModelFolder) -> NativeEngine:
    return NativeEngine(folder, pack(folder), memory_bytes=10**8)


def difference(folder: ModelFolder, length: int = 60) -> float:
    """Of logits from those of onnxruntime, in their standard deviations."""
    [ids] = random_ids(1, length)
    expected = logits_by_onnxruntime(folder, ids[None])[0]
    assert expected.std() > 1  # of any use only if tokens and their places matter
    return float(np.std(native(folder).read_logits(ids.tolist()) - expected) / expected.std())


@pytest.mark.parametrize("name", RUN)
def test_the_logits_are_those_of_onnxruntime(builds, changed, name):
    # half of the bits of keys and values are left, and half of those of activations
    assert difference(changed(builds / name, exactly)) < 0.002


def test_long_texts_have_their_own_rotary_embedding(builds, changed):
    assert difference(changed(builds / "LongRoPE", exactly), 300) < 0.002


@pytest.mark.parametrize("name", RUN)
def test_rounding_as_builds_ask_for_it_moves_logits_a_little(builds, name):
    assert difference(ModelFolder.open(builds / name)) < 0.08


@pytest.mark.parametrize("name", RUN)
def test_each_token_is_the_likeliest_by_onnxruntime(builds, changed, name):
    folder = changed(builds / name, exactly)
    prompts = [*map(tuple, random_ids(12, 40).tolist()), *map(tuple, random_ids(4, 5).tolist())]
    requests = [Request(prompt, GenerationParams(max_tokens=30)) for prompt in prompts]
    completions = native(folder).generate(requests)
    assert len({completion.token_ids[:3] for completion in completions}) > 8
    for prompt, completion in zip(prompts, completions, strict=True):
        text = [*prompt, *completion.token_ids]
        logits = logits_by_onnxruntime(folder, np.array([text]))[0, len(prompt) - 1 : -1]
        chosen = logits[np.arange(len(logits)), list(completion.token_ids)]
        # random texts have near ties
        assert (chosen > logits.max(-1) - 0.02 * logits.std()).all()


@pytest.mark.parametrize("name", PRUNED)
def test_a_graph_that_gives_logits_of_the_last_token_alone_is_read_as_any_other(
    builds, changed, name
):
    folder = changed(builds / name, exactly)
    prompts = map(tuple, random_ids(12, 40).tolist())
    requests = [Request(prompt, GenerationParams(max_tokens=2)) for prompt in prompts]
    assert native(folder).generate(requests) == OnnxRuntimeGenAIEngine(folder).generate(requests)


def test_the_layout_of_the_published_files_gives_every_answer(
    old_layout, requests_of_samples, samples
):
    completions = native(old_layout).generate(requests_of_samples)
    assert [completion.text for completion in completions] == [s.answer for s in samples]


def test_the_logits_of_that_layout_are_those_of_onnxruntime(old_layout, changed):
    assert difference(changed(old_layout.path, exactly)) < 0.002


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", None),
        ("scale", 0.0),
        ("scale", 0.3),
        ("softcap", 0.0),
        ("smooth_softmax", 0),
        ("local_window_size", None),
        ("local_window_size", 4096),
        ("local_window_size", 1),
        ("local_window_size", 16),
    ],
)
def test_what_attention_may_say(changed, name, value):
    assert difference(changed(TINY_MODEL, exactly, with_attribute(ATTENTION, name, value))) < 0.002


def test_layers_may_have_windows_of_their_own(changed):
    window = with_attribute(ATTENTION, "local_window_size", 16, slice(1, 3))
    assert difference(changed(TINY_MODEL, exactly, window), 150) < 0.002


# --- what is refused -----------------------------------------------------------------------------


def refusal(folder: ModelFolder) -> str:
    """Why a model is not run: one line, said before it is loaded as it is then."""
    with pytest.raises(UnsupportedModelError) as raised:
        pack(folder)
    assert str(raised.value) == NATIVE.refuse(folder)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("causal", 0),
        ("rotary_interleaved", 1),
        ("smooth_softmax", 1),
        ("k_quant_type", "PER_TENSOR"),
        ("v_quant_type", "PER_TENSOR"),
        ("kv_cache_bit_width", 8),
        ("softcap", 30.0),
        ("qk_output", 1),
        ("sliding_window_cache", 1),
        ("do_rotary", 0),
        ("not_known", 7),
    ],
)
@pytest.mark.parametrize("which", [slice(None), slice(3, None)], ids=["all", "last"])
def test_attention_of_another_kind_is_refused(changed, name, value, which):
    folder = changed(TINY_MODEL, with_attribute(ATTENTION, name, value, which))
    assert refusal(folder) == (
        f"the native engine cannot run this model: its attention has {name} {value}"
    )


def with_zero_points(graph: onnx.ModelProto) -> None:
    zeros = np.full((1024, 3), 0x88, np.uint8)
    graph.graph.initializer.append(numpy_helper.from_array(zeros, "zeros"))
    [node] = nodes(graph, "GatherBlockQuantized")
    node.input.append("zeros")


def with_norms_that_differ(graph: onnx.ModelProto) -> None:
    nodes(graph, "SkipSimplifiedLayerNormalization")[1].attribute[0].f = 0.25


def with_order_of_inputs(graph: onnx.ModelProto) -> None:
    places = np.zeros(192, np.int32)
    graph.graph.initializer.append(numpy_helper.from_array(places, "order"))
    nodes(graph, "MatMulNBits")[0].input.extend(["", "order"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            with_input(9, np.zeros((1, 1), np.int64)),
            "its attention has positions, a bias or sinks",
        ),
        (
            with_input(11, np.ones(6, np.float32)),
            "its attention has positions, a bias or sinks",
        ),
        (renamed("input_ids", "ids"), "its embedding is no table of token ids"),
        (renamed("logits", "scores"), "what makes its logits is missing"),
        (with_one_more_input, "what makes its logits is Add, not MatMulNBits"),
        (of_kind("NewAttention"), "attention is NewAttention, not GroupQueryAttention"),
        (with_norms_that_differ, "its norms differ in epsilon"),
        (with_order_of_inputs, "its layers have biases, or reorder their inputs"),
    ],
)
def test_a_graph_of_another_kind_is_refused(changed, edit, message):
    assert refusal(changed(TINY_MODEL, edit)) == (
        f"the native engine cannot run this model: {message}"
    )


@pytest.mark.parametrize(
    ("name", "edits", "message"),
    [
        ("apart", (), "what makes its logits is MatMul, not MatMulNBits"),
        ("for CUDA", (), "it computes in 16 bits, as builds for GPUs do"),
        (
            "tied",
            (with_zero_points,),
            "its embedding has weights in few bits that are not lm_head's",
        ),
    ],
)
def test_a_build_of_another_kind_is_refused(builds, changed, name, edits, message):
    assert refusal(changed(builds / name, *edits)) == (
        f"the native engine cannot run this model: {message}"
    )


def test_keys_without_attention_are_refused(builds, changed):
    def with_lm_head(graph: onnx.ModelProto) -> None:
        [head] = [node for node in graph.graph.node if "logits" in node.output]
        layer = next(node for node in nodes(graph, "MatMulNBits") if "v_proj" in node.name)
        head.CopyFrom(layer)
        head.output[0] = "logits"

    folder = changed(builds / "apart", without_attention, with_lm_head)
    assert refusal(folder).startswith("the native engine cannot run this model: ")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"context_length": 8192}, "it has 4096 positions and a longer context"),
        ({"num_hidden_layers": 5}, "its graph has 4 layers, its configuration more"),
        ({"num_hidden_layers": 3}, "its graph has more layers than the 3 of its configuration"),
    ],
)
def test_a_configuration_that_is_not_the_graphs_is_refused(build, numbers, message):
    folder = numbers_in_config(ModelFolder.open(build), **numbers)
    assert refusal(folder) == f"the native engine cannot run this model: {message}"


@pytest.mark.parametrize("rest", [20000, 0, None])
def test_an_unreadable_graph_is_refused(tiny_folder, build, rest):
    graph = (build / "model.onnx").read_bytes()
    (build / "model.onnx").write_bytes(b"no graph" if rest is None else graph[:rest])
    assert "\n" not in refusal(dataclasses.replace(tiny_folder, path=build))


def test_a_graph_whose_weights_are_cut_short_is_refused(tiny_folder, build):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UnsupportedModelError, match=r"model\.onnx\.data is damaged"):
        pack(dataclasses.replace(tiny_folder, path=build))
