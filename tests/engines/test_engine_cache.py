import logging
import weakref

import pytest

from phi3_batch.engines import ModelFolder, cache, get_engine, onnxruntime_genai
from phi3_batch.engines.onnxruntime_genai import OnnxRuntimeGenAIEngine
from phi3_batch.errors import EngineError


def load(path):
    folder = ModelFolder.open(path)
    return get_engine(folder, folder.read_manifest())


@pytest.fixture
def another_build(build):
    """The same model in a folder of its own, and one byte longer in its configuration."""
    file = build / "genai_config.json"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return build


def test_the_same_model_is_loaded_once(tiny_folder):
    assert load(tiny_folder.path) is load(tiny_folder.path)


def test_the_same_model_in_another_folder_is_the_same_engine(tiny_folder, build):
    assert load(build) is load(tiny_folder.path)


def test_another_model_takes_the_place_of_the_one_before(tiny_folder, another_build):
    first = load(tiny_folder.path)
    second = load(another_build)
    assert second is not first
    assert load(another_build) is second
    assert load(tiny_folder.path) is not first


def test_old_weights_are_let_go_before_new_ones_are_read(monkeypatch, tiny_folder, another_build):
    monkeypatch.setattr(cache, "_loaded", None)
    old = weakref.ref(load(tiny_folder.path))
    old_still_there = []

    class WatchedEngine(OnnxRuntimeGenAIEngine):
        def __init__(self, folder):
            old_still_there.append(old() is not None)
            super().__init__(folder)

    monkeypatch.setattr(onnxruntime_genai, "OnnxRuntimeGenAIEngine", WatchedEngine)
    load(another_build)
    assert old_still_there == [False]


def test_a_model_that_cannot_be_loaded_leaves_the_way_free_for_the_next(tiny_folder, build):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(EngineError):
        load(build)
    assert load(tiny_folder.path).name.startswith("onnxruntime-genai ")


def test_loading_is_logged_with_its_time(caplog, tiny_folder, another_build):
    load(tiny_folder.path)
    with caplog.at_level(logging.INFO, "phi3_batch.engines.cache"):
        load(another_build)
        load(another_build)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("loaded onnxruntime-genai ")
