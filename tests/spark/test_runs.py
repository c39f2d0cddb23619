"""Runs that are resumed, refused, brought up to date and verified, in one process.

What happens when processes die is in tests/faults.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from phi3_batch.cli import main
from phi3_batch.scoring.delta import incremental, record, tables
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.cut import Chunk
from phi3_batch.scoring.job.writer import RunWriter
from phi3_batch.scoring.rows import identity
from tests.conftest import Sample
from tests.delta_files import write_table
from tests.spark.conftest import before
from tests.spark.rows import complete
from tests.spark.test_score import SPAIN, score

WritePrompts = Callable[..., str]
Read = Callable[[str], DataFrame]
OUT_OF_BUDGET = 3


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, str]]:
    """The fields that commands have printed, and the last line of error."""

    def read_fields() -> dict[str, str]:
        captured = capsys.readouterr()
        lines = [line.split("  ", 1) for line in captured.out.splitlines() if "  " in line]
        fields = {name.strip(): value.strip() for name, value in lines}
        return fields | {"error": captured.err.splitlines()[-1]}

    return read_fields


Said = Callable[[], dict[str, str]]


@contextmanager
def without_model() -> Iterator[None]:
    """Where no model can be loaded or copied."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plan.load_model", "chunks.model_udf"):
            patch.delattr(f"phi3_batch.scoring.job.{name}")
        yield


@pytest.fixture(scope="module")
def many(samples: list[Sample], tmp_path_factory: Any) -> str:
    """A table of 335 rows, one for each sample: two chunks."""
    rows = [{"id": sample.id, "prompt": sample.prompt} for sample in samples]
    return write_table(tmp_path_factory.mktemp("many") / "prompts", pa.Table.from_pylist(rows))


def run_of(table: DataFrame) -> str:
    [row] = table.select("run_id").distinct().collect()
    return str(row[0])


def test_a_run_that_stopped_is_resumed_and_then_finished(
    model_uri: str,
    many: str,
    read: Read,
    answers: dict[str, str],
    said: Said,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = str(tmp_path / "out")
    stopping = ("--max-output-tokens", "1")
    assert score(model_uri, many, output, *stopping) == OUT_OF_BUDGET
    first = said()
    there = read(output).count()
    assert 0 < there < 335
    assert first["error"] == (
        f"the budget is spent: {there} of 335 rows are in the output; run the same command to"
        " continue"
    )
    run_id = run_of(read(output))
    assert mlflow.get_run(run_id).data.tags["phi3_batch.outcome"] == "stopped by its budget"

    # as if by another release, which cuts finer: a run goes on in the chunks that it has
    monkeypatch.setattr(identity, "_IN_A_SMALL_TABLE", 16)
    assert score(model_uri, many, output) == 0
    second = said()
    assert second["resumed"].startswith(f"{there} rows are in the output, 1 chunks are to do")
    assert second["scored"].startswith(f"{335 - there} rows in ")
    assert second["check"] == "335 in, 335 out, 0 missing, 0 doubled, 0 orphaned"
    rows = read(output).collect()
    assert Counter(row["prompt"] for row in rows) == Counter(answers.keys())
    assert all(row["completion"] == answers[row["prompt"]] for row in rows)
    # one run for both processes, with the figures of all
    assert run_of(read(output)) == run_id
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags["phi3_batch.outcome"]) == ("FINISHED", "complete")
    assert run.data.metrics["rows"] == 335
    steps = mlflow.MlflowClient().get_metric_history(run_id, "progress.rows")
    assert sorted(metric.step for metric in steps) == [there, 335]
    report = mlflow.artifacts.load_text(f"runs:/{run_id}/report.html")
    assert "335" in report
    assert "Madrid" not in report

    # as if it had been killed between its last commit and its record
    client = mlflow.MlflowClient()
    client.update_run(run_id, "RUNNING")
    client.delete_tag(run_id, "phi3_batch.outcome")
    copy = tmp_path / "report.html"
    with without_model():
        assert score(model_uri, many, output, "--mode", "overwrite", "--report", str(copy)) == 0
    third = said()
    assert "335 rows are in the output, 0 chunks are to do" in third["resumed"]
    assert third["mlflow"] == f"run {run_id} has its record now"
    assert read(output).count() == 335
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags["phi3_batch.outcome"]) == ("FINISHED", "complete")
    assert run.data.metrics["completion_tokens"] > 0
    assert "335" in copy.read_text(encoding="utf-8")


def test_another_run_never_mixes_with_the_old_by_itself(
    model_uri: str, many: str, read: Read, said: Said, tmp_path: Path, spark: SparkSession
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    shutil.copytree(many, source)
    assert score(model_uri, source, output, "--max-output-tokens", "1") == OUT_OF_BUDGET
    there = read(output).count()
    said()

    assert score(model_uri, source, output, "--max-tokens", "9", "--stop", SPAIN) == 1
    error = said()["error"]
    assert "has another run (params.max_tokens: default, now 9; params.stop:" in error
    assert error.endswith("use --mode append or --mode overwrite")
    assert "Spain" not in error

    assert score(model_uri, source, output, "--max-tokens", "9", "--mode", "append") == 1
    error = said()["error"]
    assert f"has {there} of 335 rows of a run that is not finished" in error
    assert "finish it with the command as it was" in error

    read(many).limit(3).write.format("delta").mode("append").save(source)
    assert score(model_uri, source, output) == 1
    assert "(input version: 0, now 1)" in said()["error"]
    assert read(output).count() == there

    assert score(model_uri, source, output, "--mode", "overwrite") == 0
    assert read(output).count() == 338


def test_rows_that_somebody_deleted_are_noticed(
    spark: SparkSession, model_uri: str, many: str, read: Read, said: Said, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    table = f"delta.`{output}`"
    verify = ["verify", "--input", many, "--output", output]
    assert score(model_uri, many, output) == 0
    assert main(verify) == 0
    assert said()["check"] == "335 in, 335 out, 0 missing, 0 doubled, 0 orphaned"

    some = read(output).limit(2).collect()
    spark.sql(f"DELETE FROM {table} WHERE request_id = '{some[0]['request_id']}'")
    spark.sql(f"INSERT INTO {table} SELECT * FROM {table} WHERE id = '{some[1]['id']}'")
    another = read(output).where(f"id NOT IN ('{some[0]['id']}', '{some[1]['id']}')").first()
    spark.sql(f"UPDATE {table} SET request_id = 'x' WHERE id = '{another['id']}'")
    assert main(verify) == 1
    assert said()["check"] == "335 in, 335 out, 2 missing, 1 doubled, 1 orphaned"
    assert score(model_uri, many, output) == 1
    assert "RESTORE TABLE" in said()["error"]

    # a chunk that is gone as a whole is scored again, and rows of others stay
    spark.sql(f"RESTORE TABLE {table} TO VERSION AS OF 1")
    first = read(output).groupBy("scored_at").count().orderBy("scored_at").first()["scored_at"]
    spark.sql(f"DELETE FROM {table} WHERE scored_at = '{first}'")
    gone = 335 - read(output).count()
    assert 0 < gone < 335
    assert score(model_uri, many, output) == 0
    assert said()["scored"].startswith(f"{gone} rows in ")
    assert main(verify) == 0


def test_chunks_that_are_small_for_the_slots_are_scored_side_by_side(
    spark: SparkSession,
    model_uri: str,
    many: str,
    read: Read,
    answers: dict[str, str],
    said: Said,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "_IN_A_SMALL_TABLE", 32)
    monkeypatch.setattr(identity, "_CHUNKS_OF_A_SMALL_TABLE", 4)
    write_chunk, in_flight, most = RunWriter.write, list[int](), list[int]()

    def write_and_note(writer: RunWriter, chunk: Chunk) -> ScoredChunk:
        in_flight.append(chunk.number)
        most.append(len(in_flight))
        scored = write_chunk(writer, chunk)
        in_flight.remove(chunk.number)
        return scored

    monkeypatch.setattr(RunWriter, "write", write_and_note)
    output = str(tmp_path / "out")
    assert score(model_uri, many, output, "--limit", "120") == 0
    assert said()["check"] == "120 in, 120 out, 0 missing, 0 doubled, 0 orphaned"
    rows = read(output).collect()
    assert all(row["completion"] == answers[row["prompt"]] for row in rows)
    # a commit for each chunk: two that are planned side by side can share a microsecond
    assert spark.sql(f"DESCRIBE HISTORY delta.`{output}`").count() == 4
    # about 30 requests in each, 64 in none: two at least fill a slot, and one more waits for it
    assert max(most) >= 3


def test_equal_requests_are_scored_once(
    model_uri: str, samples: list[Sample], read: Read, write_prompts: WritePrompts, tmp_path: Path
) -> None:
    prompts = [samples[number % 10].prompt for number in range(300)]
    output = str(tmp_path / "out")
    assert score(model_uri, write_prompts(prompts), output) == 0
    rows = read(output).collect()
    assert Counter(row["prompt"] for row in rows) == Counter(prompts)
    answers = {sample.prompt: sample.answer for sample in samples}
    assert all(row["completion"] == answers[row["prompt"]] for row in rows)
    assert len({row["request_id"] for row in rows}) == 10
    assert mlflow.get_run(rows[0]["run_id"]).data.metrics["requests"] == 10


@pytest.mark.parametrize("kind", ["prompts", "chats"])
def test_sampled_copies_each_have_their_own_text_and_the_same_again(
    kind: str, model_uri: str, chat_uri: str, spark: SparkSession
) -> None:
    names = ["Spain"] * 8 + ["Peru"]
    rows = [(place, f"What is the capital of {name}?") for place, name in enumerate(names)]
    uri = model_uri if kind == "prompts" else chat_uri
    own = {"seed": 7} if kind == "prompts" else {"user_template": "{prompt}"}
    texts = []
    for parts in (1, 4):
        table = spark.createDataFrame(rows, "id long, prompt string").repartition(parts)
        scored = complete(table, uri, temperature=3.0, max_tokens=12, **own)
        texts.append({row["id"]: row["completion"] for row in scored})
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == 9


def test_an_incremental_run_scores_what_is_new_or_has_changed(
    spark: SparkSession,
    model_uri: str,
    write_prompts: WritePrompts,
    read: Read,
    said: Said,
    tmp_path: Path,
) -> None:
    ask = "<|user|>\nWhat is the capital of {}?<|end|>\n<|assistant|>\n"
    prompts = [ask.format(f"Place {number}") for number in range(97)]
    prompts += [f"{number} " * 5000 for number in range(97, 100)]
    source, output = write_prompts(prompts), str(tmp_path / "out")
    table = f"delta.`{source}`"
    by_id = ("--id", "id")
    assert score(model_uri, source, output, *by_id) == 0
    assert said()["changes"].startswith("100 new, 0 changed, 0 failed before, 0 unchanged")
    before = {row["id"]: row for row in read(output).collect()}

    with without_model():
        assert score(model_uri, source, output, *by_id) == 0
    assert said()["changes"].startswith("0 new, 0 changed, 3 failed before, 97 unchanged")

    added = [(number, ask.format(f"Place {number}")) for number in range(100, 110)]
    new = spark.createDataFrame(added, "id long, prompt string")
    new.write.format("delta").mode("append").save(source)
    spark.sql(f"UPDATE {table} SET prompt = concat('Please: ', prompt) WHERE id BETWEEN 10 AND 14")
    spark.sql(f"DELETE FROM {table} WHERE id = 20")
    assert score(model_uri, source, output, *by_id, "--retry-errors") == 0
    fields = said()
    assert fields["changes"] == "10 new, 5 changed, 3 failed before, 91 unchanged, 1 removed"
    assert fields["scored"].startswith("18 rows in ")
    assert fields["scored"].endswith(" 18 requests in 1 chunks")
    after = {row["id"]: row for row in read(output).collect()}
    assert len(after) == read(output).count() == 110
    unchanged = set(range(97)) - {10, 11, 12, 13, 14}
    assert all(after[number] == before[number] for number in unchanged)
    assert after[10]["prompt"].startswith("Please: ")
    assert after[10]["run_id"] != before[10]["run_id"]
    assert after[98]["scored_at"] > before[98]["scored_at"]
    verify = ["verify", "--input", source, "--output", output]
    assert main(verify) == 0
    assert said()["check"] == "109 in, 110 out, 0 missing, 0 doubled, 1 orphaned"

    with without_model():
        assert score(model_uri, source, output, *by_id, "--delete-removed") == 0
    assert read(output).where("id = 20").count() == 0
    assert main(verify) == 0
    assert said()["check"] == "109 in, 109 out, 0 missing, 0 doubled, 0 orphaned"

    assert score(model_uri, source, output, *by_id, "--max-tokens", "5") == 1
    assert "was scored with other settings (params.max_tokens: default, now 5)" in said()["error"]
    assert score(model_uri, source, output, *by_id, "--mode", "append") == 1
    assert "cannot be used with --mode append" in said()["error"]


def test_a_new_copy_of_a_sampled_request_has_a_text_of_its_own(
    model_uri: str, write_prompts: WritePrompts, read: Read, tmp_path: Path
) -> None:
    hot = ("--id", "id", "--temperature", "3", "--max-tokens", "12")
    twin = SPAIN.replace("\n", "")
    source = write_prompts([SPAIN, SPAIN, None, twin, "why? " * 5000])
    output = str(tmp_path / "out")
    assert score(model_uri, source, output, *hot) == 0
    before = {row["id"]: row for row in read(output).collect()}

    added = [(5, SPAIN), (6, SPAIN), (7, twin), (8, "Peru?"), (9, "Peru?"), (10, None)]
    rows = read(source).sparkSession.createDataFrame(added, "id long, prompt string")
    rows.write.format("delta").mode("append").save(source)
    assert score(model_uri, source, output, *hot, "--retry-errors") == 0
    after = {row["id"]: row for row in read(output).collect()}
    assert len(after) == read(output).count() == 11
    assert all(after[number] == before[number] for number in (0, 1, 3))
    texts = [row["completion"] for row in after.values() if row["error"] is None]
    assert len(set(texts)) == 8
    assert after[4]["error"]["code"] == "prompt_too_long"

    # the texts that the model gives when all copies are asked in one call
    model = mlflow.pyfunc.load_model(model_uri)
    for prompt, numbers in ((SPAIN, (0, 1, 5, 6)), (twin, (3, 7)), ("Peru?", (8, 9))):
        at_once = model.predict(
            pd.DataFrame({"prompt": [prompt] * len(numbers)}),
            params={"temperature": 3.0, "max_tokens": 12},
        )
        assert {after[number]["completion"] for number in numbers} == set(at_once)


def test_copies_are_numbered_on_from_those_that_the_output_has(
    spark: SparkSession, tmp_path: Path
) -> None:
    before = [(1, "r"), (2, "r"), (3, "r"), (4, "s")]
    table = spark.createDataFrame(before, "id long, request_id string")
    table.write.format("delta").save(str(tmp_path / "out"))
    output = tables.open_output(spark, Location(str(tmp_path / "out")))
    # 1 has changed, and another may have its number's text; 4 is asked again
    to_score = spark.createDataFrame(
        [(1, "s"), (4, "s"), (5, "r"), (6, "t")], "id long, asked string"
    )
    counted = incremental.count_existing(spark, to_score, "asked", output, ["id"], existing="n")
    assert {row["id"]: row["n"] for row in counted.collect()} == {1: 0, 4: 0, 5: 3, 6: 0}


def test_ids_that_name_no_row(
    spark: SparkSession, model_uri: str, said: Said, tmp_path: Path
) -> None:
    rows = [{"id": number // 2, "prompt": "a"} for number in range(20)]
    source = write_table(tmp_path / "in", pa.Table.from_pylist(rows))
    output = str(tmp_path / "out")
    assert score(model_uri, source, output, "--id", "id") == 1
    assert said()["error"] == (
        f"error: 20 rows of {source} share 10 values of id: an id names one row"
        " (GROUP BY id HAVING count(*) > 1 finds them)"
    )
    assert score(model_uri, source, output, "--id", "nr") == 1
    assert "--id nr is not among the columns of the output" in said()["error"]
    spark.sql(f"UPDATE delta.`{source}` SET id = NULL WHERE id < 3")
    assert score(model_uri, source, output, "--id", "id") == 1
    assert said()["error"] == f"error: 6 rows of {source} have no id: an id names a row"
    assert score(model_uri, source, output, "--retry-errors") == 1
    assert "--retry-errors needs --id" in said()["error"]
    assert score(model_uri, source, output, "--id", "id", "--delete-removed", "--limit", "5") == 1
    assert "--delete-removed would delete all rows beyond --limit" in said()["error"]
    assert not Path(output).exists()


def test_a_plan_says_what_a_job_would_take(
    model_uri: str, samples: list[Sample], write_prompts: WritePrompts, said: Said, tmp_path: Path
) -> None:
    prompts = [*[sample.prompt for sample in samples[:20]] * 2, None, "why? " * 5000]
    source, output = write_prompts(prompts), tmp_path / "out"
    command = ["--model", model_uri, "--input", source, "--output", str(output)]
    assert main(["plan", *command, "--executors", "4"]) == 0
    fields = said()
    assert fields["rows"] == "42 (null_prompt: 1), 21 requests in 1 chunks"
    assert fields["tokens in"].endswith("in 21 requests (exact)")
    assert fields["will fail"] == "2 (null_prompt: 1, prompt_too_long: 1)"
    assert fields["pilot"].startswith("9 requests on one executor: ")
    assert "for 21 requests on 4 executors with" in fields["expected"]
    assert fields["memory"].startswith("about ")
    assert not output.exists()


@pytest.mark.skipif(before("4.0"), reason="a table is replaced by its path")
def test_a_table_by_name_is_resumed_too(
    spark: SparkSession, model_uri: str, many: str, said: Said
) -> None:
    spark.sql("DROP TABLE IF EXISTS resumed_completions")
    spark.sql("CREATE TABLE resumed_completions (x int) USING delta")
    output, replace = "resumed_completions", ("--mode", "overwrite")
    try:
        stopping = (*replace, "--max-output-tokens", "1")
        assert score(model_uri, many, output, *stopping) == OUT_OF_BUDGET
        assert score(model_uri, many, output, *replace) == 0
        assert spark.table(output).count() == 335
        assert main(["verify", "--input", many, "--output", output]) == 0
    finally:
        spark.sql("DROP TABLE resumed_completions")


def test_a_report_goes_where_it_is_wanted(
    model_uri: str, write_prompts: WritePrompts, said: Said, tmp_path: Path
) -> None:
    source, output = write_prompts([SPAIN, None]), str(tmp_path / "out")
    nowhere = str(tmp_path / "no" / "report.html")
    assert score(model_uri, source, output, "--report", nowhere) == 1
    assert said()["error"] == f"error: --report: there is no folder {tmp_path}/no"
    report = tmp_path / "report.html"
    assert score(model_uri, source, output, "--report", str(report)) == 0
    text = report.read_text()
    assert "null_prompt" in text
    assert "Spain" not in text
    assert "Madrid" not in text


def test_a_run_that_a_newer_release_has_begun_is_left_to_it(
    model_uri: str,
    write_prompts: WritePrompts,
    read: Read,
    said: Said,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, output = write_prompts([None, ""]), str(tmp_path / "out")
    assert score(model_uri, source, output) == 0
    monkeypatch.setattr(record, "VERSION", record.VERSION - 1)
    assert score(model_uri, source, output) == 1
    assert "a newer release of phi3-batch has begun this run in output" in said()["error"]
    assert main(["verify", "--input", source, "--output", output]) == 1
    assert "by another release of phi3-batch, which can verify it" in said()["error"]
    assert score(model_uri, source, output, "--mode", "overwrite") == 0
    assert read(output).count() == 2


def test_verify_needs_a_run(
    spark: SparkSession, write_prompts: WritePrompts, said: Said, tmp_path: Path
) -> None:
    source = write_prompts([SPAIN])
    assert main(["verify", "--input", source, "--output", f"{tmp_path}/none"]) == 1
    assert said()["error"] == f"error: no Delta table {tmp_path}/none to verify"
    assert main(["verify", "--input", source, "--output", source]) == 1
    assert "has no run of phi3-batch" in said()["error"]
