import logging
import os
import platform
import sys
import weakref
from pathlib import Path

import pytest

from phi3_batch.contract import ENGINE_VARIABLE, LOADED_ENGINE_VARIABLE, loaded_engine
from phi3_batch.engines import spec, this_process
from phi3_batch.engines.ov import cache as openvino_cache
from phi3_batch.engines.ov import engine as openvino
from phi3_batch.engines.ov.engine import MODEL_BIN, MODEL_XML, OpenVINOEngine
from phi3_batch.engines.ov.int4_kernel import AMX, AVX2
from phi3_batch.errors import (
    EngineError,
    InvalidModelError,
    InvalidParameterError,
    UnsupportedModelError,
)
from phi3_batch.model_files import ModelFolder

OPENVINO, ONNXRUNTIME = "openvino-genai ", "onnxruntime-genai "


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def load(path, choice="auto"):
    folder = ModelFolder.open(path)
    return this_process.engine(folder, folder.read_manifest(), choice)


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    this_process.reset()
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    monkeypatch.delenv(LOADED_ENGINE_VARIABLE, raising=False)


@pytest.fixture
def cache_root(monkeypatch, tmp_path):
    """Where converted models are kept, with none in it yet."""
    monkeypatch.setattr(openvino_cache, "places", lambda _: [tmp_path / "cache"])
    return tmp_path / "cache"


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
    old = weakref.ref(load(tiny_folder.path))
    old_still_there = []

    class WatchedEngine(OpenVINOEngine):
        def __init__(self, *arguments):
            old_still_there.append(old() is not None)
            super().__init__(*arguments)

    monkeypatch.setattr(openvino, "OpenVINOEngine", WatchedEngine)
    load(another_build)
    assert old_still_there == [False]


def test_a_model_that_cannot_be_loaded_leaves_the_way_free_for_the_next(tiny_folder, build):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(EngineError):
        load(build)
    assert load(tiny_folder.path).name.startswith(OPENVINO)


def test_loading_is_logged_with_its_time(caplog, tiny_folder, another_build):
    load(tiny_folder.path)
    with caplog.at_level(logging.INFO, "phi3_batch.engines.process"):
        load(another_build)
        load(another_build)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"loaded {OPENVINO}")


def test_a_choice_is_followed(tiny_folder):
    assert load(tiny_folder.path, "onnxruntime-genai").name.startswith(ONNXRUNTIME)
    assert load(tiny_folder.path, "openvino").name.startswith(OPENVINO)


def test_the_environment_overrides_a_choice(monkeypatch, tiny_folder):
    monkeypatch.setenv(ENGINE_VARIABLE, "onnxruntime-genai")
    assert load(tiny_folder.path, "openvino").name.startswith(ONNXRUNTIME)


def test_the_environment_of_a_machine_may_be_wrong(monkeypatch, tiny_folder):
    monkeypatch.setenv(ENGINE_VARIABLE, "vllm")
    with pytest.raises(InvalidParameterError, match="PHI3_BATCH_ENGINE"):
        load(tiny_folder.path)


def test_what_is_loaded_can_be_asked(tiny_folder):
    assert loaded_engine() is None
    engine = load(tiny_folder.path)
    assert loaded_engine() == engine.name


def another_processor(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    return "there is no openvino for aarch64"


def not_installed(monkeypatch):
    def version(name):
        if name == "openvino-genai":
            raise spec.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(spec, "version", version)
    return "openvino-genai is not installed"


def broken_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "phi3_batch.engines.ov.engine", None)
    return "OpenVINO cannot be imported"


def unknown_graph(monkeypatch):
    def refuse(*_):
        raise UnsupportedModelError("OpenVINO cannot run this model: it is another")

    monkeypatch.setattr(openvino_cache, "convert", refuse)
    return "OpenVINO cannot run this model: it is another"


def nowhere_to_write(monkeypatch):
    def refuse(model, folder, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(openvino_cache, "write_model", refuse)
    return "OpenVINO's model cannot be written: No space left on device"


PROBLEMS = [another_processor, not_installed, broken_package, unknown_graph, nowhere_to_write]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_auto_falls_back_with_one_line_and_right_answers(
    monkeypatch, caplog, cache_root, tiny_folder, samples, requests_of_samples, problem
):
    reason = problem(monkeypatch)
    engine = load(tiny_folder.path)
    assert engine.name.startswith(ONNXRUNTIME)
    (line,) = [line for line in caplog.messages if "onnxruntime-genai runs the model" in line]
    assert line.startswith(f"onnxruntime-genai runs the model: {reason}")
    answers = [completion.text for completion in engine.generate(requests_of_samples[:20])]
    assert answers == [sample.answer for sample in samples[:20]]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_openvino_or_nothing_is_an_error(monkeypatch, cache_root, tiny_folder, problem):
    reason = problem(monkeypatch)
    with pytest.raises(EngineError, match=f"^{reason}"):
        load(tiny_folder.path, "openvino")


def test_the_converted_model_is_kept_for_the_next_process(
    monkeypatch, cache_root, tiny_folder, samples, requests_of_samples
):
    load(tiny_folder.path, "openvino")
    this_process.reset()
    unknown_graph(monkeypatch)  # another conversion would fail
    answers = load(tiny_folder.path, "openvino").generate(requests_of_samples[:20])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples[:20]]


def test_machines_that_multiply_in_other_ways_do_not_share_a_converted_model(
    monkeypatch, cache_root, tiny_folder
):
    for fastest in (AVX2, None, AMX, AVX2):
        monkeypatch.setattr(
            openvino_cache, "instructions_for", lambda folder, fastest=fastest: fastest
        )
        with openvino_cache.converted_model(tiny_folder, tiny_folder.read_manifest()) as path:
            graph = (path / MODEL_XML).read_text(encoding="utf-8")
            assert ("Int4Linear" in graph) is (fastest is not None)
    assert len(list(cache_root.glob("*/"))) == 3


def test_what_a_conversion_has_let_go_of_is_no_longer_in_memory(
    monkeypatch, cache_root, tiny_folder
):
    convert, full, last = openvino_cache.convert, 0, []

    def convert_with_many_tensors(*arguments):
        nonlocal full
        tensors = [b"x" * 100_000 for _ in range(2_000)]  # too small for pages of their own
        last.append(tensors[-1])  # at the heap's end: what is below stays with the process
        full = resident_bytes()
        return convert(*arguments)

    monkeypatch.setattr(openvino_cache, "convert", convert_with_many_tensors)
    with openvino_cache.converted_model(tiny_folder, tiny_folder.read_manifest()):
        assert resident_bytes() < full - 100_000_000


def test_a_damaged_converted_model_is_repaired_with_one_line(
    monkeypatch, caplog, cache_root, tiny_folder, samples, requests_of_samples
):
    load(tiny_folder.path, "openvino")
    this_process.reset()
    (weights,) = cache_root.glob(f"*/{MODEL_BIN}")
    damaged = bytearray(weights.read_bytes())
    damaged[1000:2000] = bytes(1000)
    weights.write_bytes(damaged)
    answers = load(tiny_folder.path, "openvino").generate(requests_of_samples[:20])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples[:20]]
    assert [line for line in caplog.messages if "damaged" in line] == [
        f"{weights.parent} is damaged, and is made again"
    ]


def test_a_cache_that_others_can_write_to_is_left_alone_with_one_line(
    monkeypatch, caplog, tmp_path, tiny_folder
):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(0o777)  # as XDG_CACHE_HOME=/tmp/x may be
    monkeypatch.setattr(openvino_cache, "places", lambda _: [shared / "phi3_batch", own])
    with openvino_cache.converted_model(tiny_folder, tiny_folder.read_manifest()) as path:
        assert path.parent == own
    assert caplog.messages == [
        f"nothing is kept in {shared}, for others can write to it;"
        " XDG_CACHE_HOME or TMPDIR names another place"
    ]


def damage(file):
    """Turn bytes over, and leave the size and the time of the last change as they were."""
    before, content = file.stat(), bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = (byte ^ 0x55 for byte in content[middle : middle + 1000])
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("choice", ["openvino", "onnxruntime-genai"])
@pytest.mark.usefixtures("cache_root")
def test_damaged_weights_are_refused_and_no_conversion_of_them_is_kept(
    monkeypatch, tiny_folder, build, samples, requests_of_samples, choice
):
    logged = tiny_folder.read_manifest()
    damage(build / "model.onnx.data")
    with pytest.raises(InvalidModelError, match=r"model\.onnx\.data is not the file"):
        this_process.engine(ModelFolder.open(build), logged, choice)
    answers = this_process.engine(tiny_folder, logged, choice).generate(requests_of_samples[:20])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples[:20]]


@pytest.mark.parametrize("restored", [False, True])
def test_weights_that_change_while_they_are_converted_are_not_kept(
    monkeypatch, cache_root, tiny_folder, build, restored
):
    convert, data = openvino_cache.convert, build / "model.onnx.data"
    good = data.read_bytes()

    def convert_what_changes(*arguments):
        damage(data)
        try:
            return convert(*arguments)
        finally:
            if restored:
                data.write_bytes(good)

    monkeypatch.setattr(openvino_cache, "convert", convert_what_changes)
    with pytest.raises(InvalidModelError, match=r"model\.onnx\.data was written to while"):
        this_process.engine(ModelFolder.open(build), tiny_folder.read_manifest(), "openvino")
    assert list(cache_root.glob("*/")) == []


def test_a_disk_that_takes_nothing_leaves_the_model_in_memory(
    monkeypatch, caplog, tmp_path, tiny_folder, samples, requests_of_samples
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(openvino_cache, "places", lambda _: [tmp_path / "file" / "cache"])
    before = set(Path("/dev/shm").iterdir())
    answers = load(tiny_folder.path, "openvino").generate(requests_of_samples[:20])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples[:20]]
    (line,) = [line for line in caplog.messages if "in memory" in line]
    assert line.startswith("the converted model is kept in memory, not on disk: ")
    assert {file.name for file in set(Path("/dev/shm").iterdir()) - before} == set()
