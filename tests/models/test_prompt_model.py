"""The prompt model, as MLflow loads it."""

import json
import logging

import mlflow
import pandas as pd
import pytest

import phi3_batch
from phi3_batch.errors import InvalidModelError, InvalidParameterError
from phi3_batch.text import Message, Tokenizer

JOKE_PROMPT = (
    "<|system|>You are a stand-up comedian.<|end|><|user|>Tell me a joke about atom<|end|>"
    "<|assistant|>"
)
JOKE = "Why should you never trust an atom? Because they make up everything!"
SPAIN_PROMPT = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
MADRID = "The capital of Spain is Madrid."
USAGE_COLUMNS = [
    "completion",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "error",
]
LOGGER = "phi3_batch.models.prompt"


def prompts(*texts, dtype=object):
    return pd.DataFrame({"prompt": pd.Series(texts, dtype=dtype)})


@pytest.fixture
def encode(tiny_folder):
    return tiny_folder.tokenizer.encode_prompt


# what predict takes and gives


def test_the_comedian_tells_its_joke(model):
    assert model.predict({"prompt": JOKE_PROMPT}) == [JOKE]


@pytest.mark.parametrize(
    "model_input",
    [
        prompts(JOKE_PROMPT, SPAIN_PROMPT),
        {"prompt": [JOKE_PROMPT, SPAIN_PROMPT]},
        [{"prompt": JOKE_PROMPT}, {"prompt": SPAIN_PROMPT}],
    ],
    ids=["DataFrame", "dict with a list", "list of dicts"],
)
def test_prompts_come_in_many_forms(model, model_input):
    assert model.predict(model_input) == [JOKE, MADRID]


def test_a_list_of_one_prompt_is_one_row(model):
    assert model.predict({"prompt": [SPAIN_PROMPT]}) == [MADRID]


def test_an_empty_list_of_prompts_is_no_row(model):
    assert model.predict({"prompt": []}) == []


def test_other_columns_are_left_alone(model):
    table = prompts(SPAIN_PROMPT).assign(id=7)
    assert model.predict(table) == [MADRID]


def test_every_row_gets_its_own_answer_in_order(model, samples):
    chosen = samples[::7]
    completions = model.predict(prompts(*(sample.prompt for sample in chosen)))
    assert completions == [sample.answer for sample in chosen]


def test_the_index_of_the_table_does_not_matter(model):
    table = prompts(JOKE_PROMPT, SPAIN_PROMPT).set_index(pd.Index([9, 3]))
    assert model.predict(table) == [JOKE, MADRID]


@pytest.mark.parametrize("columns", [["text"], []])
def test_a_table_without_the_column_is_refused(model, columns):
    with pytest.raises(mlflow.MlflowException, match="Model is missing inputs \\['prompt'\\]"):
        model.predict(pd.DataFrame({name: ["Hi"] for name in columns}))


def test_an_empty_table_gives_no_rows(model):
    assert model.predict(prompts()) == []


def test_an_empty_table_gives_no_rows_of_the_usage_columns(model):
    result = model.predict(prompts(), params={"usage": True})
    assert len(result) == 0
    assert list(result.columns) == USAGE_COLUMNS


# parameters


def test_max_tokens_cuts_the_answer(model):
    result = model.predict({"prompt": SPAIN_PROMPT}, params={"max_tokens": 3, "usage": True})
    assert result.completion_tokens.tolist() == [3]
    assert result.finish_reason.tolist() == ["length"]
    assert MADRID.startswith(result.completion[0])


def test_stop_strings_cut_the_answer(model):
    params = {"stop": ["Madrid", "Lisbon"]}
    assert model.predict({"prompt": SPAIN_PROMPT}, params=params) == ["The capital of Spain is "]


def test_sampling_follows_its_seed(model):
    def sample(**params):
        options = {"temperature": 3.0, "max_tokens": 20, **params}
        return model.predict({"prompt": SPAIN_PROMPT}, params=options)

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    assert sample(top_k=1) == [MADRID]
    assert sample(top_p=1e-6) == [MADRID]


def test_sampled_copies_of_a_prompt_differ_and_come_again(model):
    def sample(*texts):
        return model.predict(prompts(*texts), params={"temperature": 3.0, "max_tokens": 20})

    copies = sample(*[SPAIN_PROMPT] * 5)
    assert len(set(copies)) == 5
    assert sample(*[SPAIN_PROMPT] * 5) == copies
    # whatever else is in the call, and where
    assert sample(JOKE_PROMPT, SPAIN_PROMPT, None, JOKE_PROMPT, SPAIN_PROMPT)[1::3] == copies[:2]


def test_a_prompt_that_differs_in_dropped_white_space_alone_is_another_prompt(model, encode):
    def sample(*texts):
        return model.predict(prompts(*texts), params={"temperature": 3.0, "max_tokens": 20})

    twin = SPAIN_PROMPT.replace("\n", "")
    assert encode(twin) == encode(SPAIN_PROMPT)
    alone = sample(SPAIN_PROMPT)
    assert sample(twin, SPAIN_PROMPT, twin)[1:2] == alone
    assert len({*sample(SPAIN_PROMPT, twin, SPAIN_PROMPT, twin)}) == 4


def test_greedy_copies_of_a_prompt_are_equal(model):
    assert model.predict(prompts(SPAIN_PROMPT, SPAIN_PROMPT)) == [MADRID] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("seed", -1),
        ("stop", [""]),
    ],
)
def test_a_parameter_out_of_range_is_named(model, name, value):
    with pytest.raises(InvalidParameterError, match=f"^{name} must be "):
        model.predict({"prompt": SPAIN_PROMPT}, params={name: value})


def test_numpy_numbers_are_numbers(model):
    params = {"max_tokens": pd.Series([3]).iloc[0], "temperature": pd.Series([0.0]).iloc[0]}
    assert model.predict({"prompt": SPAIN_PROMPT}, params=params)[0].startswith("The")


# usage and errors, row by row


def test_usage_gives_a_column_for_everything(model, tiny_engine):
    encode = tiny_engine.tokenizer
    prompt_tokens = len(encode.encode_prompt(SPAIN_PROMPT))
    completion_tokens = len(encode.encode_content(MADRID))
    result = model.predict({"prompt": SPAIN_PROMPT}, params={"usage": True})
    assert result.to_dict("records") == [
        {
            "completion": MADRID,
            "finish_reason": "stop",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "error": {"code": "", "message": ""},
        }
    ]
    assert list(result.columns) == USAGE_COLUMNS


BAD_ROWS = [
    (None, "null_prompt"),
    ("", "empty_prompt"),
    (" \n\t", "empty_prompt"),
    ("secret\x00", "invalid_text"),
    ("secret\ud800", "invalid_text"),
    ("secret " * 3000, "prompt_too_long"),
]


def test_bad_rows_cost_the_good_ones_nothing(model):
    bad = [text for text, _ in BAD_ROWS]
    table = prompts(SPAIN_PROMPT, *bad, JOKE_PROMPT)
    result = model.predict(table, params={"usage": True})
    assert [error["code"] for error in result.error] == [
        "",
        *(code for _, code in BAD_ROWS),
        "",
    ]
    assert result.completion.tolist() == [MADRID, *[""] * len(bad), JOKE]
    assert result.finish_reason.tolist() == ["stop", *[""] * len(bad), "stop"]


def test_nothing_in_the_usage_rows_is_null(model):
    table = prompts(SPAIN_PROMPT, *(text for text, _ in BAD_ROWS))
    result = model.predict(table, params={"usage": True})
    assert not result.isna().to_numpy().any()
    assert {type(value) for error in result.error for value in error.values()} == {str}
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert result[name].dtype == "int64"


def test_a_failed_row_is_an_empty_string_and_all_of_them_one_warning(model, caplog):
    table = prompts(SPAIN_PROMPT, *(text for text, _ in BAD_ROWS))
    with caplog.at_level(logging.WARNING, LOGGER):
        assert model.predict(table) == [MADRID, *[""] * len(BAD_ROWS)]
    [message] = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert message == (
        "6 of 7 prompts have no completion and give an empty string (null_prompt: 1,"
        " empty_prompt: 2, invalid_text: 2, prompt_too_long: 1);"
        " predict with params={'usage': True} says why row by row"
    )


def test_no_error_message_quotes_a_prompt(model):
    table = prompts(*(text for text, _ in BAD_ROWS))
    result = model.predict(table, params={"usage": True})
    assert all(error["message"] for error in result.error)
    assert not any("secret" in error["message"] for error in result.error)


def test_good_rows_give_no_warning(model, caplog):
    model.predict(prompts(SPAIN_PROMPT, JOKE_PROMPT))
    assert [record for record in caplog.records if record.name == LOGGER] == []


@pytest.mark.parametrize("null", [None, float("nan"), pd.NA], ids=repr)
@pytest.mark.parametrize("dtype", ["object", "string"])
def test_a_null_is_a_null_in_any_kind_of_column(model, null, dtype):
    result = model.predict(prompts(SPAIN_PROMPT, null, dtype=dtype), params={"usage": True})
    assert result.completion.tolist() == [MADRID, ""]
    assert [error["code"] for error in result.error] == ["", "null_prompt"]


# called without MLflow in between


@pytest.mark.parametrize(
    "model_input",
    [
        [JOKE_PROMPT, SPAIN_PROMPT],
        (JOKE_PROMPT, SPAIN_PROMPT),
        {"prompt": [JOKE_PROMPT, SPAIN_PROMPT]},
        prompts(JOKE_PROMPT, SPAIN_PROMPT),
        prompts(JOKE_PROMPT, SPAIN_PROMPT)["prompt"],
    ],
    ids=["list", "tuple", "dict", "DataFrame", "Series"],
)
def test_the_python_model_takes_prompts_in_any_container(model, model_input):
    assert model.unwrap_python_model().predict(None, model_input) == [JOKE, MADRID]


@pytest.mark.parametrize("model_input", [SPAIN_PROMPT, {"prompt": SPAIN_PROMPT}])
def test_the_python_model_takes_one_prompt(model, model_input):
    assert model.unwrap_python_model().predict(None, model_input) == [MADRID]


# loading


@pytest.fixture
def bare_model(tiny_folder):
    info = phi3_batch.log_prompt_model(tiny_folder.path, params=False)
    return mlflow.pyfunc.load_model(info.model_uri)


def test_the_bare_form_answers_too(bare_model):
    assert bare_model.predict(prompts(JOKE_PROMPT, SPAIN_PROMPT)) == [JOKE, MADRID]


def test_two_loads_of_a_model_share_one_engine(engines_loaded, logged, copy_of_model):
    for uri in (logged.model_uri, "models:/phi3@champion", str(copy_of_model)):
        assert mlflow.pyfunc.load_model(uri).predict({"prompt": SPAIN_PROMPT}) == [MADRID]
    assert len(engines_loaded) == 1


def test_loading_a_model_reads_no_weights(engines_loaded, logged):
    mlflow.pyfunc.load_model(logged.model_uri)
    assert engines_loaded == []


def test_a_copy_cut_short_is_refused_when_it_is_loaded(copy_of_model):
    [data] = copy_of_model.rglob("model.onnx.data")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(InvalidModelError) as error:
        mlflow.pyfunc.load_model(str(copy_of_model))
    assert str(error.value) == (
        f"{data} has 1000 bytes, 2454272 when it was logged:"
        " the copy is damaged, copy it again, or log the model again"
    )


def test_a_copy_without_its_tokenizer_is_refused_when_it_is_loaded(copy_of_model):
    [tokenizer] = copy_of_model.rglob("tokenizer.json")
    tokenizer.unlink()
    with pytest.raises(InvalidModelError, match=r"has no tokenizer\.json"):
        mlflow.pyfunc.load_model(str(copy_of_model))


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer.json", "model.onnx.data"])
def test_a_copy_with_a_wrong_byte_is_refused_when_it_is_loaded(copy_of_model, name):
    [file] = copy_of_model.rglob(name)
    content = bytearray(file.read_bytes())
    content[0] ^= 1  # no JSON any more, and yet the line says what happened
    file.write_bytes(content)
    with pytest.raises(InvalidModelError, match=f"^{file} is not the file that was logged"):
        mlflow.pyfunc.load_model(str(copy_of_model))


def test_a_copy_that_is_damaged_when_it_is_loaded_already_gives_no_answer(
    copy_of_model, engines_loaded
):
    model = mlflow.pyfunc.load_model(str(copy_of_model))
    [data] = copy_of_model.rglob("model.onnx.data")
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(InvalidModelError, match=f"^{data} is not the file that was logged"):
        model.predict({"prompt": SPAIN_PROMPT})
    assert engines_loaded == []


@pytest.mark.parametrize("text", ["", "{", '{"genai_config.json": 1}'])
def test_a_damaged_manifest_is_named(copy_of_model, text):
    [manifest] = copy_of_model.rglob("manifest.json")
    manifest.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidModelError, match=f"^{manifest} is damaged") as error:
        mlflow.pyfunc.load_model(str(copy_of_model))
    assert str(error.value).endswith(": copy it again, or log the model again")


def test_a_manifest_that_leaves_files_out_is_no_way_round(copy_of_model):
    [manifest] = copy_of_model.rglob("manifest.json")
    manifest.write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidModelError, match="was not there when the model was logged"):
        mlflow.pyfunc.load_model(str(copy_of_model))


def test_a_template_that_was_put_there_later_is_not_the_models(copy_of_model):
    [config] = copy_of_model.rglob("tokenizer_config.json")
    config.with_name("chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(InvalidModelError, match=r"chat_template\.jinja was not there when the"):
        mlflow.pyfunc.load_model(str(copy_of_model))


def test_a_model_that_was_logged_without_its_template_has_phi3s(copy_of_model):
    [manifest] = copy_of_model.rglob("manifest.json")
    files = json.loads(manifest.read_text(encoding="utf-8"))
    del files["tokenizer_config.json"]  # as releases before did
    manifest.write_text(json.dumps(files), encoding="utf-8")
    [config] = copy_of_model.rglob("tokenizer_config.json")
    config.write_text("no longer JSON", encoding="utf-8")
    model = mlflow.pyfunc.load_model(str(copy_of_model)).unwrap_python_model()
    ids = model._weights.folder.chat_template.encode([Message("user", "Hi")])
    assert ids == Tokenizer(config.with_name("tokenizer.json")).encode_prompt(
        "<|user|>\nHi<|end|>\n<|assistant|>\n"
    )
