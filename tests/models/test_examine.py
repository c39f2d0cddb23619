"""What a job is told of its rows before it begins: the same that predict finds out."""

import mlflow
import pandas as pd
import pytest

import phi3_batch
from phi3_batch.engines import this_process
from phi3_batch.errors import InvalidParameterError
from phi3_batch.generation import Request
from phi3_batch.model_files import Checkpoint, Limits, ModelFolder
from phi3_batch.models.examine import examine_rows
from phi3_batch.models.pipeline import PipelineModel
from tests.conftest import TINY_CHECKPOINT

SPAIN = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
NO_ERROR = {"code": "", "message": ""}
COLUMNS = ["prompt_tokens", "max_tokens", "error"]
ENDLESS = "What is the capital of Spain? " * 700
BAD_PROMPTS = [None, "", " \n", "a\x00", "a\ud800", ENDLESS]


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """None is loaded, whatever tests ran before."""
    this_process.reset()


@pytest.fixture
def prompt_model(model):
    return model.unwrap_python_model()


@pytest.fixture(scope="module")
def chat_model(in_store, tiny_folder):
    info = phi3_batch.log_chat_model(tiny_folder.path, model_config={"max_tokens": 40})
    return mlflow.pyfunc.load_model(info.model_uri).unwrap_python_model()


def user(content):
    return [{"role": "user", "content": content}]


def prompts(*texts):
    return pd.DataFrame({"prompt": pd.Series(texts, dtype=object)})


def test_tokens_of_prompts_are_those_that_predict_counts(prompt_model, samples):
    table = prompts(*(sample.prompt for sample in samples[::9]))
    examined = prompt_model.examine(table)
    assert list(examined.columns) == COLUMNS
    assert examined["error"].tolist() == [NO_ERROR] * len(table)
    assert examined["max_tokens"].tolist() == [256] * len(table)
    usage = prompt_model.predict(None, table, {"usage": True})
    assert examined["prompt_tokens"].tolist() == usage["prompt_tokens"].tolist()


def test_errors_of_prompts_are_those_that_predict_gives(prompt_model):
    table = prompts(SPAIN, *BAD_PROMPTS, SPAIN)
    examined = prompt_model.examine(table)
    usage = prompt_model.predict(None, table, {"usage": True})
    assert examined["error"].tolist() == usage["error"].tolist()
    assert examined["prompt_tokens"].tolist() == usage["prompt_tokens"].tolist()
    codes = [error["code"] for error in examined["error"]]
    assert codes[5:] == ["invalid_text", "prompt_too_long", ""]
    assert examined["max_tokens"].tolist() == [256, *[0] * len(BAD_PROMPTS), 256]


def test_max_tokens_ends_where_the_context_ends(prompt_model):
    long = "What is the capital of Spain? " * 500
    examined = prompt_model.examine(prompts(SPAIN, long), {"max_tokens": 4000, "usage": True})
    [short_row, long_row] = examined.to_dict("records")
    assert short_row["max_tokens"] == 4000
    assert 2000 < long_row["prompt_tokens"] < 4096
    assert long_row["max_tokens"] == 4096 - long_row["prompt_tokens"]


@pytest.mark.parametrize("model_input", [SPAIN, [SPAIN], {"prompt": [SPAIN]}, prompts(SPAIN)])
def test_prompts_come_in_the_forms_that_predict_takes(prompt_model, model_input):
    assert prompt_model.examine(model_input)["prompt_tokens"].tolist() == [10]


def test_a_parameter_out_of_range_is_refused_as_by_predict(prompt_model):
    with pytest.raises(InvalidParameterError, match=r"^max_tokens must be "):
        prompt_model.examine(prompts(SPAIN), {"max_tokens": 0})


def test_tokens_of_chats_are_those_that_predict_counts(chat_model, chat_samples):
    rows = [{"messages": chat.messages, "max_tokens": 30} for chat in chat_samples[::9]]
    examined = chat_model.examine(pd.DataFrame(rows))
    assert list(examined.columns) == COLUMNS
    completions = chat_model.predict(None, pd.DataFrame(rows))
    counted = [completion["usage"]["prompt_tokens"] for completion in completions]
    assert examined["prompt_tokens"].tolist() == counted
    assert examined["max_tokens"].tolist() == [30] * len(rows)


def test_choices_count_as_often_as_they_are_generated(chat_model):
    rows = [
        {"messages": user("Hi"), "n": 3},
        {"messages": user("Hi"), "n": 3, "temperature": 0.5},
        {"messages": user("Hi"), "max_tokens": 7, "n": 2, "temperature": 0.5},
        {"messages": user("Hi")},
    ]
    assert chat_model.examine(rows)["max_tokens"].tolist() == [40, 120, 14, 40]


def test_errors_of_chats_are_those_that_predict_gives(chat_model):
    rows = [
        {"messages": user("Hi")},
        {"messages": None},
        {"messages": []},
        {"messages": user(" ")},
        {"messages": user("a\x00")},
        {"messages": user("Hi"), "n": 0},
        {"messages": user("Hi"), "temperature": -1.0},
        {"messages": user(ENDLESS), "n": 2, "temperature": 0.5},
        {"messages": user("Hi")},
    ]
    examined = chat_model.examine(rows)
    completions = chat_model.predict(None, rows)
    reasons = [completion["choices"][0]["finish_reason"] for completion in completions[1:-1]]
    errors = examined["error"].tolist()
    assert [f"{error['code']}: {error['message']}" for error in errors[1:-1]] == reasons
    assert (errors[0], errors[-1]) == (NO_ERROR, NO_ERROR)
    counted = [completion["usage"]["prompt_tokens"] for completion in completions]
    assert examined["prompt_tokens"].tolist() == counted
    assert examined["max_tokens"].tolist() == [40, *[0] * 7, 40]


def test_a_pipeline_is_examined_as_its_onnx_build(chat_model, tmp_path, chat_samples):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(Checkpoint.open(TINY_CHECKPOINT).read_manifest().to_json(), "utf-8")
    pipeline = PipelineModel()
    context = mlflow.pyfunc.PythonModelContext(
        {"checkpoint": str(TINY_CHECKPOINT), "manifest": str(manifest)}, {"max_tokens": 40}
    )
    pipeline.load_context(context)
    rows = [{"messages": chat.messages} for chat in chat_samples[::9]]
    pd.testing.assert_frame_equal(pipeline.examine(rows), chat_model.examine(rows))
    assert pipeline.memory_bytes(100) > chat_model.memory_bytes(100) > 0


def test_no_rows_are_a_table_of_none(prompt_model, chat_model):
    for examined in (prompt_model.examine(prompts()), chat_model.examine([])):
        assert len(examined) == 0
        assert examined["prompt_tokens"].sum() == 0
        assert [str(dtype) for dtype in examined.dtypes] == ["int64", "int64", "object"]


def test_examining_reads_no_weights_and_the_tokenizer_once(
    prompt_model, chat_model, engines_loaded, monkeypatch
):
    for model in (prompt_model, chat_model):
        fresh = ModelFolder.open(model._folder.path)
        monkeypatch.setattr(model, "_folder", fresh)
    prompt_model.examine(prompts(SPAIN))
    chat_model.examine([{"messages": user("Hi")}])
    tokenizer = prompt_model._folder.tokenizer
    # it cannot be read now
    monkeypatch.setattr("phi3_batch.model_files.folder.Tokenizer", None)
    prompt_model.examine(prompts(SPAIN))
    chat_model.examine([{"messages": user("Hi")}])
    assert prompt_model._folder.tokenizer is tokenizer
    assert engines_loaded == []


def test_a_tokenizer_of_another_model_is_an_error_of_its_rows_alone():
    [row] = examine_rows([[Request((5, 1024))]], Limits(4096, vocab_size=1024)).to_dict("records")
    assert (row["prompt_tokens"], row["max_tokens"]) == (2, 0)
    assert row["error"]["code"] == "engine_error"


def test_no_text_is_in_what_is_said_of_a_row(prompt_model, chat_model):
    said = str(prompt_model.examine(prompts("secret\x00", "secret " * 3000)).to_dict())
    said += str(chat_model.examine([{"messages": user("secret\x00")}]).to_dict())
    assert "secret" not in said
