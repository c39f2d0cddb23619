"""Our own products with weights in four bits, against the same sums by numpy."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from phi3_batch.engines.ov import amx_tiles, int4_kernel
from phi3_batch.engines.ov.engine import OpenVINOEngine, write_model
from phi3_batch.engines.ov.graph import convert
from phi3_batch.engines.ov.int4 import Int4Linear
from phi3_batch.engines.ov.int4_kernel import (
    AMX,
    AVX2,
    Instructions,
    Int4Kernel,
    fastest_here,
    output_count,
)
from phi3_batch.generation import GenerationParams, Request

# K, and N in tiles: one block and tile, and more tiles than threads have parts
SHAPES = [(32, 1), (352, 21)]


@pytest.fixture(scope="module", params=[AVX2, AMX], ids=lambda each: each.name)
def instructions(request) -> Instructions:
    """Those that this processor has."""
    if request.param is AMX and fastest_here() is not AMX:
        pytest.skip("a processor without AMX")
    return request.param


@pytest.fixture(scope="module", params=[1, 2, 3])
def kernel(request) -> Int4Kernel:
    return Int4Kernel(request.param)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def layer(request, instructions) -> tuple[np.ndarray, np.ndarray]:
    """Weights in float64, shape (K, N), as they are multiplied, and the same packed."""
    inputs, tiles = request.param
    outputs = tiles * instructions.tile_outputs
    draw = np.random.default_rng(0)
    blocks = inputs // 32
    bits = draw.integers(0, 256, (outputs, blocks, 16)).astype(np.uint8)
    scales = draw.uniform(-1, 1, (outputs, blocks)).astype(np.float32)
    whole = np.stack([bits & 15, bits >> 4], axis=-1).reshape(outputs, blocks, 32)
    weights = (whole.astype(np.float32) - 8) * scales[..., None]
    if instructions is AMX:
        weights = in_bfloat16(weights, 0x8000)  # halves are rounded up
    return weights.astype(float).reshape(outputs, inputs).T, instructions.pack(bits, scales)


def in_bfloat16(numbers: np.ndarray, half: int | np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return (bits + half & 0xFFFF0000).astype(np.uint32).view(np.float32)


def multiply(kernel: Int4Kernel, rows: np.ndarray, packed: np.ndarray) -> np.ndarray:
    outputs = np.full((len(rows), output_count(packed.shape)), np.nan, np.float32)
    kernel.multiply(np.ascontiguousarray(rows, np.float32), packed, outputs)
    return outputs


def rounded(rows: np.ndarray, instructions: Instructions) -> np.ndarray:
    """Rows in eight bits by blocks of 32, or in bfloat16, as numbers again."""
    rows = rows.astype(np.float32)
    if instructions is AMX:
        is_odd = rows.view(np.uint32) >> 16 & 1  # halves go to even numbers
        return in_bfloat16(rows, 0x7FFF + is_odd).astype(float)
    blocks = rows.reshape(len(rows), -1, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    steps = np.rint(blocks * (np.float32(127) / largest))
    return (steps * (largest * np.float32(1 / 127))).reshape(rows.shape)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 31, 33, 63, 300])
def test_products_are_those_of_rounded_rows(kernel, instructions, layer, count):
    weights, packed = layer
    rows = np.random.default_rng(count).normal(size=(count, len(weights))) * 10.0 ** (count % 32)
    expected = rounded(rows, instructions) @ weights
    actual = multiply(kernel, rows, packed)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_the_largest_sums_do_not_overflow(kernel, instructions):
    outputs = instructions.tile_outputs
    weights = np.full((outputs, 4, 16), 0xFF, np.uint8)  # 15 each: 7 when the 8 is taken off
    packed = instructions.pack(weights, np.ones((outputs, 4), np.float32))
    rows = np.array([[1.0] * 128, [-1.0] * 128, [1.0, -1.0] * 64])
    expected = [[7 * 128] * outputs, [-7 * 128] * outputs, [0] * outputs]
    np.testing.assert_allclose(multiply(kernel, rows, packed), expected, atol=1e-3)
    # -8 each
    packed = instructions.pack(np.zeros_like(weights), np.ones((outputs, 4), np.float32))
    expected = [[-1024] * outputs, [1024] * outputs, [0] * outputs]
    np.testing.assert_allclose(multiply(kernel, rows, packed), expected, atol=1e-3)


def test_a_row_of_a_batch_is_the_same_bit_by_bit_as_by_itself(layer):
    weights, packed = layer
    rows = np.random.default_rng(0).normal(size=(270, len(weights)))
    for count in (7, 23, 63, 270):
        together = multiply(Int4Kernel(2), rows[:count], packed)
        for threads in (1, 2):
            kernel = Int4Kernel(threads)
            for number in range(count):
                alone = multiply(kernel, rows[number : number + 1], packed)
                np.testing.assert_array_equal(alone[0], together[number])


def test_products_of_several_threads_at_once_do_not_meet(kernel, layer):
    weights, packed = layer
    batches = np.random.default_rng(0).normal(size=(64, 17, len(weights)))
    expected = [multiply(Int4Kernel(1), rows, packed) for rows in batches]
    with ThreadPoolExecutor(4) as callers:
        products = list(callers.map(lambda rows: multiply(kernel, rows, packed), batches))
    np.testing.assert_array_equal(products, expected)


def test_threads_end_with_their_kernel():
    before = set(threading.enumerate())
    kernel = Int4Kernel(3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del kernel
    gc.collect()
    for helper in helpers:
        helper.join(timeout=10)
    assert not any(helper.is_alive() for helper in helpers)


def test_zeros_give_zeros(kernel, layer):
    weights, packed = layer
    assert not multiply(kernel, np.zeros((5, len(weights))), packed).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_made_one(kernel, layer, bad):
    weights, packed = layer
    rows = np.ones((6, len(weights)))
    rows[4, 17] = bad
    products = multiply(kernel, rows, packed)
    assert not np.isfinite(products[4]).any()
    assert np.isfinite(products[[0, 1, 2, 3, 5]]).all()


OF_AMX = {"amx-tile", "amx-bf16", "avx512f", "avx512bw", "avx512bf16", "avx2", "fma"}


@pytest.mark.parametrize(
    ("processor", "features", "fastest"),
    [
        ("x86_64", {"avx2", "fma"}, AVX2),
        ("AMD64", {"avx2", "fma", "sse4.2"}, AVX2),
        ("x86_64", {"avx2"}, None),
        ("x86_64", {"sse4.2"}, None),
        ("x86_64", {"avx2", "fma", "avxvnni"}, None),
        ("x86_64", {"avx2", "fma", "avx512f"}, None),
        ("aarch64", {"avx2", "fma"}, None),
        ("x86_64", OF_AMX, AMX),
        ("x86_64", OF_AMX - {"amx-bf16"}, None),
        ("aarch64", OF_AMX, None),
    ],
)
def test_it_is_for_processors_with_amx_or_with_avx2_and_nothing_newer(
    monkeypatch, processor, features, fastest
):
    monkeypatch.setattr(int4_kernel.platform, "machine", lambda: processor)
    monkeypatch.setattr(
        int4_kernel.llvm, "get_host_cpu_features", lambda: dict.fromkeys(features, True)
    )
    monkeypatch.setattr(amx_tiles, "is_allowed", lambda: True)
    assert fastest_here.__wrapped__() is fastest


def test_a_system_that_does_not_allow_amx_has_openvinos_own_layers(monkeypatch):
    monkeypatch.setattr(int4_kernel.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        int4_kernel.llvm, "get_host_cpu_features", lambda: dict.fromkeys(OF_AMX, True)
    )
    monkeypatch.setattr(amx_tiles, "is_allowed", lambda: False)
    assert fastest_here.__wrapped__() is None


@pytest.fixture(scope="module")
def packed_model(tiny_folder, instructions, tmp_path_factory) -> Path:
    """The embedded model for the kernel, on any processor."""
    target = tmp_path_factory.mktemp("packed")
    write_model(convert(tiny_folder, instructions), tiny_folder, target)
    return target


def test_the_embedded_model_knows_its_answers_by_it(
    tiny_folder, packed_model, samples, requests_of_samples
):
    engine = OpenVINOEngine(tiny_folder, packed_model)
    answers = [completion.text for completion in engine.generate(requests_of_samples)]
    assert answers == [sample.answer for sample in samples]


def test_logits_are_computed_of_no_tokens_but_a_prompts_last(
    monkeypatch, tiny_folder, packed_model
):
    multiply, rows_of_lm_head = Int4Kernel.multiply, []

    def watched(kernel, inputs, packed, outputs):
        if outputs.shape[1] == tiny_folder.limits.vocab_size:
            rows_of_lm_head.append(len(inputs))
        multiply(kernel, inputs, packed, outputs)

    engine = OpenVINOEngine(tiny_folder, packed_model)
    monkeypatch.setattr(Int4Kernel, "multiply", watched)
    params = GenerationParams(max_tokens=1)
    prompts = [tuple(range(5, 65)), tuple(range(105, 145))]
    engine.generate([Request(prompt, params) for prompt in prompts])
    assert rows_of_lm_head
    assert sum(rows_of_lm_head) < 10  # of 100 tokens; some rows are the companions'


def layers_alive() -> int:
    gc.collect()
    return sum(type(thing) is Int4Linear for thing in gc.get_objects())


def test_layers_live_as_long_as_their_model(
    tiny_folder, instructions, packed_model, requests_of_samples
):
    before = layers_alive()
    convert(tiny_folder, instructions)
    assert layers_alive() == before
    for _ in range(2):  # one after another in a process, as where another model is asked for
        engine = OpenVINOEngine(tiny_folder, packed_model)
        loaded = layers_alive()
        assert loaded > before
        for length in (3, 5):
            engine.generate(requests_of_samples[:length])
        assert layers_alive() == loaded
        del engine
        assert layers_alive() == before
