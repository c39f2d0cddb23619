"""What stands in MLflow after the prompt model was logged."""

import json
from pathlib import Path

import mlflow
import pytest

import phi3_batch
from phi3_batch.contract import loaded_engine, model_metadata
from phi3_batch.engines import this_process
from phi3_batch.errors import InvalidModelError, InvalidParameterError
from tests.models.conftest import ONNX_REQUIREMENTS

INPUTS = "['prompt': string (required)]"
OUTPUTS = "[string (required)]"
PARAMS = (
    "['max_tokens': long (default: 256), 'temperature': double (default: 0.0),"
    " 'top_p': double (default: 1.0), 'top_k': long (default: 0),"
    " 'stop': string (default: []) (shape: (-1,)), 'seed': long (default: 0),"
    " 'repetition_penalty': double (default: 1.0), 'min_tokens': long (default: 0),"
    " 'logit_bias': string (default: ),"
    " 'choices': string (default: []) (shape: (-1,)),"
    " 'choices_by': string (default: likelihood), 'json_schema': string (default: ),"
    " 'regex': string (default: ), 'logprobs': boolean (default: False),"
    " 'usage': boolean (default: False)]"
)


@pytest.fixture(scope="module")
def files(logged):
    return Path(mlflow.artifacts.download_artifacts(logged.model_uri))


def test_the_signature_reads_as_designed(logged):
    assert repr(logged.signature.inputs) == INPUTS
    assert repr(logged.signature.outputs) == OUTPUTS
    assert repr(logged.signature.params) == PARAMS


def test_the_bare_form_takes_no_parameters(tiny_folder):
    bare = phi3_batch.log_prompt_model(tiny_folder.path, params=False)
    assert repr(bare.signature.inputs) == INPUTS
    assert repr(bare.signature.outputs) == OUTPUTS
    assert bare.signature.params is None
    assert mlflow.models.get_model_info(bare.model_uri).signature.params is None


def test_the_run_says_what_the_model_is(logged, client, tiny_folder):
    run = client.get_run(logged.run_id)
    digests = {name: sha256 for name, (_, sha256) in tiny_folder.read_manifest().files.items()}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "log phi3-prompt"
    assert run.data.params == {
        "model_type": "phi3",
        "precision": "int4-block-32-acc-level-4",
        "context_length": "4096",
        "vocab_size": "1024",
        "size_mb": "2.5",
        "engine": "auto",
        **{f"sha256 {name}": sha256 for name, sha256 in digests.items()},
    }


def test_the_requirements_are_pinned_and_have_no_torch(files):
    lines = (files / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(lines) == ONNX_REQUIREMENTS


def test_the_artifact_is_named_and_holds_every_file_of_the_build(files, logged, tiny_folder):
    artifacts = logged.flavors["python_function"]["artifacts"]
    assert set(artifacts) == {"phi3-mini-onnx", "manifest", "engine"}
    build = files / artifacts["phi3-mini-onnx"]["path"]
    for name in tiny_folder.files:
        assert (build / name).read_bytes() == (tiny_folder.path / name).read_bytes()


def test_the_manifest_travels_with_the_model(files, logged, tiny_folder):
    manifest = files / logged.flavors["python_function"]["artifacts"]["manifest"]["path"]
    assert manifest.read_text(encoding="utf-8") == tiny_folder.read_manifest().to_json()


def test_the_package_travels_with_the_model(files):
    package = Path(phi3_batch.__file__).parent
    carried = files / "code" / "phi3_batch"
    for module in ("__init__.py", "models/prompt.py", "engines/onnxruntime/engine.py"):
        assert (carried / module).read_bytes() == (package / module).read_bytes()
    assert not list(carried.rglob("*.pyc"))


def test_the_model_is_code_and_no_pickle(files):
    assert (files / "prompt_code.py").is_file()
    assert not list(files.rglob("*.pkl"))


def test_the_input_example_is_a_prompt_that_the_signature_takes(files):
    example = json.loads((files / "input_example.json").read_text(encoding="utf-8"))
    assert list(example) == ["prompt"]
    assert example["prompt"].startswith("<|user|>")


def test_the_metadata_say_which_package_logged_it(logged):
    assert logged.metadata == model_metadata(phi3_batch.__version__)


def test_the_artifacts_lie_in_the_store_and_nowhere_else(logged, store_folder):
    assert logged.artifact_path.startswith((store_folder / "artifacts").as_uri())


def test_the_model_is_registered_under_its_alias(logged, client):
    registered = client.get_model_version_by_alias("phi3", "champion")
    assert registered.version == logged.registered_model_version
    assert registered.run_id == logged.run_id
    alias = mlflow.models.get_model_info("models:/phi3@champion")
    assert alias.model_id == logged.model_id


def test_an_alias_moves_to_the_version_logged_last(tiny_folder, client):
    names = {"registered_model_name": "moving", "alias": "champion"}
    phi3_batch.log_prompt_model(tiny_folder.path, **names)
    phi3_batch.log_prompt_model(tiny_folder.path, **names)
    assert client.get_model_version_by_alias("moving", "champion").version == 2


def test_a_model_may_be_logged_without_being_registered(tiny_folder, client):
    before = len(client.search_registered_models())
    info = phi3_batch.log_prompt_model(tiny_folder.path, name="unregistered")
    assert info.registered_model_version is None
    assert info.name == "unregistered"
    assert len(client.search_registered_models()) == before


def test_a_model_is_logged_into_the_active_run_which_goes_on(tiny_folder, client):
    with mlflow.start_run() as run:
        info = phi3_batch.log_prompt_model(tiny_folder.path)
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert info.run_id == run.info.run_id
    assert client.get_run(run.info.run_id).data.params["model_type"] == "phi3"


def test_no_run_is_left_open(logged):
    assert logged.run_id
    assert mlflow.active_run() is None


@pytest.fixture
def count_runs(client, store):
    return lambda: len(client.search_runs([store[1]]))


def test_an_alias_needs_a_name_to_belong_to(tiny_folder, count_runs):
    before = count_runs()
    with pytest.raises(InvalidParameterError, match="an alias needs a registered model name"):
        phi3_batch.log_prompt_model(tiny_folder.path, alias="champion")
    assert count_runs() == before


def test_a_bad_folder_leaves_no_run_behind(tmp_path, count_runs):
    before = count_runs()
    with pytest.raises(InvalidModelError, match=r"has no genai_config\.json"):
        phi3_batch.log_prompt_model(tmp_path)
    assert count_runs() == before
    assert mlflow.active_run() is None


def test_the_engine_chosen_when_a_model_is_logged_travels_with_it(tiny_folder, monkeypatch):
    info = phi3_batch.log_prompt_model(tiny_folder.path, engine="onnxruntime-genai")
    assert mlflow.get_run(info.run_id).data.params["engine"] == "onnxruntime-genai"
    this_process.reset()
    mlflow.pyfunc.load_model(info.model_uri).predict({"prompt": "x"})
    assert loaded_engine().startswith("onnxruntime-genai ")


def test_an_engine_that_there_is_not_is_refused_before_anything_is_logged(tiny_folder):
    runs = len(mlflow.search_runs(search_all_experiments=True))
    with pytest.raises(InvalidParameterError, match="engine must be one of auto, native"):
        phi3_batch.log_prompt_model(tiny_folder.path, engine="vllm")
    assert len(mlflow.search_runs(search_all_experiments=True)) == runs
