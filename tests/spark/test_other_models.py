"""Models that are not our prompt model in its full form are scored too, or refused clearly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyspark.sql import DataFrame, SparkSession

from phi3_batch.models.log import log_prompt_model
from tests.conftest import TINY_MODEL, Sample
from tests.spark.rows import complete
from tests.spark.test_score import score

OTHER_MODELS = Path(__file__).resolve().parent / "other_models"

WritePrompts = Callable[..., str]
Read = Callable[[str], DataFrame]


def log(name: str, **options: Any) -> str:
    signature = ModelSignature(Schema([ColSpec("string", "prompt")]), Schema([ColSpec("string")]))
    info = mlflow.pyfunc.log_model(
        name=name,
        python_model=str(OTHER_MODELS / f"{name}.py"),
        pip_requirements=["mlflow"],
        **({"signature": signature} | options),
    )
    return str(info.model_uri)


def test_the_bare_form_gives_completions_without_usage(
    store: Path, samples: list[Sample], answers: dict[str, str], spark: SparkSession
) -> None:
    uri = log_prompt_model(TINY_MODEL, params=False).model_uri
    prompts = [*(sample.prompt for sample in samples[:5]), None, "why? " * 5000]
    table = spark.createDataFrame([(prompt,) for prompt in prompts], "prompt string")
    rows = {row["prompt"]: row for row in complete(table, uri)}
    for prompt in prompts[:5]:
        assert rows[prompt]["completion"] == answers[prompt]
        assert rows[prompt]["error"] is None
        assert rows[prompt]["completion_tokens"] is None
    assert rows[None]["error"]["code"] == "null_prompt"
    assert rows[prompts[-1]]["completion"] is None
    assert rows[prompts[-1]]["error"]["code"] == "engine_error"


def test_a_hand_written_model_is_given_each_row_once(
    store: Path, write_prompts: WritePrompts, read: Read, tmp_path: Path
) -> None:
    """Spark may run a UDF again for each column that is made of its result; it must not here."""
    seen, seen_path = tmp_path / "seen", tmp_path / "seen_path"
    seen_path.write_text(str(seen))
    uri = log("echo", artifacts={"seen_path": str(seen_path)})
    prompts = [f"prompt {number}" for number in range(600)]
    output = str(tmp_path / "out")
    assert score(uri, write_prompts([*prompts, None], files=3), output) == 0
    said = {row["prompt"]: row["completion"] for row in read(output).collect()}
    assert said == {prompt: f"you said: {prompt}" for prompt in prompts} | {None: None}
    pilot, *batches = map(int, seen.read_text().split())
    assert pilot == 2
    assert sum(batches) == 600


def test_a_model_without_signature_is_tried(
    store: Path, write_prompts: WritePrompts, read: Read, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    uri = log("first_only", signature=None)
    assert score(uri, write_prompts(["a", "b", "c"]), output) == 0
    completions = sorted(row["completion"] for row in read(output).collect())
    assert completions == ["you said: a", "you said: b", "you said: c"]


def test_a_model_that_answers_the_first_row_alone_gets_one_row_at_a_time(
    store: Path,
    spark: Any,
    write_prompts: WritePrompts,
    read: Read,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = [f"prompt {number}" for number in range(30)]
    output = str(tmp_path / "out")
    batch_size = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert score(log("first_only"), write_prompts(prompts, files=2), output) == 0
    assert "one row at a time, which is slow" in capsys.readouterr().out
    said = {row["prompt"]: row["completion"] for row in read(output).collect()}
    assert said == {prompt: f"you said: {prompt}" for prompt in prompts}
    assert spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") == batch_size


def test_a_model_that_miscounts_is_refused(
    store: Path,
    write_prompts: WritePrompts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    assert score(log("miscounting"), write_prompts(["a", "b"]), str(output)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gave 3 results for 2 rows" in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("forgetful", "the model returned another number of results than rows"),
        (
            "dying",
            "a Python worker died while the model ran (out of memory, perhaps), with many rows at"
            " once and with none of them alone: give executors more memory",
        ),
    ],
)
def test_a_model_that_fails_only_in_larger_batches_ends_the_job(
    name: str,
    reason: str,
    store: Path,
    write_prompts: WritePrompts,
    read: Read,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = [f"prompt {number}" for number in range(12)]  # halves are answered
    output = tmp_path / "out"
    assert score(log(name), write_prompts(prompts), str(output)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {reason}; the output is unchanged"
    failed = mlflow.search_runs(search_all_experiments=True, order_by=["start_time DESC"]).iloc[0]
    assert failed["status"] == "FAILED"

    # nothing is in the way of another model
    assert score(log("first_only"), write_prompts(["a"], name="one"), str(output)) == 0
    assert read(str(output)).count() == 1


def test_a_row_at_which_the_model_raises_costs_no_other(
    store: Path,
    write_prompts: WritePrompts,
    read: Read,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is found by halving; what the model said of it is nobody's business."""
    prompts = ["sound", "sound too", *(f"filler {number}" for number in range(13)), "poison"]
    output = str(tmp_path / "out")

    assert score(log("choking"), write_prompts(prompts), output) == 0

    rows = {row["prompt"]: row for row in read(output).collect()}
    assert len(rows) == 16
    poisoned = rows.pop("poison")
    assert tuple(poisoned["error"]) == ("engine_error", "the model raised ValueError")
    assert poisoned["completion"] is None
    assert all(row["completion"] == prompt for prompt, row in rows.items())
    out, err = capfd.readouterr()
    retries = next(line.split()[1] for line in out.splitlines() if line.startswith("retries"))
    assert 2 <= int(retries) <= 7  # log2 of 16 and the job that failed first
    assert "Traceback" not in out + err
    assert "poison" not in out + err
