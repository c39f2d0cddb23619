"""Faults that need no other process: files that are gone, and a model that hangs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.errors import ScoringError
from phi3_batch.models.wrap import wrap_pipeline
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.plan import plan_scoring
from phi3_batch.scoring.job.run import Budget, Progress, run_scoring
from phi3_batch.scoring.rows import time_limit, udf, worker
from phi3_batch.scoring.rows.model import ScoringModel
from phi3_batch.scoring.rows.source import Source
from tests.spark.test_other_models import log
from tests.spark.test_score import SPAIN, score

WritePrompts = Callable[..., str]
Read = Callable[[str], DataFrame]


@pytest.fixture
def vacuum(spark: SparkSession) -> Callable[[str], None]:
    """Delete the rows of a table, and the files that had them."""

    def run(path: str) -> None:
        settings = {
            "spark.databricks.delta.retentionDurationCheck.enabled": "false",
            # else VACUUM lists the folder in 10,000 tasks
            "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        }
        for name, value in settings.items():
            spark.conf.set(name, value)
        spark.sql(f"DELETE FROM delta.`{path}` WHERE id >= 0")
        spark.sql(f"VACUUM delta.`{path}` RETAIN 0 HOURS")
        for name in settings:
            spark.conf.unset(name)

    return run


def test_an_input_that_is_vacuumed_ends_the_run_with_what_is_done(
    spark: SparkSession,
    model_uri: str,
    write_prompts: WritePrompts,
    read: Read,
    vacuum: Callable[[str], None],
    tmp_path: Path,
) -> None:
    prompts = [SPAIN.replace("Spain", f"Place {number}") for number in range(600)]
    source, output = write_prompts(prompts), str(tmp_path / "out")
    options = ScoreOptions(model_uri, Location(source), Location(output))
    plan = plan_scoring(spark, options, wrap_pipeline=wrap_pipeline)
    assert len(plan.chunks) == 4

    def vacuum_once(scored: ScoredChunk, progress: Progress) -> None:
        if progress.chunks_done == 1:
            vacuum(source)

    with pytest.raises(ScoringError, match="files of the input's version are gone") as raised:
        run_scoring(
            spark,
            plan,
            run_id="test",
            budget=Budget(),
            on_progress=lambda progress: None,
            on_chunk=vacuum_once,
        )
    there = read(output)
    assert f"{there.count()} of 600 rows are in the output, and the input as it is now" in str(
        raised.value
    )
    assert there.select("request_id").distinct().count() == there.count() > 0


def test_a_copy_that_is_damaged_on_its_way_to_the_workers_ends_the_job(
    model_uri: str,
    write_prompts: WritePrompts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    logged = mlflow.artifacts.download_artifacts(model_uri)
    copy = Path(shutil.copytree(logged, tmp_path / "model"))
    [data] = copy.rglob("model.onnx.data")

    def damaged_udf(spark: SparkSession, model: ScoringModel, *, greedy: bool) -> udf.ModelUdf:
        data.write_bytes(bytes(data.stat().st_size))
        return udf.model_udf(spark, model, greedy=greedy)

    # the driver has loaded it
    monkeypatch.setattr("phi3_batch.scoring.job.chunks.model_udf", damaged_udf)
    assert score(str(copy), write_prompts([SPAIN]), str(tmp_path / "out")) == 1
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "model.onnx.data is not the file that was logged" in line
    assert line.endswith("copy it again, or log the model again; the output is unchanged")
    assert not list((tmp_path / "out").glob("_delta_log/*.json"))  # nothing was committed


def test_a_row_that_hangs_is_found_and_costs_no_other(
    store: Path,
    write_prompts: WritePrompts,
    read: Read,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a model's own time alone; few rows, so that few workers have to be waited for
    monkeypatch.setattr(worker, "HANG_SECONDS", 3)
    monkeypatch.setattr(time_limit, "_SECONDS_PER_TOKEN", 0)
    monkeypatch.setattr(time_limit, "_SECONDS_PER_CHARACTER", 0)
    prompts = ["sound", "endless"]
    output = str(tmp_path / "out")
    assert score(log("hanging"), write_prompts(prompts), output) == 0
    rows = {row["prompt"]: row for row in read(output).collect()}
    assert len(rows) == len(prompts)
    assert rows.pop("endless")["error"]["code"] == "worker_crashed"
    assert all(row["completion"] == prompt for prompt, row in rows.items())


def limit_of(spark: SparkSession, options: ScoreOptions) -> float:
    """What a batch of all rows of a job may take, in seconds."""
    plan = plan_scoring(spark, options, wrap_pipeline=wrap_pipeline)
    assert plan.work is not None
    [row] = plan.work.sound().agg(F.sum(plan.work.allowed_s)).collect()
    return worker.HANG_SECONDS + float(row[0])


def test_a_worker_that_reads_long_prompts_does_not_count_as_one_that_hangs(
    spark: SparkSession, model_uri: str, write_prompts: WritePrompts, tmp_path: Path
) -> None:
    source = write_prompts(["How long is this? " * 1_000 + str(n) for n in range(3)] + [None])
    options = ScoreOptions(
        model_uri, Location(source), Location(str(tmp_path / "out")), generation={"max_tokens": 1}
    )
    # 5,000 tokens of 3 prompts, of which a small machine reads 20 a second
    assert 600 + 3 * 5_000 / 20 < limit_of(spark, options) < 100_000


def test_a_row_may_take_what_its_own_parameters_ask_for(
    spark: SparkSession, chat_uri: str, tmp_path: Path
) -> None:
    spark.sql(
        "select array(struct('user' role, 'Hi ' || id content)) messages, 1 most,"
        " if(id = 7, 4000, 1) longest, if(id = 7, 128, 1) answers from range(20)"
    ).write.format("delta").save(f"{tmp_path}/in")
    options = ScoreOptions(
        chat_uri,
        Location(f"{tmp_path}/in"),
        Location(f"{tmp_path}/out"),
        source=Source(param_columns={"max_tokens": "longest", "n": "answers"}),
    )
    # two cores write some 60 tokens a second, of 128 answers at once
    limit = limit_of(spark, options)
    assert limit > 128 * 4_000 / 60
    assert limit < 600 + 2 * (128 * 4_000 * 2)  # and the other rows are what they are
