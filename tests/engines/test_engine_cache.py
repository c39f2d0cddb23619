import logging
import os
import platform
import re
import sys
import weakref
from pathlib import Path

import pytest

from phi3_batch.contract import ENGINE_VARIABLE, LOADED_ENGINE_VARIABLE, loaded_engine
from phi3_batch.engines import registry, spec, this_process
from phi3_batch.engines.native import cache as native_cache
from phi3_batch.engines.native import engine as native
from phi3_batch.engines.native import library, packing
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.ov import cache as openvino_cache
from phi3_batch.engines.ov.engine import MODEL_XML
from phi3_batch.engines.ov.int4_kernel import AMX, AVX2
from phi3_batch.errors import (
    EngineError,
    InvalidModelError,
    InvalidParameterError,
    UnsupportedModelError,
)
from phi3_batch.model_files import ModelFolder

NATIVE, OPENVINO, ONNXRUNTIME = "native ", "openvino-genai ", "onnxruntime-genai "
NAMES = {"native": NATIVE, "openvino": OPENVINO, "onnxruntime-genai": ONNXRUNTIME}


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
    on_processor(monkeypatch, "avx2 avx512_vnni")


def on_processor(monkeypatch, flags):
    monkeypatch.setattr(registry, "processor_flags", lambda: frozenset(flags.split()))


@pytest.fixture
def cache_root(monkeypatch, tmp_path):
    """Where models are kept as engines run them, with none in it yet."""
    put_caches(monkeypatch, [tmp_path / "cache"])
    return tmp_path / "cache"


def put_caches(monkeypatch, places):
    for cache in (native_cache, openvino_cache):
        monkeypatch.setattr(cache, "places", lambda _: places)


both = pytest.mark.parametrize("choice", ["native", "openvino"])


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

    class WatchedEngine(NativeEngine):
        def __init__(self, *arguments):
            old_still_there.append(old() is not None)
            super().__init__(*arguments)

    monkeypatch.setattr(native, "NativeEngine", WatchedEngine)
    load(another_build)
    assert old_still_there == [False]


def test_a_model_that_cannot_be_loaded_leaves_the_way_free_for_the_next(tiny_folder, build):
    data = build / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(EngineError):
        load(build)
    assert load(tiny_folder.path).name.startswith(NATIVE)


def test_loading_is_logged_with_its_time(caplog, tiny_folder, another_build):
    load(tiny_folder.path)
    with caplog.at_level(logging.INFO, "phi3_batch.engines.process"):
        load(another_build)
        load(another_build)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"loaded {NATIVE}")


@pytest.mark.parametrize("choice", NAMES)
def test_a_choice_is_followed(tiny_folder, choice):
    assert load(tiny_folder.path, choice).name.startswith(NAMES[choice])


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("sse4_2", OPENVINO),
        ("avx2", NATIVE),
        ("avx2 avx_vnni", OPENVINO),
        ("avx2 avx512f", OPENVINO),
        ("avx2 avx512f avx512_vnni", NATIVE),
        ("avx2 avx512_vnni amx_tile amx_bf16", OPENVINO),
    ],
)
def test_auto_is_the_fastest_on_a_processor(monkeypatch, tiny_folder, flags, name):
    on_processor(monkeypatch, flags)
    assert load(tiny_folder.path).name.startswith(name)


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


def another_processor(monkeypatch, choice):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    return f"there is no {choice} for aarch64"


def not_installed(monkeypatch, choice):
    wanted = {"native": "onnx", "openvino": "openvino-genai"}[choice]

    def version(name):
        if name == wanted:
            raise spec.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(spec, "version", version)
    return f"{wanted} is not installed"


def not_compiled(monkeypatch, choice):
    there_is = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self.suffix != ".so" and there_is(self))
    return r"its libphi3.so was not compiled: install phi3-batch with pip"


def broken_package(monkeypatch, choice):
    monkeypatch.setitem(sys.modules, "phi3_batch.engines.ov.engine", None)
    return "OpenVINO cannot be imported"


def broken_library(monkeypatch, choice):
    def load():
        raise OSError("libphi3.so: file too short")

    monkeypatch.setattr(library, "load", load)
    return "the native engine cannot load .*: libphi3.so: file too short"


def unknown_graph(monkeypatch, choice):
    words = {"native": "the native engine", "openvino": "OpenVINO"}[choice]

    def refuse(*_):
        raise UnsupportedModelError(f"{words} cannot run this model: it is another")

    monkeypatch.setattr(packing, "read_plan", refuse)
    monkeypatch.setattr(openvino_cache, "convert", refuse)
    return f"{words} cannot run this model: it is another"


def nowhere_to_write(monkeypatch, choice):
    def refuse(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(packing, "pack_model", refuse)
    monkeypatch.setattr(openvino_cache, "write_model", refuse)
    if choice == "openvino":
        return "OpenVINO's model cannot be written: No space left on device"
    return "the native engine cannot load .*: No space left on device"


PROBLEMS = [
    *[(choice, problem) for choice in ("native", "openvino") for problem in (
        another_processor, not_installed, unknown_graph, nowhere_to_write,
    )],
    ("native", not_compiled),
    ("native", broken_library),
    ("openvino", broken_package),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "problem"), PROBLEMS)
def test_auto_falls_back_with_one_line_and_right_answers(
    monkeypatch, caplog, cache_root, tiny_folder, samples, requests_of_samples, choice, problem
):
    monkeypatch.setattr(
        registry,
        "ONNX_ENGINES",
        [
            engine
            for engine in registry.ONNX_ENGINES
            if engine.name in (choice, "onnxruntime-genai")
        ],
    )
    reason = problem(monkeypatch, choice)
    engine = load(tiny_folder.path)
    assert engine.name.startswith(ONNXRUNTIME)
    (line,) = [line for line in caplog.messages if "onnxruntime-genai runs the model" in line]
    assert re.match(f"onnxruntime-genai runs the model: {reason}", line)
    answers = [completion.text for completion in engine.generate(requests_of_samples[:20])]
    assert answers == [sample.answer for sample in samples[:20]]


@pytest.mark.parametrize(("choice", "problem"), PROBLEMS)
def test_one_engine_or_nothing_is_an_error(monkeypatch, cache_root, tiny_folder, choice, problem):
    reason = problem(monkeypatch, choice)
    with pytest.raises(EngineError, match=f"^{reason}"):
        load(tiny_folder.path, choice)


def test_what_the_fastest_cannot_run_the_next_one_does(monkeypatch, caplog, tiny_folder):
    monkeypatch.setattr(packing, "read_plan", lambda *_: None)
    reason = not_installed(monkeypatch, "native")
    assert load(tiny_folder.path).name.startswith(OPENVINO)
    assert f"openvino runs the model: {reason}" in caplog.messages


@both
def test_what_an_engine_runs_is_kept_for_the_next_process(
    monkeypatch, cache_root, tiny_folder, samples, requests_of_samples, choice
):
    load(tiny_folder.path, choice)
    this_process.reset()
    unknown_graph(monkeypatch, choice)  # to make it again would fail
    answers = load(tiny_folder.path, choice).generate(requests_of_samples[:20])
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


@both
def test_what_was_damaged_is_repaired_with_one_line(
    caplog, cache_root, tiny_folder, samples, requests_of_samples, choice
):
    load(tiny_folder.path, choice)
    this_process.reset()
    (weights,) = cache_root.glob("*/*.bin")
    damaged = bytearray(weights.read_bytes())
    damaged[1000:2000] = bytes(1000)
    weights.write_bytes(damaged)
    answers = load(tiny_folder.path, choice).generate(requests_of_samples[:20])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples[:20]]
    assert [line for line in caplog.messages if "damaged" in line] == [
        f"{weights.parent} is damaged, and is made again"
    ]


@both
def test_a_cache_that_others_can_write_to_is_left_alone_with_one_line(
    monkeypatch, caplog, tmp_path, tiny_folder, choice
):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(0o777)  # as XDG_CACHE_HOME=/tmp/x may be
    put_caches(monkeypatch, [shared / "phi3_batch", own])
    load(tiny_folder.path, choice)
    assert len(list(own.glob("*/*.bin"))) == 1
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


@pytest.mark.parametrize("choice", NAMES)
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


@both
@pytest.mark.parametrize("restored", [False, True])
def test_weights_that_change_while_they_are_read_are_not_kept(
    monkeypatch, cache_root, tiny_folder, build, restored, choice
):
    module, name = {
        "native": (packing, "pack_model"),
        "openvino": (openvino_cache, "convert"),
    }[choice]
    make, data = getattr(module, name), build / "model.onnx.data"
    good = data.read_bytes()

    def make_of_what_changes(*arguments):
        damage(data)
        try:
            return make(*arguments)
        finally:
            if restored:
                data.write_bytes(good)

    monkeypatch.setattr(module, name, make_of_what_changes)
    with pytest.raises(InvalidModelError, match=r"model\.onnx\.data was written to while"):
        this_process.engine(ModelFolder.open(build), tiny_folder.read_manifest(), choice)
    assert list(cache_root.glob("*/")) == []


def test_weights_that_are_kept_in_memory_are_there_to_the_last_byte(
    monkeypatch, tmp_path, cache_root, tiny_folder
):
    manifest = tiny_folder.read_manifest()
    on_disk = native_cache.packed_model(tiny_folder, manifest)
    (tmp_path / "file").write_text("")
    put_caches(monkeypatch, [tmp_path / "file" / "cache"])
    in_memory = native_cache.packed_model(tiny_folder, manifest)
    assert bytes(in_memory._weights) == bytes(on_disk._weights)


@both
def test_a_disk_that_takes_nothing_leaves_the_model_in_memory(
    monkeypatch, caplog, tmp_path, tiny_folder, samples, requests_of_samples, choice
):
    (tmp_path / "file").write_text("")
    put_caches(monkeypatch, [tmp_path / "file" / "cache"])
    before = set(Path("/dev/shm").iterdir())
    answers = load(tiny_folder.path, choice).generate(requests_of_samples[:20])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples[:20]]
    (line,) = [line for line in caplog.messages if "in memory" in line]
    word = {"native": "packed", "openvino": "converted"}[choice]
    assert line.startswith(f"the {word} model is kept in memory, not on disk: ")
    assert {file.name for file in set(Path("/dev/shm").iterdir()) - before} == set()
