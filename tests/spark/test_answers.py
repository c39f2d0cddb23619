"""Answers as typed columns: what a table asks for, by each door."""

import json

import jsonschema
import pytest
from pyspark.sql import Row
from pyspark.sql import functions as F

import phi3_batch
from phi3_batch.errors import InvalidParameterError, TableError
from tests.spark.rows import complete

MADRID = "The capital of Spain is Madrid."
PARIS = "The capital of France is Paris."
CITIES = [MADRID, PARIS, 'an { "odd", one } `x`']
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Madrid", "Paris", 'größe "x"']},
        "visits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"year": {"type": "integer"}, "good": {"type": ["boolean", "null"]}},
                "required": ["year", "good"],
            },
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["city", "visits"],
}
TYPE = "struct<city:string,visits:array<struct<year:bigint,good:boolean>>>"


@pytest.fixture
def countries(spark):
    rows = [Row(id=id, country=name) for id, name in enumerate(["Spain", "France", "Spain", None])]
    return spark.createDataFrame(rows, "id int, country string")


def asked(countries, uri, **options):
    template = "What is the capital of {country}?"
    return complete(countries, uri, user_template=template, **options)


def test_the_most_likely_choice_with_the_probability_of_each(countries, plain_pipeline_uri):
    options = {"choices": CITIES, "probabilities": True, "logprobs": True}
    rows = asked(countries, plain_pipeline_uri, **options)
    by_id = {row.id: row for row in rows}
    assert [by_id[id].answer for id in range(4)] == [MADRID, PARIS, MADRID, None]
    assert [by_id[id].completion for id in range(3)] == [MADRID, PARIS, MADRID]
    assert set(by_id[0].probabilities) == set(CITIES)
    assert sum(by_id[0].probabilities.values()) == pytest.approx(1)
    assert by_id[0].probabilities[MADRID] > 0.9
    assert -0.5 < by_id[0].logprob < by_id[0].mean_logprob < 0
    assert by_id[3].error.code == "null_prompt"
    assert by_id[3].probabilities is by_id[3].logprob is None


def test_structs_by_a_schema_and_what_does_not_fit_into_max_tokens(
    write_prompts, read, model_uri, samples
):
    table = read(write_prompts([sample.prompt for sample in samples][:40]))
    options = {"json_schema": SCHEMA, "temperature": 2.0, "token_logprobs": True}
    for most, codes in ((200, {None}), (60, {None, "answer_cut"})):
        rows = complete(table, model_uri, max_tokens=most, **options)
        assert {row.error and row.error.code for row in rows} == codes
        assert len({row.completion for row in rows}) > 5
        for row in rows:
            if row.error:
                assert row.answer is row.completion is row.token_logprobs is None
                continue
            found = json.loads(row.completion)
            assert row.answer.asDict(recursive=True) == found
            jsonschema.validate(found, SCHEMA)
            assert row.token_logprobs


def test_a_job_with_a_schema_is_a_run_of_its_own_and_is_resumed(
    spark, write_prompts, read, model_uri, tmp_path, samples
):
    table = write_prompts([sample.prompt for sample in samples][:6])
    output = str(tmp_path / "out")
    job = {"model": model_uri, "input": table, "output": output, "max_tokens": 200}
    first = phi3_batch.score(spark, json_schema=SCHEMA, **job)
    written = read(output)
    assert written.schema["answer"].dataType.simpleString() == TYPE
    assert written.where("(completion is null) != (answer is null)").count() == 0
    cities = {
        row.city for row in written.where("answer is not null").select("answer.city").collect()
    }
    assert cities <= {"Madrid", "Paris", 'größe "x"'}
    assert cities
    described = {**SCHEMA, "title": "A city", "description": "…"}  # which is the same schema
    again = phi3_batch.score(spark, json_schema=described, **job)
    assert (again.rows_scored, again.fingerprint) == (0, first.fingerprint)
    other = {**SCHEMA, "properties": {**SCHEMA["properties"], "city": {"enum": ["Rome"]}}}
    with pytest.raises(TableError, match=r"params\.json_schema"):
        phi3_batch.score(spark, json_schema=other, **job)


def test_texts_of_a_pattern_and_generated_choices(countries, chat_uri):
    rows = asked(countries, chat_uri, regex=r"[A-Z]{3}-\d")
    assert all(
        len(row.answer) == 5 and row.answer == row.completion for row in rows[:3] if row.answer
    )
    rows = asked(countries, chat_uri, choices=CITIES, choices_by="generate", keep_response=True)
    assert {row.answer for row in rows} == {MADRID, PARIS, None}
    assert rows[0].response.choices


def test_choices_of_each_row_come_from_a_column(spark, chat_uri):
    rows = [
        (0, "Spain", [MADRID, "no"]),
        (1, "France", ["x", PARIS, "y"]),
        (2, "Spain", [PARIS]),
        (3, "Spain", None),
        (4, "Spain", []),
        (5, "Spain", ["a", None]),
        (6, "Spain", ["a", "a"]),
    ]
    table = spark.createDataFrame(rows, "id int, country string, texts array<string>")
    for by in ("likelihood", "generate"):
        options = {"param": {"choices": "texts"}, "choices_by": by}
        if by == "likelihood":
            options["probabilities"] = True
        found = {row.id: row for row in asked(table, chat_uri, **options)}
        assert [found[id].answer for id in range(7)] == [MADRID, PARIS, PARIS, *[None] * 4]
        messages = [found[id].error.message for id in range(3, 7)]
        assert messages[:2] == ["there are no choices"] * 2
        assert messages[2:] == [
            "choices has a null or invalid UTF-8 in it",
            "choices has a text twice",
        ]
        if by == "likelihood":
            assert [len(found[id].probabilities or ()) for id in range(7)] == [2, 3, 1, 0, 0, 0, 0]


def test_penalties_of_each_row_come_from_columns(spark, chat_uri):
    rows = [
        (0, "Spain", 1.0, 0),
        (1, "Spain", 20.0, 0),
        (2, "Spain", 1.0, 12),
        (3, "Spain", -1.0, 0),
    ]
    table = spark.createDataFrame(rows, "id int, country string, penalty double, least int")
    param = {"repetition_penalty": "penalty", "min_tokens": "least"}
    found = {row.id: row for row in asked(table, chat_uri, param=param, max_tokens=20)}
    assert found[0].completion == MADRID
    assert found[1].completion != MADRID
    assert found[2].completion_tokens >= 12
    assert found[3].error.message.startswith("repetition_penalty must be above 0")


def test_the_udf_of_a_chat_model_takes_params_for_all_rows(spark, chat_uri):
    chats = spark.sql(
        "SELECT array(named_struct('role', 'user', 'content', text)) AS messages FROM VALUES"
        " ('What is the capital of Spain?'), (CAST(NULL AS STRING)) AS chats(text)"
    )
    chat = phi3_batch.spark_udf(spark, chat_uri, {"choices": CITIES, "logprobs": True})
    answered, failed = sorted(
        (row[0] for row in chats.select(chat("messages")).collect()), key=lambda row: row.object
    )
    assert answered.choices[0].message.content == MADRID
    assert [each.choice for each in answered.probabilities] == CITIES
    tokens = answered.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).replace(" ", "") == MADRID.replace(" ", "")
    assert all(-0.5 < token.logprob < 0 for token in tokens)
    assert (failed.object, failed.probabilities) == ("error", [])
    with pytest.raises(InvalidParameterError, match="has no parameter 'chioces', it takes"):
        phi3_batch.spark_udf(spark, chat_uri, {"chioces": CITIES})


def test_complete_gives_the_same_columns(countries, chat_uri):
    options = {"choices": CITIES, "probabilities": True, "logprobs": True}
    done = phi3_batch.complete(
        countries, chat_uri, user_template="What is the capital of {country}?", **options
    )
    assert done.where("id = 1").select("answer").first()[0] == PARIS
    assert done.where(F.col("probabilities")[MADRID] > 0.9).count() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json_schema": {"type": "object", "properties": {"a": {}}}}, "answer.a may be anything"),
        ({"json_schema": "nowhere.json"}, "nowhere.json cannot be read: No such file"),
        ({"json_schema": 5}, "json_schema must be a string or a schema or a dataclass or a model"),
        ({"regex": "("}, "regex cannot be followed: unclosed group"),
        ({"choices": ["a", "a"]}, "choices has a text twice"),
        ({"choices": ["a"], "regex": "b"}, "give one of choices and regex"),
        ({"choices": ["a"], "stop": ["b"]}, "stop would cut what choices asks for"),
        ({"probabilities": True}, "--probabilities are those of --choices that are compared"),
        ({"choices": ["a"], "choices_by": "luck"}, "choices_by must be likelihood or generate"),
        ({"choices_by": "generate"}, "--choices-by needs --choices"),
        ({"choices": ["a"], "param": {"choices": "country"}}, "choices are taken from a column"),
        ({"param": {"seed": "id"}}, "a chat has no parameter 'seed' of its own for models:/"),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_the_first_row(
    countries, chat_uri, options, message
):
    with pytest.raises(InvalidParameterError) as error:
        phi3_batch.complete(countries, chat_uri, user_template="{country}", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_these_params_says_so(spark, store, countries):
    from tests.conftest import TINY_MODEL

    bare = phi3_batch.log_chat_model(TINY_MODEL, params=False)
    with pytest.raises(InvalidParameterError, match="has no parameter 'choices', it takes temp"):
        phi3_batch.complete(countries, bare.model_uri, user_template="{country}", choices=["a"])
