import json
import platform
import shutil
from dataclasses import replace

import pytest

from phi3_batch.engines import registry
from phi3_batch.engines.kv_budget import FEWEST_CACHE_TOKENS, MOST_CACHE_TOKENS
from phi3_batch.engines.native.spec import NATIVE
from phi3_batch.engines.onnxruntime.kv_capacity import cache_capacity
from phi3_batch.engines.onnxruntime.spec import ONNXRUNTIME_GENAI
from phi3_batch.engines.ov.spec import OPENVINO
from phi3_batch.engines.torch.spec import TRANSFORMERS
from phi3_batch.model_files import Checkpoint, Dimensions, ModelFolder
from tests.conftest import TINY_CHECKPOINT, TINY_MODEL

GB = 10**9


@pytest.fixture
def build(tmp_path):
    """A build of Phi-3-mini's sizes, with so many layers and bytes."""

    def make(layers, files_bytes):
        return of_sizes(ModelFolder.open(TINY_MODEL), tmp_path, layers, files_bytes)

    return make


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of Phi-3-mini's sizes, in 16 bits, with so many layers and bytes."""

    def make(layers, files_bytes):
        tiny = replace(Checkpoint.open(TINY_CHECKPOINT), dtype="bfloat16")
        return of_sizes(tiny, tmp_path, layers, files_bytes)

    return make


def of_sizes(folder, place, layers, files_bytes):
    with (place / "weights").open("wb") as weights:
        weights.truncate(int(files_bytes))  # sparse: it takes no disk
    return replace(
        folder,
        path=place,
        files=("weights",),
        dimensions=phi3_mini(layers),
        context_length=4096,
        vocab_size=32064,
    )


def phi3_mini(layers):
    return Dimensions(layers=layers, key_value_heads=32, head_size=96, hidden_size=3072)


@pytest.mark.parametrize(
    ("tokens", "capacity"),
    [(1, 512), (512, 512), (513, 1024), (1024, 1024), (2049, 4096), (4096, 4096), (9999, 4096)],
)
def test_the_cache_doubles_up_to_the_context(tokens, capacity):
    assert cache_capacity(tokens, 4096) == capacity


def test_a_cache_is_never_longer_than_the_context():
    assert cache_capacity(10, 300) == 300
    assert cache_capacity(600, 700) == 700


def test_a_token_of_phi3_mini_takes_0_8_mb_of_cache():
    assert phi3_mini(32).cache_bytes_per_token == 786_432


# peaks of one process with MLflow imported, as measured (VmHWM), one request of so many tokens
@pytest.mark.parametrize(
    ("layers", "files_gb", "tokens", "peak_gb"),
    [
        (4, 0.74, 2008, 1.80),
        (4, 0.74, 4008, 2.84),
        (8, 1.02, 176, 1.27),
        (8, 1.02, 488, 1.44),
        (8, 1.02, 1008, 1.81),
        (8, 1.02, 2008, 2.56),
        (8, 1.02, 4008, 3.87),
    ],
)
def test_what_onnx_builds_took_is_foretold_to_a_fifth(build, layers, files_gb, tokens, peak_gb):
    foretold = ONNXRUNTIME_GENAI.memory_bytes(build(layers, files_gb * GB), tokens)
    assert foretold == pytest.approx(peak_gb * GB, rel=0.2)


# the same of the checkpoints of these builds, in 16 bits, with batches as full as they get
@pytest.mark.parametrize(
    ("layers", "files_gb", "tokens", "peak_gb"),
    [(4, 1.30, 176, 4.83), (4, 1.30, 510, 5.71), (4, 1.30, 4090, 5.83), (8, 2.21, 176, 7.4)],
)
def test_what_checkpoints_took_is_foretold_to_a_fifth(
    checkpoint, layers, files_gb, tokens, peak_gb
):
    foretold = TRANSFORMERS.memory_bytes(checkpoint(layers, files_gb * GB), tokens)
    assert foretold == pytest.approx(peak_gb * GB, rel=0.2)


def test_a_batch_is_as_full_as_it_gets(checkpoint):
    def running(tokens):
        return TRANSFORMERS.memory_bytes(checkpoint(32, 0), tokens)

    assert running(100) < running(512) == running(4096)
    assert running(512) > 8192 * phi3_mini(32).cache_bytes_per_token


@pytest.mark.parametrize(
    "model", [ModelFolder.open(TINY_MODEL), Checkpoint.open(TINY_CHECKPOINT)], ids=["onnx", "torch"]
)
def test_more_tokens_take_more_memory_until_the_context_is_full(model):
    needs = [registry.memory_bytes(model, tokens) for tokens in (100, 3000, 4096, 5000, 10**9)]
    assert needs[0] < needs[1] <= needs[2] == needs[3] == needs[4]


def test_the_embedded_build_takes_what_python_takes():
    # measured: 0.24 GB at 100 tokens, 0.34 GB at 4,000
    folder = ModelFolder.open(TINY_MODEL)
    assert registry.memory_bytes(folder, 100, "onnxruntime-genai") == pytest.approx(
        0.3 * GB, rel=0.2
    )
    assert registry.memory_bytes(folder, 4000, "onnxruntime-genai") == pytest.approx(
        0.4 * GB, rel=0.2
    )


def test_the_native_engine_has_its_weights_once_and_a_cache_for_many_rows(build):
    # measured on 32 rows of 200 tokens on average: 1.6 GB
    foretold = NATIVE.memory_bytes(build(8, 1.02 * GB), 200)
    assert foretold == pytest.approx(1.6 * GB, rel=0.1)


def test_openvino_has_its_weights_twice_and_a_cache_for_many_rows(build):
    # measured on 32 rows of 200 tokens on average: 2.55 GB
    foretold = OPENVINO.memory_bytes(build(8, 1.02 * GB), 200)
    assert foretold == pytest.approx(2.55 * GB, rel=0.2)


# peaks when it was loaded and had answered a row, the cache not counted
@pytest.mark.parametrize(("layers", "files_gb", "peak_gb"), [(8, 1.02, 2.0), (32, 2.72, 5.3)])
def test_what_openvino_takes_without_its_cache_is_foretold(build, layers, files_gb, peak_gb):
    foretold = OPENVINO.memory_bytes(build(layers, files_gb * GB), 100)
    cache = FEWEST_CACHE_TOKENS * phi3_mini(layers).cache_values_per_token * 2
    assert foretold - cache == pytest.approx(peak_gb * GB, rel=0.05)


@pytest.mark.parametrize("engine", [NATIVE, OPENVINO], ids=lambda engine: engine.name)
def test_an_engine_has_no_larger_cache_than_it_takes(build, engine):
    def cached(tokens):
        return engine.memory_bytes(build(8, 0), tokens)

    most = MOST_CACHE_TOKENS * phi3_mini(8).cache_values_per_token * 2
    assert cached(2000) < cached(4096) == 300_000_000 + most


def test_a_forecast_is_of_the_engine_that_will_run(monkeypatch):
    folder = ModelFolder.open(TINY_MODEL)

    def foretold(choice, folder=folder):
        return registry.memory_bytes(folder, 4096, choice)

    monkeypatch.setattr(registry, "processor_flags", lambda: {"avx512_vnni"})
    assert foretold("auto") == foretold("native") != foretold("onnxruntime-genai")
    monkeypatch.setattr(registry, "processor_flags", lambda: {"amx_tile", "avx512_vnni"})
    assert foretold("auto") == foretold("openvino") != foretold("native")
    in_8_bits = replace(folder, quantization=replace(folder.quantization, bits=(4, 8)))
    assert foretold("auto", in_8_bits) == foretold("native", in_8_bits)
    monkeypatch.setattr("phi3_batch.engines.ov.spec.find_switch", lambda graph: 4096)
    assert foretold("auto") == foretold("native")
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert foretold("auto") == foretold("onnxruntime-genai")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_of_16_bits_take_twice_their_files_once_loaded(tmp_path, dtype):
    folder = shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}), encoding="utf-8")
    before = Checkpoint.open(folder)
    small = registry.memory_bytes(before, 100)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(2 * GB)  # sparse: it takes no disk
    grown = registry.memory_bytes(Checkpoint.open(folder), 100) - small
    # loading holds both, and is the peak
    assert grown / (2 * GB) == pytest.approx(2 if dtype == "float32" else 3, rel=0.05)
