import json
import shutil

import pytest

from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Checkpoint, Dimensions
from tests.conftest import TINY_CHECKPOINT

FILES = ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors")
WITH_TEMPLATE = (*FILES, "tokenizer_config.json")
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 2454272\n"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
# of a Phi-3-mini-128k, but for the number of factors
LONGROPE = {
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_parameters": None,
}


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded checkpoint that a test may damage."""
    return shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint")


@pytest.fixture
def edit(folder):
    """Applies a change to one of the copy's JSON files."""

    def edit(change, name="config.json"):
        file = folder / name
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        file.write_text(json.dumps(content), encoding="utf-8")

    return edit


@pytest.fixture
def sharded(folder):
    """The copy with its weights in two files; what is in them is not looked at."""
    (folder / "model.safetensors").unlink()
    for shard in SHARDS:
        (folder / shard).write_bytes(b"weights")
    weight_map = {"model.norm.weight": SHARDS[1], "b": SHARDS[0], "c": SHARDS[1]}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder


def refusal(path):
    """The one line in which a folder is refused."""
    with pytest.raises(InvalidModelError) as error:
        Checkpoint.open(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_says_what_it_is(folder):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint == Checkpoint(
        path=folder,
        context_length=4096,
        vocab_size=1024,
        end_token_ids=(1000, 1001, 1007),
        dtype="float16",
        files=WITH_TEMPLATE,
        dimensions=Dimensions(layers=4, key_value_heads=6, head_size=32, hidden_size=192),
    )
    assert checkpoint.model_type == "phi3"
    assert checkpoint.precision == "float16"


def test_a_path_may_be_a_string(folder):
    assert Checkpoint.open(str(folder)) == Checkpoint.open(folder)


def test_other_files_of_the_folder_do_not_matter(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "pytorch_model.bin").write_text(LFS_POINTER, encoding="utf-8")
    assert Checkpoint.open(folder).files == FILES


def test_an_adapter_that_only_some_machines_would_load_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert refusal(folder) == (
        f"{folder} has an adapter beside its weights: merge it into them (merge_and_unload of"
        " peft), or remove adapter_config.json"
    )


def test_a_manifest_holds_every_file_of_the_model(folder):
    manifest = Checkpoint.open(folder).read_manifest()
    assert {name: size for name, (size, _) in manifest.files.items()} == {
        name: (folder / name).stat().st_size for name in WITH_TEMPLATE
    }


# what is there


def test_no_folder_is_refused_by_its_path(tmp_path):
    assert refusal(tmp_path / "nowhere").startswith(f"no folder {tmp_path / 'nowhere'}")


def test_a_file_is_no_folder(folder):
    file = folder / "model.safetensors"
    assert refusal(file) == f"no folder {file}: give the folder of a Phi-3 checkpoint"


def test_a_folder_without_a_configuration_is_no_checkpoint(folder):
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder} has no config.json: it is not a Phi-3 checkpoint"


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refusal(folder).startswith(f"{folder} has no {name}")


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_named(folder, name):
    (folder / name).write_bytes(b"")
    assert refusal(folder) == (
        f"{folder} has no {name}, or an empty one: the build or the download is incomplete"
    )


@pytest.mark.parametrize("name", FILES)
def test_a_git_lfs_pointer_is_not_the_file(folder, name):
    (folder / name).write_text(LFS_POINTER, encoding="utf-8")
    message = refusal(folder)
    assert message.startswith(f"{folder / name} is a git-LFS pointer, not the file")
    assert "git lfs pull" in message


def test_weights_in_another_format_are_no_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(folder).startswith(f"{folder} has no model.safetensors")


def test_the_shards_of_an_index_are_files_of_the_model(sharded):
    assert Checkpoint.open(sharded).files == (*FILES[:3], INDEX, *SHARDS, *WITH_TEMPLATE[4:])


@pytest.mark.parametrize("shard", SHARDS)
def test_a_missing_shard_is_named(sharded, shard):
    (sharded / shard).unlink()
    assert refusal(sharded).startswith(f"{sharded} has no {shard}")


def test_a_shard_that_is_a_git_lfs_pointer_is_named(sharded):
    (sharded / SHARDS[1]).write_text(LFS_POINTER, encoding="utf-8")
    assert refusal(sharded).startswith(f"{sharded / SHARDS[1]} is a git-LFS pointer")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named(sharded, content):
    (sharded / INDEX).write_text(content, encoding="utf-8")
    assert refusal(sharded).startswith(f"{sharded / INDEX} is damaged: ")


def test_weights_in_one_file_come_before_an_index_as_they_do_for_transformers(folder, sharded):
    shutil.copy(TINY_CHECKPOINT / "model.safetensors", folder)
    assert Checkpoint.open(folder).files == WITH_TEMPLATE


# what is in it


@pytest.mark.parametrize("model_type", ["phi", "llama", "phi3_v", None])
def test_another_type_of_model_is_named(folder, edit, model_type):
    edit(lambda config: config.update(model_type=model_type))
    assert refusal(folder) == f"{folder} holds a model of type {model_type!r}, not 'phi3'"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "not json", "[]", "3", "null", "\xff"])
def test_a_damaged_configuration_is_named(folder, name, content):
    (folder / name).write_text(content, encoding="latin-1")
    assert refusal(folder).startswith(f"{folder / name} is damaged: ")


@pytest.mark.parametrize("key", ["vocab_size", "max_position_embeddings"])
def test_a_configuration_without_a_key_names_it(folder, edit, key):
    edit(lambda config: config.pop(key))
    assert refusal(folder) == f"{folder / 'config.json'} is damaged: KeyError {key!r}"


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": None},
        {"max_position_embeddings": "many"},
        {"rope_parameters": "default"},
        {"rope_parameters": ["default"]},
    ],
)
def test_a_configuration_with_something_else_in_a_key_is_damaged(folder, edit, change):
    edit(lambda config: config.update(change))
    assert refusal(folder).startswith(f"{folder / 'config.json'} is damaged: ")


def test_end_tokens_are_read_from_the_configuration_where_there_is_no_other_file(folder):
    (folder / "generation_config.json").unlink()
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.end_token_ids == (1000,)
    assert checkpoint.files == tuple(
        name for name in WITH_TEMPLATE if name != "generation_config.json"
    )


def test_end_tokens_are_read_from_the_configuration_where_the_other_file_has_none(folder, edit):
    edit(lambda generation: generation.pop("eos_token_id"), "generation_config.json")
    assert Checkpoint.open(folder).end_token_ids == (1000,)


def test_a_model_without_an_end_token_is_damaged(folder, edit):
    (folder / "generation_config.json").unlink()
    edit(lambda config: config.pop("eos_token_id"))
    assert refusal(folder) == f"{folder / 'config.json'} is damaged: KeyError 'eos_token_id'"


@pytest.mark.parametrize("kind", [{"rope_type": "longrope"}, {"type": "longrope"}, {"type": "su"}])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_a_longrope_model_has_the_context_of_its_short_factors(folder, edit, key, kind):
    edit(lambda config: config.update(LONGROPE | {key: kind}))
    assert Checkpoint.open(folder).context_length == 4096


@pytest.mark.parametrize("rope", [{"rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e4}}])
def test_a_model_of_ordinary_rope_has_the_context_of_its_positions(folder, edit, rope):
    edit(lambda config: config.update({"rope_parameters": None} | rope))
    edit(lambda config: config.update(max_position_embeddings=2048))
    assert Checkpoint.open(folder).context_length == 2048


def test_the_type_of_the_weights_may_be_spelled_the_old_way(folder, edit):
    edit(lambda config: config.pop("dtype"))
    edit(lambda config: config.update(torch_dtype="bfloat16"))
    assert Checkpoint.open(folder).dtype == "bfloat16"


def test_weights_of_no_type_are_float32(folder, edit):
    edit(lambda config: config.pop("dtype"))
    assert Checkpoint.open(folder).dtype == "float32"
