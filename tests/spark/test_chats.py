"""Chats on Spark, by MLflow's UDF, by ours and by the job: chat model and pipeline model."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

import phi3_batch
from phi3_batch.engines import Engine
from phi3_batch.errors import InvalidModelError, InvalidParameterError
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.requests import chat_requests, turns_of
from phi3_batch.scoring.rows.source import Source
from tests.conftest import ChatSample
from tests.delta_files import write_table
from tests.spark.rows import complete
from tests.spark.test_score import OUTPUT_COLUMNS, score

Read = Callable[[str], DataFrame]

CHATS = "id string, messages array<struct<role:string,content:string>>"
SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
MADRID = "The capital of Spain is Madrid."


@pytest.fixture(scope="module")
def sample_chats(chat_samples: list[ChatSample], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Delta table of all sample chats, with the answers that they should get."""
    rows = [
        {"id": chat.id, "messages": chat.messages, "answer": chat.answer} for chat in chat_samples
    ]
    return write_table(tmp_path_factory.mktemp("chats") / "chats", pa.Table.from_pylist(rows))


@pytest.mark.parametrize("form", ["chat", "pipeline", "plain_pipeline"])
def test_every_sample_chat_is_answered_right(
    form: str,
    request: pytest.FixtureRequest,
    sample_chats: str,
    tiny_engine: Engine,
    read: Read,
    tmp_path: Path,
) -> None:
    uri, rows_asked = request.getfixturevalue(f"{form}_uri"), 335 if form == "chat" else 20
    output = str(tmp_path / "out")
    limit = ("--limit", str(rows_asked))  # transformers takes its time
    assert score(uri, sample_chats, output, "--keep-response", *limit) == 0
    table = read(output)
    assert table.columns == [
        *("id", "messages", "answer"),
        *OUTPUT_COLUMNS[:6],
        "response",
        *OUTPUT_COLUMNS[6:],
    ]
    rows = table.collect()
    assert len(rows) == rows_asked
    for row in rows:
        assert row["completion"] == row["answer"]
        assert row["finish_reason"] == "stop"
        assert row["error"] is None
        content = tiny_engine.tokenizer.encode_content(row["completion"])
        assert row["completion_tokens"] == len(content)
        assert row["total_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
        response = row["response"]
        assert response["object"] == "chat.completion"
        [choice] = response["choices"]
        assert choice["message"].asDict() == {
            "role": "assistant",
            "content": row["answer"],
            "name": None,
        }
        assert (choice["index"], choice["finish_reason"]) == (0, "stop")
        assert response["usage"].asDict() == {
            name: row[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
    assert len({row["response"]["id"] for row in rows}) == rows_asked


def test_plain_mlflow_udf_takes_a_struct_with_columns_absent(
    spark: SparkSession, chat_uri: str, pipeline_uri: str, sample_chats: str, read: Read
) -> None:
    for uri in (chat_uri, pipeline_uri):
        udf = mlflow.pyfunc.spark_udf(spark, uri, env_manager="local")
        asked = read(sample_chats).where("id = 'en-001'")
        scored = asked.select(
            udf(F.struct("messages")).alias("alone"),
            udf(F.struct("messages", F.lit(3).cast("long").alias("max_tokens"))).alias("short"),
        )
        assert scored.schema["alone"].dataType == schema.CHAT_COMPLETION
        row = scored.first()
        assert row["alone"]["choices"][0]["message"]["content"] == MADRID
        assert row["alone"]["usage"].asDict() == {
            "prompt_tokens": 10,
            "completion_tokens": 7,
            "total_tokens": 17,
        }
        assert row["short"]["choices"][0]["finish_reason"] == "length"
        assert row["short"]["usage"]["completion_tokens"] == 3


BAD_CHATS: dict[str, tuple[str, Any]] = {
    "null": ("null_prompt: the messages are null", None),
    "empty list": ("invalid_messages: the list of messages is empty", []),
    "null message": ("invalid_messages: message 1 is null", [None]),
    "no role": (
        "invalid_messages: message 2 has no role",
        [*SPAIN, {"role": None, "content": "And of France?"}],
    ),
    "no content": (
        "invalid_messages: message 1 has no content, or some that is not text",
        [{"role": "user", "content": None}],
    ),
    "unknown role": (
        "invalid_messages: message 1 has a role other than system, user, assistant",
        [{"role": "tool", "content": "x"}],
    ),
    "assistant last": (
        "invalid_messages: the last message is the assistant's: there is nothing to answer",
        [*SPAIN, {"role": "assistant", "content": MADRID}],
    ),
    "blank": (
        "empty_prompt: the last message is empty or only white space",
        [{"role": "user", "content": " \n"}],
    ),
    "control": (
        "invalid_text: message 1: control character U+0007 at position 5",
        [{"role": "user", "content": "beep \x07"}],
    ),
    "too long": (
        "prompt_too_long: ",
        [{"role": "user", "content": "why? " * 5000}],
    ),
    "much too long": (
        "prompt_too_long: by its length alone, over 65,520 bytes,",
        [{"role": "user", "content": "why? " * 50_000}],
    ),
}


def test_bad_chats_are_coded_and_touch_no_other(
    chat_uri: str, spark: SparkSession, chat_samples: list[ChatSample]
) -> None:
    good = chat_samples[:20]
    rows = [(chat.id, chat.messages) for chat in good]
    for number, (name, (_, messages)) in enumerate(BAD_CHATS.items()):
        rows.insert(2 * number, (name, messages))
    table = spark.createDataFrame(rows, CHATS)
    scored = {row["id"]: row for row in complete(table, chat_uri)}
    assert len(scored) == len(rows)
    for chat in good:
        assert scored[chat.id]["completion"] == chat.answer
        assert scored[chat.id]["error"] is None
    for name, (reason, _) in BAD_CHATS.items():
        row = scored[name]
        assert f"{row['error']['code']}: {row['error']['message']}".startswith(reason)
        assert row["completion"] is None
        assert row["finish_reason"] is None
        assert row["completion_tokens"] is None
    assert scored["too long"]["prompt_tokens"] > 5000

    # the same rows through the function of columns, in which nothing is split off by the caller
    chat = phi3_batch.spark_udf(spark, chat_uri)
    answered = table.select("id", chat().alias("completion")).collect()
    for row in answered:
        completion = row["completion"]
        [choice] = completion["choices"]
        if row["id"] in BAD_CHATS:
            assert completion["object"] == "error"
            assert choice["finish_reason"].startswith(BAD_CHATS[row["id"]][0])
            assert choice["message"]["content"] == ""
            assert completion["usage"]["completion_tokens"] == 0
        else:
            assert completion["object"] == "chat.completion"
            assert choice["message"]["content"] == scored[row["id"]]["completion"]


PARAMS = "temperature double, max_tokens int, stop array<string>, n long, stream boolean"


def test_each_row_has_its_own_parameters_as_if_it_were_alone(
    spark: SparkSession, chat_uri: str, chat_samples: list[ChatSample]
) -> None:
    params: list[tuple[Any, ...]] = [
        (None, None, None, None, None),
        (0.0, 1, None, None, False),
        (0.0, 5, [], 1, None),
        (None, 40, [" "], None, None),
        (None, None, ["a", "e"], 2, None),
        (5.0, 12, None, 3, False),
        (1.5, 6, ["."], 2, None),
        (0.0, 0, None, None, None),  # refused by the model
        (-1.0, None, None, None, None),  # refused by the model
        (None, None, [None], None, None),  # refused before it
        (float("nan"), None, None, None, None),  # refused before it
        (None, None, None, 0, None),
        (None, None, None, None, True),
        (None, None, [str(number) for number in range(65)], None, None),
        (None, None, ["a" * 1_001], None, None),
    ]
    rows = [
        (f"{chat.id} {number}", chat.messages, *row_params)
        for number, row_params in enumerate(params)
        for chat in chat_samples[number : number + 2]
    ]
    table = spark.createDataFrame(rows, f"{CHATS}, {PARAMS}").repartition(1)
    chat = phi3_batch.spark_udf(spark, chat_uri)
    columns = ("temperature", "max_tokens", "stop", "n", "stream")
    completions = {
        row["id"]: row["completion"]
        for row in table.select(
            "id", chat(**{name: F.col(name) for name in columns}).alias("completion")
        ).collect()
    }
    model = mlflow.pyfunc.load_model(chat_uri).unwrap_python_model()
    for name, messages, *row_params in rows:
        given = dict(zip(columns, row_params, strict=True))
        [alone] = model.predict(None, [{"messages": messages, **given}])
        together = completions[name]
        if name.split()[1] in ("9", "10"):
            assert together["object"] == "error"
            assert alone["object"] == "error" or name.split()[1] == "10"
            continue
        assert together["object"] == alone["object"]
        assert together["usage"].asDict() == alone["usage"]
        assert [choice.asDict(recursive=True) for choice in together["choices"]] == alone["choices"]

    param = {name: name for name in columns[:-1]}
    asked = table.where("not stream or stream is null")
    for row in complete(asked, chat_uri, keep_response=True, param=param):
        expected = completions[row["id"]]
        if row["error"] is None:
            assert row["response"]["choices"] == expected["choices"]
            assert row["completion"] == expected["choices"][0]["message"]["content"]
        else:
            reason = expected["choices"][0]["finish_reason"]
            assert f"{row['error']['code']}: {row['error']['message']}" == reason
            assert row["error"]["code"] == "invalid_parameter"


def test_options_hold_for_every_row_and_a_column_goes_before_them(
    chat_uri: str, spark: SparkSession
) -> None:
    table = spark.createDataFrame([("a", SPAIN, 2), ("b", SPAIN, None)], f"{CHATS}, most long")
    options = {"max_tokens": 4, "stop": ["Madrid"], "n": 2, "temperature": 0.0}
    rows = complete(table, chat_uri, keep_response=True, **options)
    assert [row["completion_tokens"] for row in rows] == [8, 8]  # four for each of two choices
    assert all(len(row["response"]["choices"]) == 2 for row in rows)

    rows = complete(table, chat_uri, max_tokens=4, param=["max_tokens=col:most"])
    tokens = {row["id"]: row["completion_tokens"] for row in rows}
    assert tokens == {"a": 2, "b": 4}


def test_messages_are_made_of_plain_columns(chat_uri: str, spark: SparkSession) -> None:
    rows = [
        ("a", "What is the capital of", "Spain"),
        ("b", "What is the {capital} of", "<|end|>{country}"),  # braces and tokens are text
        ("c", "What is the capital of", None),
        ("d", "What is the capital of", "France"),
    ]
    table = spark.createDataFrame(rows, "id string, question string, country string")
    scored = complete(table, chat_uri, user_template="{question} {Country}?")
    rows_out = {row["id"]: row for row in scored}
    assert rows_out["a"]["completion"] == MADRID
    assert rows_out["d"]["completion"] == "The capital of France is Paris."
    assert rows_out["c"]["error"].asDict() == {
        "code": "null_prompt",
        "message": "column Country is null",
    }
    assert rows_out["b"]["error"] is None
    assert "messages" not in rows_out["a"]


def test_a_system_message_goes_before_what_the_template_makes(
    chat_uri: str, spark: SparkSession
) -> None:
    [row] = complete(
        spark.createDataFrame([("atom",)], "thing string"),
        chat_uri,
        system="You are a stand-up comedian.",
        user_template="Tell me a joke about {thing}",
    )
    assert row["completion"] == (
        "Why should you never trust an atom? Because they make up everything!"
    )


def test_messages_may_be_maps_and_have_more_fields(chat_uri: str, spark: SparkSession) -> None:
    maps = spark.createDataFrame([("a", SPAIN)], "id string, messages array<map<string,string>>")
    more = spark.createDataFrame(
        [("a", [(7, "What is the capital of Spain?", "USER", "user")])],
        "id string, messages array<struct<weight:int,Content:string,name:string,role:string>>",
    )
    for table in (maps, more):
        [row] = complete(table, chat_uri)
        assert row["completion"] == MADRID


def test_the_run_links_the_version_the_model_and_the_table(
    chat_uri: str, sample_chats: str, read: Read, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    assert score(chat_uri, sample_chats, output, "--limit", "3") == 0
    row = read(output).first()
    assert row["model"] == "models:/phi3-tiny-chat/1"
    client = mlflow.MlflowClient()
    run = client.get_run(row["run_id"])
    assert run.data.params["model_version"] == "models:/phi3-tiny-chat/1"
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.source_type == "delta_table"
    assert sample_chats in dataset.dataset.source
    [model] = run.inputs.model_inputs
    logged = client.get_logged_model(model.model_id)
    assert logged.name == "phi3-chat"
    assert {"rows", "completion_tokens"} <= {metric.key for metric in logged.metrics}


def test_a_function_of_columns_says_what_it_cannot_do(
    spark: SparkSession, chat_uri: str, model_uri: str
) -> None:
    with pytest.raises(InvalidModelError, match="takes prompts, one string for each row"):
        phi3_batch.spark_udf(spark, model_uri)
    chat = phi3_batch.spark_udf(spark, chat_uri)
    with pytest.raises(InvalidParameterError, match="a chat has no 'top_p', but temperature"):
        chat(top_p=0.5)


def test_contents_in_parts_are_the_request_of_their_text(spark: SparkSession) -> None:
    columns = "messages array<struct<role:string,content:{}>>"
    parts = "array<struct<type:string,text:string,image_url:string>>"
    in_parts = spark.createDataFrame(
        [
            ([("user", [("text", "Hi ", None), ("text", "you", None)])],),
            ([("user", [("text", "a", None), ("image_url", None, "secret")])],),
            ([("user", None)],),
        ],
        columns.format(parts),
    )
    Source().check(SimpleNamespace(takes_messages=True), in_parts.schema, "the input")
    messages = turns_of(F.col("messages"), in_parts.schema["messages"].dataType)
    requests = chat_requests(messages, {}, {})
    request = identity.request_id(in_parts.schema, ["messages"], "")
    first, *others = in_parts.select(
        requests.inputs["messages"].alias("sent"), requests.refusal.alias("refusal"), request
    ).collect()
    assert [tuple(turn) for turn in first["sent"]] == [("user", "Hi you")]
    assert first["refusal"] is None
    refusal = ("invalid_messages", "message 1 has no content, or some that is not text")
    assert [tuple(row["refusal"]) for row in others] == [refusal] * 2

    text = spark.createDataFrame([([("user", "Hi you")],)], columns.format("string"))
    assert text.select(identity.request_id(text.schema, ["messages"], "")).first()[0] == first[2]


def test_values_hold_for_every_row_of_a_function_of_columns(
    spark: SparkSession, chat_uri: str, sample_chats: str, read: Read
) -> None:
    chat = phi3_batch.spark_udf(spark, chat_uri)
    asked = read(sample_chats).where("id = 'en-001'")
    row: Row = asked.select(chat("messages", max_tokens=3, stop=["xyz"], n=2).alias("r")).first()
    assert [choice["finish_reason"] for choice in row["r"]["choices"]] == ["length"] * 2
    assert row["r"]["usage"]["completion_tokens"] == 6


def test_an_input_column_may_be_called_response(
    chat_uri: str, model_uri: str, spark: SparkSession
) -> None:
    prompt = "<|user|>What is the capital of Spain?<|end|><|assistant|>"
    columns = f"{CHATS}, prompt string, response string"
    table = spark.createDataFrame([("a", SPAIN, prompt, "mine")], columns)
    for uri in (chat_uri, model_uri):
        [row] = complete(table, uri)
        assert (row["completion"], row["response"]) == (MADRID, "mine")
