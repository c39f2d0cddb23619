"""Answers of a shape through MLflow's own calls, by params and by a chat's own inputs."""

import json
import math

import jsonschema
import mlflow
import pandas as pd
import pytest

import phi3_batch
from phi3_batch.errors import InvalidParameterError

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PROMPTS = [f"<|user|>\n{chat[0]['content']}<|end|>\n<|assistant|>\n" for chat in (SPAIN, FRANCE)]
MADRID = "The capital of Spain is Madrid."
PARIS = "The capital of France is Paris."
CITIES = [MADRID, PARIS, "no"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Madrid", "Paris"]}, "old": {"type": "boolean"}},
    "required": ["city", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chat(in_store, tiny_folder):
    return mlflow.pyfunc.load_model(phi3_batch.log_chat_model(tiny_folder.path).model_uri)


@pytest.fixture(scope="module")
def prompt(in_store, tiny_folder):
    return mlflow.pyfunc.load_model(phi3_batch.log_prompt_model(tiny_folder.path).model_uri)


def text(completion):
    return completion["choices"][0]["message"]["content"]


def test_a_prompt_model_tells_probabilities_beside_usage(prompt):
    params = {"choices": CITIES, "usage": True, "logprobs": True}
    table = prompt.predict(pd.DataFrame({"prompt": [*PROMPTS, " "]}), params=params)
    assert list(table["completion"]) == [MADRID, PARIS, ""]
    assert [each["choice"] for each in table["probabilities"][0]] == CITIES
    assert math.isclose(sum(each["probability"] for each in table["probabilities"][1]), 1)
    assert [len(each) > 1 for each in table["logprobs"]] == [True, True, False]
    assert table["probabilities"][2] == []
    assert prompt.predict({"prompt": PROMPTS[0]}, params={"choices": CITIES}) == [MADRID]
    assert "logprobs" not in prompt.predict({"prompt": PROMPTS[0]}, params={"usage": True})


@pytest.mark.parametrize(
    "params",
    [
        {"json_schema": json.dumps(SCHEMA)},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            }
        },
    ],
)
def test_a_chat_follows_a_schema_as_we_and_as_openai_say_it(chat, params):
    for chat_of in (SPAIN, FRANCE):
        [completion] = chat.predict({"messages": chat_of}, params=params)
        jsonschema.validate(json.loads(text(completion)), SCHEMA)


def test_a_chat_in_any_json_and_in_any_text(chat):
    [completion] = chat.predict(
        {"messages": SPAIN, "max_tokens": 400}, params={"response_format": {"type": "json_object"}}
    )
    reason = completion["choices"][0]["finish_reason"]
    assert reason.startswith("answer_cut") or isinstance(json.loads(text(completion)), dict)
    [completion] = chat.predict({"messages": SPAIN}, params={"response_format": {"type": "text"}})
    assert text(completion) == MADRID


def test_the_tokens_of_every_choice_have_log_probabilities_as_in_openais_api(chat):
    row = {"messages": SPAIN, "temperature": 2.0, "n": 3, "max_tokens": 20}
    [completion] = chat.predict(row, params={"logprobs": True, "seed": 5})
    for choice in completion["choices"]:
        tokens = choice["logprobs"]["content"]
        assert all(token["logprob"] <= 0 for token in tokens)
        said = "".join(token["token"] for token in tokens)
        assert said.replace(" ", "") == choice["message"]["content"].replace(" ", "")
    assert len({json.dumps(choice["logprobs"]) for choice in completion["choices"]}) == 3


def test_rows_with_choices_of_their_own_and_rows_that_fail(chat):
    table = pd.DataFrame(
        {
            "messages": [SPAIN, FRANCE, SPAIN, [{"role": "user", "content": " "}]],
            "choices": [[MADRID, "x"], [PARIS], ["a", "a"], ["b"]],
            "n": [2, 1, 1, 1],
        }
    )
    first, second, doubled, empty = chat.predict(table)
    assert [text(each) for each in (first, second)] == [MADRID, PARIS]
    assert [text({"choices": [choice]}) for choice in first["choices"]] == [MADRID] * 2
    assert [each["choice"] for each in first["probabilities"]] == [MADRID, "x"]
    for failed, code in ((doubled, "invalid_parameter"), (empty, "empty_prompt")):
        assert failed["choices"][0]["finish_reason"].startswith(code)
        assert failed["probabilities"] == failed["choices"][0]["logprobs"]["content"] == []


def test_nothing_of_it_is_there_where_nothing_was_asked_for(chat):
    [completion] = chat.predict({"messages": SPAIN})
    assert list(completion) == ["id", "object", "created", "model", "choices", "usage"]
    assert list(completion["choices"][0]) == ["index", "finish_reason", "message"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"regex": "("}, "regex cannot be followed: unclosed group"),
        ({"json_schema": "{"}, "json_schema is not JSON: Expecting property name"),
        ({"json_schema": '{"not": {}}'}, "json_schema cannot be followed: Unimplemented keys"),
        ({"choices": ["a"], "regex": "b"}, "give one of choices and regex"),
        ({"logit_bias": "[1]"}, "logit_bias must be a JSON object of texts and numbers"),
        ({"logit_bias": '{"Madrid": 101}'}, "logit_bias must be from -100 to 100, not 101"),
        ({"logit_bias": '{"The capital of": 1}'}, "text 1 of logit_bias is no token of the model"),
        ({"response_format": {"type": "xml"}}, "response_format must have the type text, json_ob"),
        ({"response_format": {"type": "json_schema"}}, "response_format must have the type text"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0 (1 is none), not 0.0"),
    ],
)
def test_params_that_cannot_be_followed_end_the_call_in_one_line(chat, prompt, params, message):
    for model, row in ((chat, {"messages": SPAIN}), (prompt, {"prompt": PROMPTS[0]})):
        if model is prompt and "response_format" in params:
            continue
        with pytest.raises(InvalidParameterError) as error:
            model.predict(row, params=params)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


def test_a_token_is_banned_or_wanted_by_its_text(chat, prompt):
    banned = {"logit_bias": '{"Madrid": -100}'}
    [completion] = chat.predict({"messages": SPAIN}, params=banned)
    assert "Madrid" not in text(completion)
    assert prompt.predict({"prompt": PROMPTS[0]}, params=banned) == [text(completion)]
    wanted = {"logit_bias": '{"Paris": 100, "Madrid": -5.5}', "choices": ["Madrid", "Paris"]}
    [completion] = chat.predict({"messages": SPAIN}, params=wanted | {"choices_by": "generate"})
    assert text(completion) == "Paris"


def test_a_model_may_have_a_shape_by_its_config(in_store, tiny_folder):
    config = {"choices": CITIES, "repetition_penalty": 1.5}
    info = phi3_batch.log_chat_model(tiny_folder.path, model_config=config)
    [completion] = mlflow.pyfunc.load_model(info.model_uri).predict({"messages": FRANCE})
    assert text(completion) == PARIS
    assert len(completion["probabilities"]) == 3
