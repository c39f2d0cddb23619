import dataclasses
import json
import shutil

import pytest

from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Dimensions, Manifest, ModelFolder
from phi3_batch.model_files.onnx_build import Quantization
from tests.conftest import TINY_MODEL

FILES = ("genai_config.json", "tokenizer.json", "model.onnx", "model.onnx.data")
WITH_TEMPLATE = (*FILES, "tokenizer_config.json")
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 2454272\n"


def refusal(path):
    """The one line in which a folder is refused."""
    with pytest.raises(InvalidModelError) as error:
        ModelFolder.open(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def replace_bytes(file, old, new):
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))


def test_a_build_says_what_it_is(build):
    folder = ModelFolder.open(build)
    assert folder.path == build
    assert folder.model_type == "phi3"
    assert folder.context_length == 4096
    assert folder.vocab_size == 1024
    assert folder.end_token_ids == (1000, 1001, 1007)
    assert folder.quantization == Quantization(bits=(4,), block_size=32, accuracy_level=4)
    assert str(folder.quantization) == "int4-block-32-acc-level-4"
    assert folder.sliding_window == {}
    assert folder.files == WITH_TEMPLATE
    assert folder.dimensions == Dimensions(
        layers=4, key_value_heads=6, head_size=32, hidden_size=192
    )


def test_a_path_may_be_a_string(build):
    assert ModelFolder.open(str(build)) == ModelFolder.open(build)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(build, name):
    (build / name).unlink()
    assert refusal(build).startswith(f"{build} has no {name}")


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_an_empty_file_is_named(build, name):
    (build / name).write_bytes(b"")
    assert refusal(build) == (
        f"{build} has no {name}, or an empty one: the build or the download is incomplete"
    )


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_a_git_lfs_pointer_is_not_the_file(build, name):
    (build / name).write_text(LFS_POINTER, encoding="utf-8")
    message = refusal(build)
    assert message.startswith(f"{build / name} is a git-LFS pointer, not the file")
    assert "git lfs pull" in message


def test_other_files_of_the_folder_do_not_matter(build):
    (build / "tokenizer_config.json").unlink()
    (build / "config.json").write_text(LFS_POINTER, encoding="utf-8")
    assert ModelFolder.open(build).files == FILES


def test_no_folder_is_refused_by_its_path(tmp_path):
    assert refusal(tmp_path / "nowhere").startswith(f"no folder {tmp_path / 'nowhere'}")


def test_a_file_is_no_folder(build):
    assert refusal(build / "model.onnx").startswith(f"no folder {build / 'model.onnx'}")


def test_a_folder_above_the_build_is_told_where_it_is(build, tmp_path):
    deep = tmp_path / "download" / "cpu_and_mobile" / "cpu-int4"
    shutil.move(build, deep)
    assert refusal(tmp_path / "download") == (
        f"{tmp_path / 'download'} has no genai_config.json; did you mean {deep}?"
    )


def test_a_folder_without_a_build_is_told_so(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path} has no genai_config.json: it is not an ONNX build of Phi-3"
    )


@pytest.mark.parametrize("model_type", ["phi", "llama", "phi3v", None])
def test_another_type_of_model_is_named(build, edit_config, model_type):
    edit_config(lambda config: config["model"].update(type=model_type))
    assert refusal(build) == f"{build} holds a model of type {model_type!r}, not 'phi3'"


@pytest.mark.parametrize("content", ["{", "not json", "[]", "3", "null", '{"model": 3}', "\xff"])
def test_a_damaged_configuration_is_named(build, content):
    (build / "genai_config.json").write_text(content, encoding="latin-1")
    assert refusal(build).startswith(f"{build / 'genai_config.json'} is damaged: ")


@pytest.mark.parametrize("key", ["type", "decoder", "eos_token_id", "context_length", "vocab_size"])
def test_a_configuration_without_a_key_names_it(build, edit_config, key):
    edit_config(lambda config: config["model"].pop(key))
    assert refusal(build) == f"{build / 'genai_config.json'} is damaged: KeyError {key!r}"


def test_a_configuration_without_a_graph_names_the_key(build, edit_config):
    edit_config(lambda config: config["model"]["decoder"].pop("filename"))
    assert refusal(build).endswith("is damaged: KeyError 'filename'")


def test_a_graph_that_is_named_but_not_there_is_missed(build, edit_config):
    edit_config(lambda config: config["model"]["decoder"].update(filename="phi3.onnx"))
    assert refusal(build).startswith(f"{build} has no phi3.onnx")


def test_the_graph_may_have_any_name(build, edit_config):
    edit_config(lambda config: config["model"]["decoder"].update(filename="phi3.onnx"))
    (build / "model.onnx").rename(build / "phi3.onnx")
    assert ModelFolder.open(build).files[2:4] == ("phi3.onnx", "model.onnx.data")


def test_one_end_token_may_stand_without_a_list(build, edit_config):
    edit_config(lambda config: config["model"].update(eos_token_id=32007))
    assert ModelFolder.open(build).end_token_ids == (32007,)


def test_a_sliding_window_is_read(build, edit_config):
    window = {"window_size": 2047, "layers": []}
    edit_config(lambda config: config["model"]["decoder"].update(sliding_window=window))
    assert ModelFolder.open(build).sliding_window == window


def test_a_graph_without_quantised_nodes_is_not_int4(build):
    replace_bytes(build / "model.onnx", b"MatMulNBits", b"MatMulFBits")
    message = refusal(build)
    assert message.startswith(f"{build / 'model.onnx'} is not int4")
    assert message.endswith("use an int4 build")


def test_a_graph_cut_short_is_named(build):
    graph = build / "model.onnx"
    data = graph.read_bytes()
    # in the middle of the name of the file that holds the weights
    graph.write_bytes(data[: data.index(b"model.onnx.data") + 1])
    assert str(graph) in refusal(build)


def test_weights_of_eight_bits_are_refused(build):
    replace_bytes(build / "model.onnx", b"\x0a\x04bits\x18\x04", b"\x0a\x04bits\x18\x08")
    assert refusal(build) == f"{build / 'model.onnx'} has 8-bit weights; use an int4 build"


@pytest.mark.parametrize("which", ["first", "last"])
def test_layers_of_eight_bits_among_those_of_four_are_told(build, which):
    graph = build / "model.onnx"
    data = graph.read_bytes()
    four, eight = b"\x0a\x04bits\x18\x04", b"\x0a\x04bits\x18\x08"
    place = data.index(four) if which == "first" else data.rindex(four)
    graph.write_bytes(data[:place] + eight + data[place + len(four) :])
    assert ModelFolder.open(build).precision == "int4+int8-block-32-acc-level-4"


def test_layers_of_three_bits_are_refused(build):
    graph = build / "model.onnx"
    four, three = b"\x0a\x04bits\x18\x04", b"\x0a\x04bits\x18\x03"
    graph.write_bytes(graph.read_bytes().replace(four, three, 1))
    assert refusal(build) == f"{graph} has 3-bit and 4-bit weights; use an int4 build"


@pytest.mark.parametrize(
    ("varint", "block_size"),
    [
        (b"\x10", 16),
        (b"\x40", 64),
        (b"\x80\x01", 128),
        (b"\x80\x02", 256),
        (b"\x80\x80\x01", 16384),
    ],
)
def test_a_block_size_of_several_bytes_is_read(build, varint, block_size):
    attribute = b"\x0a\x0ablock_size\x18"
    replace_bytes(build / "model.onnx", attribute + b"\x20", attribute + varint)
    assert ModelFolder.open(build).quantization.block_size == block_size


def test_a_graph_without_an_accuracy_level_has_level_0(build):
    replace_bytes(build / "model.onnx", b"\x0a\x0eaccuracy_level", b"\x0a\x0eaccuracy_LEVEL")
    assert ModelFolder.open(build).quantization.accuracy_level == 0


def test_a_manifest_holds_size_and_digest_of_every_file(build):
    manifest = ModelFolder.open(build).read_manifest()
    assert tuple(manifest.files) == WITH_TEMPLATE
    assert [size for size, _ in manifest.files.values()] == [
        (build / name).stat().st_size for name in WITH_TEMPLATE
    ]
    (build / "model.onnx").write_bytes(b"")
    (build / "abc").write_bytes(b"abc")
    # SHA-256 of "abc", from FIPS 180-2
    folder = dataclasses.replace(ModelFolder.open(TINY_MODEL), path=build, files=("abc",))
    assert folder.read_manifest().files == {
        "abc": (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    }


def test_a_manifest_survives_its_journey_as_json(build):
    manifest = ModelFolder.open(build).read_manifest()
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.digest == manifest.digest


def test_a_digest_does_not_depend_on_the_folder(build, tiny_folder):
    copy = ModelFolder.open(build).read_manifest()
    assert copy.digest == tiny_folder.read_manifest().digest


def test_a_digest_does_not_depend_on_the_order_of_the_files():
    a, b = ("a", (1, "x")), ("b", (2, "y"))
    assert Manifest(dict([a, b])).digest == Manifest(dict([b, a])).digest


@pytest.mark.parametrize("name", FILES)
def test_a_digest_changes_with_any_byte(build, name):
    folder = ModelFolder.open(build)
    before = folder.read_manifest().digest
    data = bytearray((build / name).read_bytes())
    data[-1] ^= 1
    (build / name).write_bytes(data)
    assert folder.read_manifest().digest != before


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": [1]}', '{"a": ["x", "y"]}', "null"])
def test_what_is_no_manifest_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011  # json's own, and others
        Manifest.from_json(text)


def test_the_manifest_is_plain_json(build):
    manifest = ModelFolder.open(build).read_manifest()
    assert set(json.loads(manifest.to_json())) == set(WITH_TEMPLATE)
