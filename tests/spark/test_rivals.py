"""Runs that write to one table at the same time: each row once, or a run that says it is not."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.cli import main
from phi3_batch.models.wrap import wrap_pipeline
from phi3_batch.scoring.delta.balance import Balance
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.cut import Chunk
from phi3_batch.scoring.job.plan import plan_scoring
from phi3_batch.scoring.job.run import Budget, run_scoring
from phi3_batch.scoring.job.writer import RunWriter
from phi3_batch.scoring.rows import identity
from phi3_batch.scoring.rows.answers import AnswerColumns, answer_type
from tests.spark.test_runs import said as said
from tests.spark.test_score import score

Read = Callable[[str], DataFrame]
Said = Callable[[], dict[str, str]]
Meanwhile = Callable[[Callable[[], None]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Have something happen once, before a run commits what comes behind its first chunk."""
    write_chunk = RunWriter.write

    def arrange(event: Callable[[], None]) -> None:
        events, lock = [event], Lock()

        def write_later(writer: RunWriter, chunk: Chunk) -> ScoredChunk:
            if writer._run_id != BESIDE:
                with lock:
                    if events:
                        events.pop()()
            return write_chunk(writer, chunk)

        monkeypatch.setattr(RunWriter, "write", write_later)

    return arrange


PROMPTS = [f"Why {number}?" for number in range(24)]


@pytest.fixture
def source(write_prompts: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of 24 short prompts, which make two chunks."""
    monkeypatch.setattr(identity, "_IN_A_SMALL_TABLE", 12)
    return write_prompts(PROMPTS)


SHORT = ("--max-tokens", "2")
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
BESIDE = "beside"  # in place of an MLflow run's id


@pytest.fixture
def score_beside(spark: SparkSession, model_uri: str) -> Callable[..., Balance | None]:
    """Run a job in a thread that is none of a command's; its check, where it is complete."""

    def run(
        source: str,
        output: str,
        max_tokens: int = 2,
        typed: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Balance | None:
        generation = {"max_tokens": max_tokens, **(typed or {})}
        asked = ScoreOptions(
            model_uri,
            Location(source),
            Location(output),
            generation=generation,
            answers=AnswerColumns(answer_type(generation, ())),
            **options,
        )
        planned = plan_scoring(spark, asked, wrap_pipeline=wrap_pipeline)
        say: dict[str, Any] = {"on_progress": lambda _: None, "on_chunk": lambda *_: None}
        return run_scoring(spark, planned, BESIDE, budget=Budget(), **say).balance

    return run


ScoreBeside = Callable[..., Balance | None]


@pytest.mark.parametrize(
    ("own", "others"),
    [((), {}), (("--choices", "yes,no"), {"json_schema": json.dumps(SCHEMA)})],
    ids=["same columns", "another type"],
)
def test_a_run_that_is_replaced_while_it_works_ends_and_adds_nothing(
    model_uri: str,
    source: str,
    read: Read,
    said: Said,
    meanwhile: Meanwhile,
    score_beside: ScoreBeside,
    tmp_path: Path,
    own: tuple[str, ...],
    others: dict[str, str],
) -> None:
    output, checks = str(tmp_path / "out"), list[Balance | None]()
    meanwhile(lambda: checks.append(score_beside(source, output, 3, others, mode="overwrite")))
    assert score(model_uri, source, output, *SHORT, *own) == 1
    assert str(checks[0]) == "24 in, 24 out, 0 missing, 0 doubled, 0 orphaned"
    assert "has replaced output" in said()["error"]
    assert read(output).count() == 24
    assert main(["verify", "--input", source, "--output", output]) == 0


def test_rows_of_no_known_run_are_named(
    model_uri: str,
    source: str,
    read: Read,
    said: Said,
    meanwhile: Meanwhile,
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")

    def add_rows() -> None:
        rows = read(output).limit(2).withColumn("fingerprint", F.lit("another"))
        rows.write.format("delta").mode("append").save(output)

    meanwhile(add_rows)
    assert score(model_uri, source, output, *SHORT) == 1
    assert "2 of no run of its history" in said()["error"]
    assert main(["verify", "--input", source, "--output", output]) == 1
    assert said()["unknown"] == "2 rows are of no run in the output's history"


def test_an_older_incremental_run_leaves_a_newer_ones_rows_alone(
    spark: SparkSession,
    model_uri: str,
    source: str,
    read: Read,
    said: Said,
    meanwhile: Meanwhile,
    score_beside: ScoreBeside,
    tmp_path: Path,
) -> None:
    output, checks = str(tmp_path / "out"), list[Balance | None]()
    by_id = (*SHORT, "--id", "id", "--delete-removed")

    def go_on_with_a_newer_version() -> None:
        new = spark.createDataFrame([(n, f"Who {n}?") for n in range(24, 34)], read(source).schema)
        new.write.format("delta").mode("append").save(source)
        spark.sql(f"UPDATE delta.`{source}` SET prompt = concat('New: ', prompt) WHERE id < 24")
        checks.append(score_beside(source, output, ids=("id",), delete_removed=True))

    meanwhile(go_on_with_a_newer_version)
    assert score(model_uri, source, output, *by_id) == 1
    assert "a later run" in said()["error"]
    assert str(checks[0]) == "34 in, 34 out, 0 missing, 0 doubled, 0 orphaned"
    there = {row["id"]: row["prompt"] for row in read(output).collect()}
    assert there == {row["id"]: row["prompt"] for row in read(source).collect()}
    assert main(["verify", "--input", source, "--output", output]) == 0
    # the advice: the same command finds that nothing is left to do
    said()
    assert score(model_uri, source, output, *by_id) == 0
    assert said()["changes"].startswith("0 new, 0 changed, 0 failed before, 34 unchanged")


def test_a_run_that_was_planned_before_another_began_is_refused(
    model_uri: str,
    source: str,
    read: Read,
    said: Said,
    score_beside: ScoreBeside,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Both have looked at the table as it was; the one that comes second would mix."""
    output, begin = str(tmp_path / "out"), RunWriter.begin
    assert score(model_uri, source, output, *SHORT) == 0
    said()
    others = [3]

    def begin_later(writer: RunWriter, chunk: Chunk | None) -> ScoredChunk | None:
        if others:
            score_beside(source, output, others.pop(), mode="append")
        return begin(writer, chunk)

    monkeypatch.setattr(RunWriter, "begin", begin_later)
    again = ("--max-tokens", "4", "--mode", "append")
    assert score(model_uri, source, output, *again) == 1
    assert "has begun to write output" in said()["error"]
    assert read(output).count() == 48
    # the advice: started again, it sees the table as it is now
    assert score(model_uri, source, output, *again) == 0
    assert read(output).count() == 72


def test_what_messages_advise_works(
    spark: SparkSession,
    model_uri: str,
    write_prompts: Callable[..., str],
    read: Read,
    said: Said,
    tmp_path: Path,
) -> None:
    source, output = write_prompts(PROMPTS), str(tmp_path / "out")
    command, replace = (model_uri, source, output, *SHORT), ("--mode", "overwrite")
    table = f"delta.`{output}`"
    assert score(*command) == 0
    version = spark.sql(f"DESCRIBE HISTORY {table} LIMIT 1").first()["version"]

    # a row of a chunk was deleted: restored, or made anew
    spark.sql(f"DELETE FROM {table} WHERE id = 3")
    assert score(*command) == 1
    assert "Restore it (RESTORE TABLE), or start over with --mode overwrite" in said()["error"]
    spark.sql(f"RESTORE TABLE {table} TO VERSION AS OF {version}")
    assert score(*command) == 0
    spark.sql(f"DELETE FROM {table} WHERE id = 3")
    assert score(*command, *replace) == 0
    assert read(output).count() == 24

    # one was replaced by a copy of another, so that only the check finds out
    one, two = read(output).head(2)
    spark.sql(f"UPDATE {table} SET request_id = '{one['request_id']}' WHERE id = {two['id']}")
    said()
    assert score(*command) == 1
    assert "1 missing, 1 doubled" in said()["error"]
    assert score(*command, *replace) == 0
    assert main(["verify", "--input", source, "--output", output]) == 0

    # with ids, a row that is there twice
    by_id = (*command, "--id", "id")
    assert score(*by_id, *replace) == 0
    spark.sql(f"INSERT INTO {table} SELECT * FROM {table} WHERE id = 5")
    said()
    assert score(*by_id) == 1
    assert "--mode overwrite" in said()["error"]
    assert score(*by_id, *replace) == 0
    assert read(output).count() == 24
