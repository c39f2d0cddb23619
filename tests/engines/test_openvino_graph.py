"""Converted graphs compute what onnxruntime computes from the same file, or are refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.ov import engine as engine_module
from phi3_batch.engines.ov import graph as openvino_graph
from phi3_batch.engines.ov.engine import OpenVINOEngine, write_model
from phi3_batch.engines.ov.graph import convert
from phi3_batch.engines.ov.int4 import SAMPLED_TOKENS, kept_layers, use_threads
from phi3_batch.engines.ov.int4_kernel import AMX, AVX2, Instructions, fastest_here
from phi3_batch.engines.ov.runtime import ContinuousBatchingPipeline, openvino
from phi3_batch.errors import UnsupportedModelError
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import ModelFolder
from tests.conftest import TINY_MODEL
from tests.engines.graphs import (
    ATTENTION,
    OLD_LAYOUT,
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
from tests.engines.random_builds import BUILDS, PRUNED, SHAPE

# All that OpenVINO computes in float32: by default it rounds activations too.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def logits_by_openvino(
    folder: ModelFolder,
    ids: np.ndarray,
    instructions: Instructions | None = None,
    **properties: object,
) -> np.ndarray:
    """In parts: a prompt, one token, several tokens to one that is there already."""
    model = convert(folder, instructions)
    with kept_layers() as _layers:
        compiled = openvino.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    rows, length = ids.shape
    parts, start = [], 0
    for end in (length // 2, length // 2 + 1, length // 2 + 2, length):
        inputs = {
            "input_ids": ids[:, start:end],
            "attention_mask": np.ones((rows, end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        if instructions:  # as rows that are one token each, the runtime would choose among
            inputs[SAMPLED_TOKENS] = np.arange(rows)
        parts.append(request.infer(inputs)["logits"].copy())
        start = end
    return np.concatenate(parts, axis=1)


@pytest.fixture
def new_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., OpenVINOEngine]:
    """Makes engines, of which the runtime is given properties of a test's own."""

    def new_engine(
        folder: ModelFolder, instructions: Instructions | None = None, **properties: object
    ) -> OpenVINOEngine:
        def pipeline(path, scheduling, device, usual):
            return ContinuousBatchingPipeline(path, scheduling, device, usual | properties)

        monkeypatch.setattr(engine_module, "ContinuousBatchingPipeline", pipeline)
        target = tmp_path / "converted"
        target.mkdir()
        write_model(convert(folder, instructions), folder, target)
        return OpenVINOEngine(folder, target)

    return new_engine


def refusal(folder: ModelFolder) -> str:
    """Why a model is not converted: one line."""
    with pytest.raises(UnsupportedModelError) as raised:
        convert(folder)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


# --- what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDS)
def test_the_logits_are_those_of_onnxruntime(builds, changed, name):
    folder = changed(builds / name, exactly)
    ids = random_ids(2, 60)
    expected = logits_by_onnxruntime(folder, ids)
    assert expected.std() > 1  # of any use only if tokens and their places matter
    np.testing.assert_allclose(logits_by_openvino(folder, ids, **EXACT), expected, atol=5e-4)


@pytest.mark.parametrize(
    ("name", "packed_layers"),
    # q, k and v in one product or three, o, gate, up and down of two layers, and the lm_head
    [("grouped", 11), ("tied", 11), ("one key", 9), ("half rotated", 0), ("apart", 0)],
)
def test_our_kernel_is_for_blocks_of_whole_32s_around_8(builds, name, packed_layers):
    folder = ModelFolder.open(builds / name)
    for instructions, expected in ((AVX2, packed_layers), (AMX, packed_layers), (None, 0)):
        kinds = [node.get_type_name() for node in convert(folder, instructions).get_ops()]
        assert kinds.count("Int4Linear") == expected


@pytest.mark.parametrize(
    ("name", "apart"),
    # Only of the first does onnxruntime round activations as the kernel does, by blocks of 32. It
    # rounds the second's in another way, and the third's not at all.
    [("grouped", 0.01), ("tied", 0.05), ("one key", 0.08)],
)
def test_our_kernel_computes_the_logits_of_onnxruntime(builds, name, apart):
    folder = ModelFolder.open(builds / name)
    ids = random_ids(2, 60)
    use_threads(2)
    expected = logits_by_onnxruntime(folder, ids)
    difference = logits_by_openvino(folder, ids, AVX2, **EXACT) - expected
    assert 0 < difference.std() < apart * expected.std()


@pytest.mark.parametrize("name", ["grouped", "tied", "one key"])
@pytest.mark.skipif(fastest_here() is not AMX, reason="a processor without AMX")
def test_our_kernel_rounds_to_bfloat16_by_amx(builds, changed, name):
    folder = changed(builds / name, exactly)
    ids = random_ids(2, 60)
    use_threads(2)
    expected = logits_by_onnxruntime(folder, ids)
    difference = logits_by_openvino(folder, ids, AMX, **EXACT) - expected

    assert 0 < difference.std() < 0.025 * expected.std()


@pytest.mark.parametrize("name", ["grouped", "tied", *PRUNED])
@pytest.mark.parametrize("instructions", [AVX2, AMX], ids=lambda each: each.name)
def test_the_engine_generates_the_same_with_our_kernel(builds, new_engine, name, instructions):
    if instructions is AMX and fastest_here() is not AMX:
        pytest.skip("a processor without AMX")
    folder = ModelFolder.open(builds / name)
    prompts = [*map(tuple, random_ids(12, 40).tolist()), *map(tuple, random_ids(4, 300).tolist())]
    requests = [Request(prompt, GenerationParams(max_tokens=3)) for prompt in prompts]
    expected = OnnxRuntimeGenAIEngine(folder).generate(requests)
    actual = new_engine(folder, instructions, **EXACT).generate(requests)
    same = [
        mine.token_ids[0] == theirs.token_ids[0]
        for mine, theirs in zip(actual, expected, strict=True)
    ]
    # random texts have near ties; OpenVINO rounds to bfloat16 as AMX has it, onnxruntime does not
    assert sum(same) >= {AVX2: 14, AMX: 12}[instructions]


def test_rows_of_one_call_may_be_shorter_and_change_places(changed):
    """Converted models run without OpenVINO GenAI too, which has no such calls."""
    folder = changed(TINY_MODEL, exactly)
    compiled = openvino.Core().compile_model(convert(folder), "CPU", EXACT)
    request = compiled.create_infer_request()
    ids = random_ids(2, 20)
    mask = np.ones_like(ids)
    mask[1, 15:] = 0
    positions = np.tile(np.arange(21), (2, 1))
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions[:, :20]}
    logits = request.infer(inputs | {"beam_idx": np.arange(2, dtype=np.int32)})["logits"].copy()
    for row, end in ((0, 20), (1, 15)):
        expected = logits_by_onnxruntime(folder, ids[row : row + 1, :end])
        np.testing.assert_allclose(logits[row : row + 1, :end], expected, atol=5e-4)
    inputs = {"input_ids": ids[:, :1], "attention_mask": np.ones((2, 21), np.int64)}
    inputs |= {"position_ids": positions[:, 20:], "beam_idx": np.zeros(2, np.int32)}
    next_logits = request.infer(inputs)["logits"]
    for row in range(2):
        whole = np.append(ids[0], ids[row, 0])[None]
        expected_next = logits_by_onnxruntime(folder, whole)[0, -1]
        np.testing.assert_allclose(next_logits[row, 0], expected_next, atol=5e-4)


@pytest.mark.parametrize("name", BUILDS | PRUNED)
def test_the_engine_generates_the_tokens_of_onnxruntime(builds, changed, new_engine, name):
    folder = changed(builds / name, exactly)
    prompts = [*map(tuple, random_ids(12, 40).tolist()), *map(tuple, random_ids(4, 5).tolist())]
    requests = [Request(prompt, GenerationParams(max_tokens=30)) for prompt in prompts]
    expected = OnnxRuntimeGenAIEngine(folder).generate(requests)
    assert len({completion.token_ids[:3] for completion in expected}) > 8
    assert new_engine(folder, **EXACT).generate(requests) == expected


@pytest.mark.parametrize("name", BUILDS)
def test_rounding_as_it_is_by_default_moves_logits_a_little(builds, name):
    folder = ModelFolder.open(builds / name)
    ids = random_ids(2, 60)
    expected = logits_by_onnxruntime(folder, ids)
    difference = logits_by_openvino(folder, ids) - expected
    assert difference.std() < 0.1 * expected.std()


@pytest.mark.parametrize("path", [TINY_MODEL, OLD_LAYOUT], ids=["today", "old"])
def test_the_runtime_makes_one_operator_of_each_rotary_embedding(path, tiny_folder):
    model = convert(dataclasses.replace(tiny_folder, path=path))
    compiled = openvino.Core().compile_model(model, "CPU")
    kinds = [
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled.get_runtime_model().get_ordered_ops()
    ]
    # of queries and keys, in each of four layers
    assert kinds.count("RoPE") == 8
    assert kinds.count("ScaledDotProductAttention") == 4


def test_half_of_a_head_may_be_rotated(builds):
    model = convert(ModelFolder.open(builds / "half rotated"))
    [sizes] = {
        tuple(node.input_value(2).get_node().get_data().tolist())
        for node in model.get_ordered_ops()
        if node.get_type_name() == "VariadicSplit"
        and len(node.outputs()) == 3
        and node.input_value(2).get_node().get_data().sum() == 32
    }
    assert sizes == (8, 8, 16)


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
    ],
)
def test_what_attention_may_say(changed, name, value):
    folder = changed(TINY_MODEL, exactly, with_attribute(ATTENTION, name, value))
    ids = random_ids(1, 40)
    actual = logits_by_openvino(folder, ids, **EXACT)
    np.testing.assert_allclose(actual, logits_by_onnxruntime(folder, ids), atol=5e-4)


@pytest.fixture
def with_window(changed) -> Callable[..., ModelFolder]:
    """Makes copies of the embedded model whose attention looks back so far, as those of
    Phi-3-mini do that the builder wrote from 0.9 on."""

    def with_window(window: int, which: slice = slice(None)) -> ModelFolder:
        edit = with_attribute(ATTENTION, "local_window_size", window, which)
        return changed(TINY_MODEL, exactly, edit)

    return with_window


@pytest.mark.parametrize(("window", "which"), [(1, slice(None)), (16, slice(1, 3))])
def test_a_window_gives_the_logits_of_onnxruntime(with_window, window, which):
    folder = with_window(window, which)
    ids = random_ids(2, 60)
    expected = logits_by_onnxruntime(folder, ids)
    np.testing.assert_allclose(logits_by_openvino(folder, ids, **EXACT), expected, atol=5e-4)


@pytest.mark.parametrize(
    ("window", "which", "lengths"),
    [
        (16, slice(None), (5, 15, 16, 17, 18, 50, 150)),
        (16, slice(1, 3), (5, 15, 16, 17, 18, 50, 150)),
        (500, slice(None), (490, 1500)),
    ],
)
def test_the_engine_keeps_to_a_window(with_window, new_engine, window, which, lengths):
    prompts = [random_ids(1, length)[0].tolist() for length in lengths]
    requests = [Request(tuple(prompt), GenerationParams(max_tokens=30)) for prompt in prompts]
    engine = new_engine(with_window(window, which), **EXACT)
    expected = OnnxRuntimeGenAIEngine(with_window(window, which)).generate(requests)
    assert engine.generate(requests) == expected
    assert OnnxRuntimeGenAIEngine(with_window(-1)).generate(requests) != expected


# --- how weights are kept ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [("grouped", "i4"), ("tied", "i4"), ("half rotated", "u4")],
)
def test_weights_stay_in_four_bits_until_they_are_multiplied(builds, name, kept):
    compiled = openvino.Core().compile_model(convert(ModelFolder.open(builds / name)), "CPU")
    multiplications = [
        node
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    types = {node.input_value(1).get_element_type().to_string() for node in multiplications}
    assert types == {kept}


def test_embeddings_that_are_the_lm_heads_weights_stay_in_four_bits(builds):
    compiled = openvino.Core().compile_model(convert(ModelFolder.open(builds / "tied")), "CPU")
    tables = [
        node.input_value(0).get_element_type().to_string()
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Gather"
        and node.input_value(0).get_partial_shape().to_shape()[0] == SHAPE["vocab_size"]
    ]
    assert tables == ["i4"]


@pytest.mark.parametrize("name", BUILDS)
def test_the_lm_head_is_where_the_runtime_looks_for_it(builds, name):
    # else it computes logits of every token of a prompt, not of the last alone: find_llm_matmul in
    # https://github.com/openvinotoolkit/openvino.genai/blob/master/src/cpp/src/utils.cpp
    last = convert(ModelFolder.open(builds / name)).output(0).get_node().input_value(0).get_node()
    assert last.get_type_name() == "MatMul"
    assert len(last.input_value(0).get_partial_shape()) == 3


def test_signed_weights_change_no_bit_of_the_logits(tiny_folder, monkeypatch):
    ids = random_ids(2, 60)
    logits = logits_by_openvino(tiny_folder, ids)
    monkeypatch.setattr(openvino_graph, "sign_weights", lambda model: None)
    assert np.array_equal(logits_by_openvino(tiny_folder, ids), logits)


# --- the layout of the published files -----------------------------------------------------------


def test_the_old_layout_gives_every_answer(old_layout, new_engine, requests_of_samples, samples):
    completions = new_engine(old_layout).generate(requests_of_samples)
    assert [completion.text for completion in completions] == [s.answer for s in samples]
    assert OnnxRuntimeGenAIEngine(old_layout).generate(requests_of_samples) == completions


def test_the_logits_of_the_old_layout_are_those_of_onnxruntime(old_layout, changed):
    [version] = {
        entry.version
        for entry in onnx.load(old_layout.path / "model.onnx").opset_import
        if not entry.domain
    }
    assert version == 14
    folder = changed(old_layout.path, exactly)
    ids = random_ids(2, 60)
    actual = logits_by_openvino(folder, ids, **EXACT)
    np.testing.assert_allclose(actual, logits_by_onnxruntime(folder, ids), atol=5e-4)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("causal", 0, "run this model: its attention has causal False"),
        ("do_rotary", 0, "run this model: its attention has do_rotary False"),
        ("rotary_interleaved", 1, "run this model: its attention has rotary_interleaved True"),
        ("smooth_softmax", 1, "run this model: its attention has smooth_softmax True"),
        ("k_quant_type", "PER_TENSOR", "run this model: its attention has k_quant_type PER_TENSOR"),
        ("v_quant_type", "PER_TENSOR", "run this model: its attention has v_quant_type PER_TENSOR"),
        ("kv_cache_bit_width", 8, "run this model: its attention has kv_cache_bit_width 8"),
        ("softcap", 30.0, "read this model: GroupQueryAttention: softcap is not supported."),
        ("qk_output", 1, "read this model: GroupQueryAttention: qk_output is not supported."),
    ],
)
@pytest.mark.parametrize("which", [slice(None), slice(3, None)], ids=["all", "last"])
def test_attention_of_another_kind_is_refused(changed, name, value, message, which):
    folder = changed(TINY_MODEL, with_attribute(ATTENTION, name, value, which))
    assert refusal(folder) == f"OpenVINO cannot {message}"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            with_input(9, np.zeros((1, 1), np.int64)),
            "run this model: its attention is told the tokens' places",
        ),
        (
            with_input(10, np.ones((1, 1, 1, 1), np.float32)),
            "run this model: its attention has a bias or sinks",
        ),
        (
            with_input(11, np.ones(6, np.float32)),
            "run this model: its attention has a bias or sinks",
        ),
        (
            with_input(14, np.ones(32, np.float32)),
            "read this model: GroupQueryAttention: q_norm_weight/k_norm_weight (QK-Norm) inputs"
            " are not supported.",
        ),
        (renamed("input_ids", "ids"), "run this model: its graph has no input input_ids"),
        (
            renamed("attention_mask", "mask"),
            "run this model: its graph has no input attention_mask",
        ),
        (renamed("logits", "scores"), "run this model: its graph has no output logits"),
        (
            with_one_more_input,
            "read this model: Model references undeclared parameters: opset1::Parameter bonus ()"
            " -> (f32[1])",
        ),
        (
            of_kind("NewAttention"),
            "read this model: No conversion rule found for operations: com.microsoft.NewAttention",
        ),
    ],
)
def test_a_graph_of_another_kind_is_refused(changed, edit, message):
    assert refusal(changed(TINY_MODEL, edit)) == f"OpenVINO cannot {message}"


def test_a_cache_as_large_as_a_window_is_refused(changed):
    window = with_attribute(ATTENTION, "local_window_size", 4096)
    folder = changed(TINY_MODEL, window, with_attribute(ATTENTION, "sliding_window_cache", 1))
    assert refusal(folder) == (
        "OpenVINO cannot run this model: its attention has sliding_window_cache True"
    )


def test_embeddings_around_zero_points_are_refused(builds, changed):
    def with_zero_points(graph: onnx.ModelProto) -> None:
        zeros = np.full((1024, 3), 0x88, np.uint8)
        graph.graph.initializer.append(numpy_helper.from_array(zeros, "zeros"))
        [node] = nodes(graph, "GatherBlockQuantized")
        node.input.append("zeros")

    assert refusal(changed(builds / "tied", with_zero_points)) == (
        "OpenVINO cannot read this model: GatherBlockQuantized: not as in other builds of Phi-3"
    )


def test_a_graph_without_attention_is_refused(builds, changed):
    assert refusal(changed(builds / "apart", without_attention)) == (
        "OpenVINO cannot run this model: 0 of its 2 layers have the operator GroupQueryAttention"
    )


def test_a_context_longer_than_the_graph_has_places_for_is_refused(build):
    folder = numbers_in_config(ModelFolder.open(build), context_length=8192)
    assert refusal(folder) == (
        "OpenVINO cannot run this model: it has places for 4096 tokens, of a context of 8192"
    )


def test_fewer_layers_than_the_configuration_says_are_refused(build):
    folder = numbers_in_config(ModelFolder.open(build), num_hidden_layers=5)
    assert refusal(folder) == (
        "OpenVINO cannot run this model: 4 of its 5 layers have the operator GroupQueryAttention"
    )


def test_a_graph_in_float16_is_refused(builds):
    folder = ModelFolder.open(builds / "for CUDA")
    assert refusal(folder) == (
        "OpenVINO cannot run this model: it computes in f16, as builds for GPUs do"
    )


def test_an_unreadable_graph_is_refused(tiny_folder, build):
    graph = (build / "model.onnx").read_bytes()
    for rest in (graph[:20000], b"", b"no graph"):
        (build / "model.onnx").write_bytes(rest)
        folder = dataclasses.replace(tiny_folder, path=build)
        assert refusal(folder).startswith("OpenVINO cannot read this model: ")


def test_a_graph_whose_weights_are_cut_short_is_refused(tiny_folder, build):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    folder = dataclasses.replace(tiny_folder, path=build)
    assert refusal(folder).startswith("OpenVINO cannot read this model: ")
