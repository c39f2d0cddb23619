"""Jobs by the Python functions: what the command line does, in results and exceptions."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

import phi3_batch
from phi3_batch.scoring.job import run
from tests.conftest import REPOSITORY, Sample
from tests.spark.test_score import MADRID, SPAIN

WritePrompts = Callable[..., str]

PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_examples_of_the_documentation(
    spark: SparkSession, model_uri: str, chat_uri: str, samples: list[Sample], store: Path
) -> None:
    tables = {
        "tickets": spark.createDataFrame(
            [(sample.id, sample.prompt) for sample in samples[:20]], "id string, prompt string"
        ),
        "questions": spark.createDataFrame([("Spain",), ("Poland",), (None,)], "country string"),
    }
    for name, rows in tables.items():
        rows.write.format("delta").saveAsTable(name)
    spark.conf.set("spark.sql.sources.default", "delta")
    try:
        for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            names: dict[str, Any] = {"spark": spark, "phi3_batch": phi3_batch}
            example = example.replace('"summaries"', f'"{store}/summaries"')
            exec(
                example.replace("models:/phi3@", "models:/phi3-tiny@").replace(
                    "models:/phi3-chat@", "models:/phi3-tiny-chat@"
                ),
                names,
            )
        capitals = {row["country"]: row for row in spark.table("capitals").collect()}
        assert capitals["Spain"]["completion"] == MADRID
        assert capitals[None]["error"]["code"] == "null_prompt"
        written = spark.read.format("delta").load(f"{store}/summaries").collect()
        summaries = {row["id"]: row["completion"] for row in written}
        assert summaries == {sample.id: sample.answer for sample in samples[:20]}
    finally:
        spark.conf.unset("spark.sql.sources.default")
        for name in (*tables, "capitals"):
            spark.sql(f"DROP TABLE IF EXISTS {name}")


def test_a_job_says_what_it_did_and_goes_on_where_it_was(
    spark: SparkSession, model_uri: str, write_prompts: WritePrompts, tmp_path: Path
) -> None:
    prompts = [SPAIN.replace("Spain", f"Spain, {number}") for number in range(300)]
    source, output = write_prompts([SPAIN, "", *prompts]), str(tmp_path / "out")
    job: dict[str, Any] = {"model": model_uri, "input": source, "output": output, "max_tokens": 9}
    planned = phi3_batch.plan(spark, **job)
    assert (planned.rows, planned.rows_done, planned.requests) == (302, 0, 301)
    assert dict(planned.refused) == {"empty_prompt": 1}
    assert planned.forecast.tokens is not None

    first = phi3_batch.score(spark, **job, max_output_tokens=1)
    assert not first.complete
    assert 0 < first.rows_done == first.rows_scored < first.rows == 302
    second = phi3_batch.score(spark, **job)
    assert second.complete
    assert second.rows_scored == 302 - first.rows_scored
    assert (first.run_id, first.fingerprint) == (second.run_id, planned.fingerprint)
    assert dict(second.errors) == {"empty_prompt": 1}
    assert second.model == planned.model == "models:/phi3-tiny/1"
    assert second.engines
    assert second.output.count() == 302
    assert second.output.where(F.col("prompt") == SPAIN).head()["completion"] == MADRID
    assert second.report is not None
    assert mlflow.get_run(str(second.run_id)).info.status == "FINISHED"

    third = phi3_batch.score(spark, **job)
    assert (third.complete, third.rows_scored, third.rows_done) == (True, 0, 302)
    assert third.run_id == second.run_id
    assert phi3_batch.verify(spark, input=source, output=output).balance.ok


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input": "no_such_table"}, "no_such_table"),
        ({"model": "models:/no-such-model/1"}, "no model models:/no-such-model/1"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": float("inf")}, "temperature must be a number"),
        ({"max_hours": "long"}, "max_hours must be a number"),
        ({"max_hours": float("nan")}, "max_hours must be a number"),
        ({"max_output_tokens": 0}, "max_output_tokens must be 1 or above"),
        ({"stop": [1]}, "stop must be a list of strings"),
        ({"stop": "one"}, "stop must be a list of strings"),
        ({"limit": 0}, "limit must be 1 or above"),
        ({"limit": "many"}, "limit must be a whole number"),
        ({"mode": "ignore"}, "mode must be error, append or overwrite"),
        ({"model": None}, "model must be a string"),
        ({"keep": 3}, "keep must be a string or a list of strings"),
        ({"column": 3}, "column must be a string"),
        ({"retry_errors": "yes"}, "retry_errors must be True or False"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    options: dict[str, Any],
    said: str,
    spark: SparkSession,
    model_uri: str,
    write_prompts: WritePrompts,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    job = {"model": model_uri, "input": write_prompts([SPAIN]), "output": str(output)}
    with pytest.raises(phi3_batch.Phi3BatchError, match=re.escape(said)) as caught:
        phi3_batch.score(spark, **job | options)
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_an_unknown_option_is_python_s_own_error(spark: SparkSession) -> None:
    wrong: Any = {"model": "m", "input": "in", "output": "out", "tempreature": 0.5}
    with pytest.raises(TypeError, match=r"^score\(\) got an unexpected .* 'tempreature'$"):
        phi3_batch.score(spark, **wrong)
    with pytest.raises(TypeError, match=r"^score\(\) missing a required argument: 'input'$"):
        phi3_batch.score(spark, model="m", output="out")  # type: ignore[call-arg]


def test_help_has_every_option() -> None:
    taken = list(inspect.signature(phi3_batch.complete).parameters)
    assert taken[:3] == ["table", "model", "column"]
    assert "ids: Columns that identify a row" in str(phi3_batch.score.__doc__)
    assert "--" not in str(phi3_batch.score.__doc__)


def test_ctrl_c_ends_a_job_as_python_does(
    spark: SparkSession,
    model_uri: str,
    write_prompts: WritePrompts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Job, "_submit", interrupted)
    job = {"model": model_uri, "input": write_prompts([SPAIN]), "output": str(tmp_path / "out")}
    with pytest.raises(KeyboardInterrupt, match="0 of 1 rows are in the output"):
        phi3_batch.score(spark, **job)
    last = mlflow.search_runs(search_all_experiments=True, order_by=["start_time DESC"]).iloc[0]
    assert last["status"] == "KILLED"


def rows_of(table: DataFrame) -> list[Row]:
    return table.orderBy("id").collect()


def test_complete_answers_rows_where_they_are(spark: SparkSession, model_uri: str) -> None:
    asked = [SPAIN, None, "", SPAIN, "\ud7ff"]
    table = spark.createDataFrame(list(enumerate(asked)), "id int, prompt string").repartition(3)
    # what differs each time it is read is one row all the same
    answered = phi3_batch.complete(table.withColumn("luck", F.rand()), model_uri, max_tokens=20)
    assert answered.columns == [
        *("id", "prompt", "luck", "completion", "finish_reason", "prompt_tokens"),
        *("completion_tokens", "total_tokens", "error"),
    ]
    assert answered.rdd.getNumPartitions() == 3
    rows = rows_of(answered)
    assert [row["completion"] for row in rows][:4] == [MADRID, None, None, MADRID]
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes[:4] == [None, "null_prompt", "empty_prompt", None]
    assert (rows[0]["prompt_tokens"], rows[0]["finish_reason"]) == (10, "stop")
    assert rows[1]["prompt_tokens"] is None


def test_complete_gives_equal_sampled_rows_texts_of_their_own(
    spark: SparkSession, model_uri: str
) -> None:
    prompt = F.lit("<|user|>\nTell me<|end|>\n<|assistant|>\n").alias("prompt")
    table = spark.range(40).select("id", prompt)
    sampled = phi3_batch.complete(table.repartition(4), model_uri, temperature=5.0, max_tokens=12)
    assert len({row["completion"] for row in rows_of(sampled)}) > 30


def test_complete_makes_chats_and_keeps_their_responses(spark: SparkSession, chat_uri: str) -> None:
    table = spark.createDataFrame([(1, "Spain"), (2, "Poland")], "id int, country string")
    answered = phi3_batch.complete(
        table,
        chat_uri,
        user_template="What is the capital of {country}?",
        keep="id",
        keep_response=True,
        param={"max_tokens": "id"},
    )
    assert answered.columns[0] == "id"
    assert "country" not in answered.columns
    first, second = rows_of(answered)
    assert (first["completion_tokens"], second["completion_tokens"]) == (1, 2)
    assert first["response"]["choices"][0]["message"]["content"] == first["completion"]
    assert first["response"]["object"] == "chat.completion"


def test_complete_takes_a_stream(spark: SparkSession, model_uri: str, tmp_path: Path) -> None:
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    spark.createDataFrame([(1, SPAIN)], "id int, prompt string").write.format("delta").save(source)
    stream = phi3_batch.complete(spark.readStream.format("delta").load(source), model_uri)
    query = (
        stream.writeStream.format("delta")
        .option("checkpointLocation", f"{out}/_c")
        .trigger(availableNow=True)
    )
    query.start(out).awaitTermination()
    assert spark.read.format("delta").load(out).head()["completion"] == MADRID


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"column": "text"}, "the table has no column 'text'"),
        ({"n": 2}, "has no parameter 'n'"),
        ({"keep": ["nothing"]}, "the input has no column 'nothing' to keep"),
        ({"keep_response": True}, "keeps chat completions"),
        ({"max_tokens": 0}, "max_tokens must be 1 or above"),
    ],
)
def test_complete_says_what_is_wrong_before_any_row(
    options: dict[str, Any], said: str, spark: SparkSession, model_uri: str
) -> None:
    table = spark.createDataFrame([(SPAIN,)], "prompt string")
    with pytest.raises(phi3_batch.Phi3BatchError, match=re.escape(said)):
        phi3_batch.complete(table, model_uri, **options)
