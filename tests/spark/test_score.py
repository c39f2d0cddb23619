"""The job on the embedded model, which knows its answers: real Spark, Delta, MLflow and runtime."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from phi3_batch.cli import main
from phi3_batch.engines import Engine
from phi3_batch.scoring import compat
from phi3_batch.scoring.job import forecast
from tests.conftest import Sample, fastest_engine
from tests.delta_files import write_table
from tests.spark.conftest import before
from tests.spark.rows import complete
from tests.worker_log import engine_loads

WritePrompts = Callable[..., str]
Read = Callable[[str], DataFrame]

SPAIN = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
MADRID = "The capital of Spain is Madrid."
OUTPUT_COLUMNS = [
    "completion",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "error",
    "request_id",
    "model",
    "run_id",
    "fingerprint",
    "scored_at",
]


def score(model: str, source: str, output: str, *options: str) -> int:
    return main(["score", "--model", model, "--input", source, "--output", output, *options])


def test_2000_rows_in_8_partitions_are_answered_right_by_one_engine(
    spark: SparkSession,
    model_uri: str,
    samples: list[Sample],
    tiny_engine: Engine,
    write_prompts: WritePrompts,
    read: Read,
    answers: dict[str, str],
    worker_log: Path,
    tmp_path: Path,
) -> None:
    prompts = [samples[number % len(samples)].prompt for number in range(2000)]
    source, output = write_prompts(prompts, files=8), str(tmp_path / "completions")
    loads_before = engine_loads(worker_log)

    assert score(model_uri, source, output) == 0

    rows = read(output).collect()
    assert sorted(row["id"] for row in rows) == list(range(2000))
    encode = tiny_engine.tokenizer.encode_prompt
    for row in rows:
        assert row["completion"] == answers[row["prompt"]]
        assert row["finish_reason"] == "stop"
        assert row["error"] is None
        assert row["prompt_tokens"] == len(encode(row["prompt"]))
        content = tiny_engine.tokenizer.encode_content(row["completion"])
        assert row["completion_tokens"] == len(content)
        assert row["total_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    # one engine in each worker process, however many tasks it ran and models MLflow loaded
    loads = engine_loads(worker_log)
    assert loads
    assert len(loads) - len(loads_before) <= 1  # none, if the worker of a test before lives on


def test_bad_rows_are_coded_and_touch_no_other(
    spark: SparkSession, model_uri: str, samples: list[Sample]
) -> None:
    good = samples[:20]
    bad = {
        "null": ("null_prompt", None),
        "empty": ("empty_prompt", b""),
        "blank": ("empty_prompt", " \t\n　".encode()),
        "control": ("invalid_text", b"<|user|>\nbeep \x07<|end|>\n<|assistant|>\n"),
        "nul": ("invalid_text", b"\x00"),
        "not utf-8": ("invalid_text", b"<|user|>\xff\xfe<|end|><|assistant|>"),
        "surrogate": ("invalid_text", b"<|user|>\xed\xa0\x80<|end|><|assistant|>"),
        "too long": ("prompt_too_long", b"<|user|>" + b"why? " * 5000 + b"<|end|><|assistant|>"),
        "1 MB": ("prompt_too_long", b"x" * 2**20),
        "1 MB of spaces": ("empty_prompt", b" " * 2**20),
    }
    rows = [(sample.id, sample.prompt.encode()) for sample in good]
    for number, (name, (_, prompt)) in enumerate(bad.items()):
        rows.insert(2 * number, (name, prompt))
    table = spark.createDataFrame(rows, "id string, bytes binary")
    texts = table.selectExpr("id", "cast(bytes as string) prompt")
    scored = {row["id"]: row for row in complete(texts, model_uri, keep=["id"])}
    assert len(scored) == len(rows)
    assert {sample.id: scored[sample.id]["completion"] for sample in good} == {
        sample.id: sample.answer for sample in good
    }
    assert all(scored[sample.id]["error"] is None for sample in good)
    assert {name: scored[name]["error"]["code"] for name in bad} == {
        name: code for name, (code, _) in bad.items()
    }
    for name in bad:
        row = scored[name]
        assert row["completion"] is None
        assert row["finish_reason"] is None
        assert row["completion_tokens"] is None
        assert row["total_tokens"] is None
        assert row["error"]["message"]
        # a megabyte is too long whatever its tokens are, and never gets to a tokenizer
        assert (row["prompt_tokens"] is not None) == (name == "too long")


def test_a_job_is_the_same_in_its_table_its_run_and_its_summary(
    model_uri: str,
    write_prompts: WritePrompts,
    read: Read,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = write_prompts([SPAIN, "", None]), str(tmp_path / "out")
    assert score(model_uri, source, output, "--max-tokens", "50") == 0

    table = read(output)
    assert table.columns == ["id", "prompt", *OUTPUT_COLUMNS]
    assert table.schema["error"].dataType.simpleString() == "struct<code:string,message:string>"
    row = table.orderBy("id").first()
    assert row["completion"] == MADRID
    assert row["model"] == "models:/phi3-tiny/1"
    assert row["scored_at"] is not None

    run = mlflow.get_run(row["run_id"])
    assert run.info.status == "FINISHED"
    params, metrics = run.data.params, run.data.metrics
    assert params["model_version"] == "models:/phi3-tiny/1"
    assert params["input"] == source
    assert (params["input_version"], run.data.tags["output_version"]) == ("0", "0")
    assert run.data.tags["phi3_batch.engine"].startswith(fastest_engine())
    assert params["fingerprint"] == row["fingerprint"]
    assert params["params.max_tokens"] == "50"
    assert (metrics["rows"], metrics["rows_with_errors"]) == (3, 2)
    assert (metrics["errors.empty_prompt"], metrics["errors.null_prompt"]) == (1, 1)
    assert (metrics["prompt_tokens"], metrics["completion_tokens"]) == (10, 7)
    assert metrics["completion_tokens_per_second"] > 0

    said = capsys.readouterr().out
    lines = [line.split("  ", 1) for line in said.splitlines() if "  " in line]
    fields = {name.strip(): value.strip() for name, value in lines}
    assert fields["scored"].startswith("3 rows in ")
    assert fields["errors"].startswith("2 (")
    assert (fields["tokens in"], fields["tokens out"]) == ("10", "7")
    assert fields["table"] == f"{output} (version 0)"
    assert fields["mlflow"].startswith(f"run {row['run_id']} in sqlite:///")


def test_generation_options_reach_the_model(model_uri: str, spark: SparkSession) -> None:
    table = spark.createDataFrame([(SPAIN,)], "prompt string")
    [first] = complete(table, model_uri, max_tokens=3)
    assert (first["finish_reason"], first["completion_tokens"]) == ("length", 3)
    assert MADRID.startswith(first["completion"])

    options = {"stop": ["drid"], "temperature": 0.01, "seed": 7, "top_k": 5}
    [second] = complete(table, model_uri, **options)
    assert (second["completion"], second["finish_reason"]) == ("The capital of Spain is Ma", "stop")


def test_files_are_scored_too(model_uri: str, read: Read, tmp_path: Path) -> None:
    """By CSV; what is read of which files is in test_input_files.py."""
    source, output = tmp_path / "prompts.csv", str(tmp_path / "out")
    pd.DataFrame({"prompt": [SPAIN], "note": ["a,b"]}).to_csv(source, index=False)
    assert score(model_uri, str(source), output) == 0
    row = read(output).first()
    assert (row["completion"], row["note"]) == (MADRID, "a,b")


@pytest.mark.skipif(before("4.0"), reason="a table is replaced by its path")
def test_tables_are_named_as_well_as_pathed(
    spark: SparkSession, model_uri: str, write_prompts: WritePrompts
) -> None:
    spark.sql(f"CREATE TABLE named_prompts USING delta LOCATION '{write_prompts([SPAIN])}'")
    spark.sql("CREATE TABLE named_completions (x int) USING delta")
    try:
        replace = ("--mode", "overwrite")
        assert score(model_uri, "named_prompts", "named_completions", *replace) == 0
        assert spark.table("named_completions").first()["completion"] == MADRID
        spark.sql("CREATE VIEW viewed_prompts AS SELECT prompt FROM named_prompts")
        assert score(model_uri, "viewed_prompts", "named_completions", *replace) == 0
        assert spark.table("named_completions").columns == ["prompt", *OUTPUT_COLUMNS]
    finally:
        spark.sql("DROP VIEW IF EXISTS viewed_prompts")
        spark.sql("DROP TABLE IF EXISTS named_prompts")
        spark.sql("DROP TABLE IF EXISTS named_completions")


def test_a_spark_that_may_drop_a_table_replaces_none_by_name(
    spark: SparkSession,
    model_uri: str,
    write_prompts: WritePrompts,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compat, "REPLACES_BY_NAME", False)
    spark.sql("CREATE TABLE kept_completions (x int) USING delta")
    try:
        source = write_prompts([SPAIN])
        assert score(model_uri, source, "kept_completions", "--mode", "overwrite") == 1
        assert "give its path, or DROP it first" in capsys.readouterr().err
        path = spark.sql("DESCRIBE DETAIL kept_completions").head()["location"]
        assert score(model_uri, source, path, "--mode", "overwrite") == 0  # the advice
    finally:
        spark.sql("DROP TABLE kept_completions")


def test_modes_append_and_overwrite(
    model_uri: str, write_prompts: WritePrompts, read: Read, tmp_path: Path
) -> None:
    source, output = write_prompts([SPAIN, None]), str(tmp_path / "out")
    assert score(model_uri, source, output) == 0
    assert score(model_uri, source, output, "--mode", "append", "--max-tokens", "9") == 0
    assert read(output).count() == 4
    another = ("--mode", "overwrite", "--keep", "id", "--max-tokens", "3")
    assert score(model_uri, source, output, *another) == 0
    assert read(output).count() == 2
    assert read(output).columns == ["id", *OUTPUT_COLUMNS]
    # the first run again: Delta remembers its transactions, and would drop its chunks
    assert score(model_uri, source, output, "--mode", "overwrite") == 0
    rows = read(output).orderBy("id").collect()
    assert [row["completion"] for row in rows] == [MADRID, None]


def test_limit_and_another_prompt_column(model_uri: str, read: Read, tmp_path: Path) -> None:
    rows = [{"id": number, "q": SPAIN} for number in range(50)]
    source = write_table(tmp_path / "in", pa.Table.from_pylist(rows), files=4)
    output = str(tmp_path / "out")
    assert score(model_uri, source, output, "--limit", "7", "--column", "q") == 0
    completions = [row["completion"] for row in read(output).collect()]
    assert completions == [MADRID] * 7


def test_an_empty_table_is_a_success_with_an_empty_output(
    model_uri: str, write_prompts: WritePrompts, read: Read, tmp_path: Path
) -> None:
    source, output = write_prompts([]), str(tmp_path / "out")
    assert score(model_uri, source, output) == 0
    assert read(output).columns == ["id", "prompt", *OUTPUT_COLUMNS]
    assert read(output).count() == 0


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    model_uri: str,
    write_prompts: WritePrompts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forecast, "_MOST_CHARACTERS", 1)  # and one request all the same
    runs_before = len(mlflow.search_runs(search_all_experiments=True))
    source, output = write_prompts([SPAIN, "Hi", None]), tmp_path / "out"
    assert score(model_uri, source, str(output), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "models:/phi3-tiny/1 (as models:/phi3-tiny@champion)" in said
    assert "3 (null_prompt: 1), 2 requests in 1 chunks" in said
    assert "from 1 of them" in said
    assert "nothing was scored into the output" in said
    assert not output.exists()
    assert len(mlflow.search_runs(search_all_experiments=True)) == runs_before
