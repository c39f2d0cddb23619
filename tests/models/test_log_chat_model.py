"""What stands in MLflow after the chat model was logged."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest

import phi3_batch
from phi3_batch.contract import model_metadata
from phi3_batch.errors import InvalidModelError, InvalidParameterError
from tests.models.conftest import ONNX_REQUIREMENTS

INPUTS = (
    "['messages': Array({content: string (required), name: string (optional),"
    " role: string (required)}) (required), 'temperature': double (optional),"
    " 'max_tokens': long (optional), 'stop': Array(string) (optional), 'n': long (optional),"
    " 'stream': boolean (optional)"
)
MORE = (
    ", 'choices': Array(string) (optional), 'repetition_penalty': double (optional),"
    " 'min_tokens': long (optional)"
)
OUTPUTS = (
    "['id': string (required), 'object': string (required), 'created': long (required),"
    " 'model': string (required), 'choices': Array({finish_reason: string (required),"
    " index: long (required), message: {content: string (required), name: string (optional),"
    " role: string (required)} (required)}) (required), 'usage': {completion_tokens:"
    " long (required), prompt_tokens: long (required), total_tokens: long (required)} (required)]"
)
PARAMS = (
    "['top_p': double (default: None), 'top_k': long (default: None),"
    " 'seed': long (default: None), 'repetition_penalty': double (default: None),"
    " 'min_tokens': long (default: None), 'logit_bias': string (default: None),"
    " 'choices': string (default: []) (shape: (-1,)),"
    " 'choices_by': string (default: None), 'json_schema': string (default: None),"
    " 'regex': string (default: None), 'logprobs': boolean (default: None),"
    " 'response_format': {json_schema: Any (optional), type: string (required)}"
    " (default: {'type': 'text'})]"
)
SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
MADRID = "The capital of Spain is Madrid."


def text(completions):
    return completions[0]["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def logged(in_store, tiny_folder):
    return phi3_batch.log_chat_model(
        tiny_folder.path, registered_model_name="phi3-chat", alias="champion"
    )


@pytest.fixture(scope="module")
def files(logged):
    return Path(mlflow.artifacts.download_artifacts(logged.model_uri))


@pytest.fixture
def count_logged(client, store):
    """How many runs and logged models there are."""
    return lambda: (
        len(client.search_runs([store[1]])),
        len(client.search_logged_models([store[1]])),
    )


def test_the_signature_reads_as_designed(logged):
    assert repr(logged.signature.inputs) == INPUTS + MORE + "]"
    assert repr(logged.signature.outputs) == OUTPUTS
    assert repr(logged.signature.params) == PARAMS


def test_the_signature_is_the_same_when_it_is_read_back(logged):
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert repr(signature.inputs) == INPUTS + MORE + "]"
    assert repr(signature.outputs) == OUTPUTS
    assert repr(signature.params) == PARAMS


def test_the_bare_form_is_the_cookbooks_to_the_letter(tiny_folder):
    bare = phi3_batch.log_chat_model(tiny_folder.path, params=False)
    signature = mlflow.models.get_model_info(bare.model_uri).signature
    assert repr(signature.inputs) == INPUTS + "]"
    assert repr(signature.outputs) == OUTPUTS
    assert signature.params is None
    assert text(mlflow.pyfunc.load_model(bare.model_uri).predict({"messages": SPAIN})) == MADRID


def test_the_metadata_name_the_task_and_the_package(logged):
    metadata = model_metadata(phi3_batch.__version__) | {"task": "llm/v1/chat"}
    assert logged.metadata == metadata
    assert mlflow.models.get_model_info(logged.model_uri).metadata == metadata


def test_the_requirements_are_pinned_and_have_no_torch(files):
    lines = (files / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(lines) == ONNX_REQUIREMENTS


def test_the_artifacts_are_named_and_hold_every_file_of_the_build(files, logged, tiny_folder):
    artifacts = logged.flavors["python_function"]["artifacts"]
    assert set(artifacts) == {"phi3-mini-onnx", "manifest", "engine"}
    build = files / artifacts["phi3-mini-onnx"]["path"]
    for name in tiny_folder.files:
        assert (build / name).read_bytes() == (tiny_folder.path / name).read_bytes()
    manifest = files / artifacts["manifest"]["path"]
    assert manifest.read_text(encoding="utf-8") == tiny_folder.read_manifest().to_json()


def test_the_package_travels_with_the_model(files):
    package = Path(phi3_batch.__file__).parent
    for module in ("__init__.py", "models/chat.py", "models/chats.py", "text/template.py"):
        carried = files / "code" / "phi3_batch" / module
        assert carried.read_bytes() == (package / module).read_bytes()


def test_the_model_is_code_and_no_pickle(files):
    assert (files / "chat_code.py").is_file()
    assert not list(files.rglob("*.pkl"))


def test_the_input_example_is_a_chat_that_the_model_answers(files, logged):
    example = json.loads((files / "input_example.json").read_text(encoding="utf-8"))
    assert example == {"messages": SPAIN, "temperature": 0.0, "max_tokens": 60}
    assert text(mlflow.pyfunc.load_model(logged.model_uri).predict(example)) == MADRID


def test_the_run_says_what_the_model_is(logged, client, tiny_folder):
    run = client.get_run(logged.run_id)
    digests = {name: sha256 for name, (_, sha256) in tiny_folder.read_manifest().files.items()}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "log phi3-chat"
    assert run.data.params == {
        "model_type": "phi3",
        "precision": "int4-block-32-acc-level-4",
        "context_length": "4096",
        "vocab_size": "1024",
        "size_mb": "2.5",
        "engine": "auto",
        **{f"sha256 {name}": sha256 for name, sha256 in digests.items()},
        # MLflow adds the model_config
        "model": "phi3-chat",
        **{key: str(value) for key, value in DEFAULTS.items()},
    }


def test_the_model_is_registered_under_its_alias(logged, client):
    registered = client.get_model_version_by_alias("phi3-chat", "champion")
    assert registered.version == logged.registered_model_version
    assert registered.run_id == logged.run_id
    model = mlflow.pyfunc.load_model("models:/phi3-chat@champion")
    assert model.metadata.model_id == logged.model_id
    assert text(model.predict({"messages": SPAIN})) == MADRID


def test_a_model_is_logged_into_the_active_run_which_goes_on(tiny_folder):
    with mlflow.start_run() as run:
        info = phi3_batch.log_chat_model(tiny_folder.path, name="in-a-run")
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert info.run_id == run.info.run_id
    assert info.registered_model_version is None
    assert info.name == "in-a-run"


# model_config


DEFAULTS = {
    "max_tokens": 256,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "stop": [],
    "seed": 0,
}


def test_without_a_model_config_the_defaults_are_there_to_be_overridden(logged):
    assert logged.flavors["python_function"]["config"] == {**DEFAULTS, "model": "phi3-chat"}
    model = mlflow.pyfunc.load_model(logged.model_uri, model_config={"max_tokens": 2})
    [completion] = model.predict({"messages": SPAIN})
    assert completion["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "config",
    [
        {"max_tokens": 60},
        {"max_tokens": 60, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 3},
        {"stop": ["Lisbon", "\n"]},
    ],
    ids=lambda config: " ".join(config),
)
def test_a_model_config_is_kept_beside_the_name(tiny_folder, config):
    info = phi3_batch.log_chat_model(tiny_folder.path, name="short", model_config=config)
    flavors = mlflow.models.get_model_info(info.model_uri).flavors
    assert flavors["python_function"]["config"] == {**DEFAULTS, **config, "model": "short"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_tokens": 1, "max_new_tokens": 60}, "there is no generation parameter"),
        ({"n": 2}, "there is no generation parameter 'n'"),
        ({"model": "other"}, "there is no generation parameter 'model'"),
        ({"max_tokens": 0}, "max_tokens must be 1 or above, not 0"),
        ({"max_tokens": None}, "max_tokens must be a whole number, not None"),
        ({"max_tokens": 60, "temperature": -1}, "temperature must be 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"stop": "Lisbon"}, "stop must be a list of strings"),
        ({"stop": [""]}, "stop must be a list of strings"),
    ],
    ids=str,
)
def test_a_model_config_that_cannot_be_followed_is_refused_before_anything_is_logged(
    tiny_folder, count_logged, config, said
):
    before = count_logged()
    with pytest.raises(InvalidParameterError, match=f"^{said}"):
        phi3_batch.log_chat_model(
            tiny_folder.path, model_config=config, registered_model_name="refused"
        )
    assert count_logged() == before
    assert mlflow.active_run() is None


@pytest.mark.parametrize(
    "config",
    [
        {"max_tokens": np.int64(60)},
        {"max_tokens": np.float64(60)},
        {"temperature": np.float64(0)},
        {"temperature": np.float32(0)},
        {"stop": [np.str_("Lisbon")]},
    ],
    ids=str,
)
def test_numpy_values_in_a_model_config_are_values(tiny_folder, config):
    info = phi3_batch.log_chat_model(tiny_folder.path, model_config=config)
    assert text(mlflow.pyfunc.load_model(info.model_uri).predict({"messages": SPAIN})) == MADRID


def test_an_alias_needs_a_name_to_belong_to(tiny_folder, count_logged):
    before = count_logged()
    with pytest.raises(InvalidParameterError, match="an alias needs a registered model name"):
        phi3_batch.log_chat_model(tiny_folder.path, alias="champion")
    assert count_logged() == before


def test_a_bad_folder_leaves_no_run_behind(tmp_path, count_logged):
    before = count_logged()
    with pytest.raises(InvalidModelError, match=r"has no genai_config\.json"):
        phi3_batch.log_chat_model(tmp_path)
    assert count_logged() == before
    assert mlflow.active_run() is None


# beside the prompt model


def test_a_chat_and_a_prompt_model_of_one_folder_share_one_engine(
    engines_loaded, logged, tiny_folder
):
    prompt_info = phi3_batch.log_prompt_model(tiny_folder.path)
    chat_model = mlflow.pyfunc.load_model(logged.model_uri)
    prompt_model = mlflow.pyfunc.load_model(prompt_info.model_uri)
    prompt = {"prompt": f"<|user|>\n{SPAIN[0]['content']}<|end|>\n<|assistant|>\n"}
    for _ in range(2):
        assert text(chat_model.predict({"messages": SPAIN})) == MADRID
        assert prompt_model.predict(prompt) == [MADRID]
    assert len(engines_loaded) == 1


# the tokenizer


def test_a_tokenizer_without_the_chat_format_is_refused_and_the_advice_helps(
    tiny_folder, with_chatml, count_logged
):
    folder, before = with_chatml(tiny_folder.path), count_logged()
    with pytest.raises(InvalidModelError) as error:
        phi3_batch.log_chat_model(folder, registered_model_name="refused")
    assert str(error.value) == (
        f"{folder} cannot answer chats: its tokenizer lacks <|user|>, <|end|> of its chat"
        " template; put the model's own chat_template.jinja there, or log it as a model of raw"
        " prompts (phi3-batch log prompt)"
    )
    assert count_logged() == before
    prompt = "<|im_start|>\nWhat is the capital of Spain?<|im_end|>\n<|assistant|>\n"
    model = mlflow.pyfunc.load_model(phi3_batch.log_prompt_model(folder).model_uri)
    assert model.predict({"prompt": prompt}) == [MADRID]

    chatml = "{% for m in messages %}<|im_start|>\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(chatml + "<|assistant|>\n", encoding="utf-8")
    model = mlflow.pyfunc.load_model(phi3_batch.log_chat_model(folder).model_uri)
    [answer] = model.predict(
        {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
    )
    assert answer["choices"][0]["message"]["content"] == MADRID


@pytest.mark.parametrize(
    ("vocab_size", "logs", "what", "token_id"),
    [
        (1010, ["chat"], "<|user|> is", 1010),
        (999, ["chat", "prompt"], "its vocabulary goes up to", 999),
    ],
)
def test_the_tokenizer_of_a_larger_model_is_refused(
    tiny_folder, tmp_path, count_logged, vocab_size, logs, what, token_id
):
    folder = Path(shutil.copytree(tiny_folder.path, tmp_path / "build"))
    file = folder / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["vocab_size"] = vocab_size
    file.write_text(json.dumps(config), encoding="utf-8")
    before = count_logged()
    for form in logs:
        with pytest.raises(InvalidModelError) as error:
            getattr(phi3_batch, f"log_{form}_model")(folder)
        assert str(error.value) == (
            f"{folder} has the tokenizer of another model: {what} id {token_id}, and the model"
            f" knows {vocab_size} tokens; put the tokenizer.json there that the model came with"
        )
    assert count_logged() == before


def test_a_file_that_is_no_tokenizer_is_refused(tiny_folder, tmp_path, count_logged):
    folder = Path(shutil.copytree(tiny_folder.path, tmp_path / "build"))
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    before = count_logged()
    for log in (phi3_batch.log_prompt_model, phi3_batch.log_chat_model):
        with pytest.raises(InvalidModelError, match=r"is not a tokenizer\.json"):
            log(folder)
    assert count_logged() == before
