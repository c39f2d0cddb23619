"""A version gets its alias when it answers the smoke rows, and the score is an MLflow run."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from phi3_batch.cli import main
from phi3_batch.errors import InvalidModelError, InvalidParameterError, PromotionError
from phi3_batch.models.log import log_chat_model, log_prompt_model
from phi3_batch.promotion import promote
from tests.conftest import SAMPLE_DATA, TINY_MODEL

SMOKE = SAMPLE_DATA / "smoke.jsonl"
SPAIN = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
NO_ANSWER = {"messages": [{"role": "assistant", "content": "secret-4711"}]}


@pytest.fixture(scope="module")
def versions(in_store: None) -> None:
    """Versions 1 and 2 of a chat model, and version 1 of a prompt model."""
    for _ in range(2):
        log_chat_model(TINY_MODEL, registered_model_name="promoted-chat")
    log_prompt_model(TINY_MODEL, registered_model_name="promoted-prompt")
    log_prompt_model(TINY_MODEL, registered_model_name="promoted-bare", params=False)


@pytest.fixture
def smoke(tmp_path: Path) -> Callable[..., Path]:
    """Write a smoke file."""

    def write(*rows: object) -> Path:
        path = tmp_path / "smoke.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return path

    return write


Smoke = Callable[..., Path]


@pytest.mark.parametrize("name", ["promoted-chat", "promoted-prompt", "promoted-bare"])
def test_a_version_that_answers_gets_the_alias(
    versions: None, client: MlflowClient, name: str
) -> None:
    done = promote(name, "1", alias="champion", smoke_file=SMOKE)
    assert (done.model_uri, done.rows, done.failed) == (f"models:/{name}/1", 3, 0)
    assert client.get_model_version_by_alias(name, "champion").version == 1
    assert client.get_model_version(name, "1").tags == {"phi3_batch.smoke_run_id": done.run_id}
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"smoke_rows": 3, "smoke_failed": 0, "smoke_error_rate": 0}
    assert run.data.params["model_version"] == f"models:/{name}/1"


def test_a_version_that_fails_leaves_the_alias_where_it_is(
    versions: None, client: MlflowClient, smoke: Smoke
) -> None:
    promote("promoted-chat", "1", alias="held", smoke_file=SMOKE)
    rows = smoke(
        {**SPAIN, "contains": "Madrid"},
        {**SPAIN, "contains": "secret-4711"},
        {**NO_ANSWER, "contains": "x"},
    )
    with pytest.raises(PromotionError) as error:
        promote("promoted-chat", "2", alias="held", smoke_file=rows)
    said = str(error.value)
    assert said.startswith(
        "2 of 3 smoke rows failed (unexpected_text: 1, invalid_messages: 1; smoke.jsonl lines"
        " 2, 3); alias held is where it was, and run "
    )
    assert "secret" not in said
    assert client.get_model_version_by_alias("promoted-chat", "held").version == 1
    run_id = client.get_model_version("promoted-chat", "2").tags["phi3_batch.smoke_run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["smoke_error_rate"] == pytest.approx(2 / 3)
    assert run.data.metrics["smoke_failed.unexpected_text"] == 1


def test_some_failures_may_be_allowed(versions: None, client: MlflowClient, smoke: Smoke) -> None:
    rows = smoke({**SPAIN, "contains": ["capital", "Madrid"]}, {**SPAIN, "contains": "Lima"})
    done = promote("promoted-chat", "2", alias="half", smoke_file=rows, max_error_rate=0.5)
    assert (done.rows, done.failed) == (2, 1)
    assert client.get_model_version_by_alias("promoted-chat", "half").version == 2


def test_no_answer_of_a_bare_model_is_a_failure(versions: None, smoke: Smoke) -> None:
    rows = smoke({"prompt": " ", "contains": "x"})
    with pytest.raises(PromotionError, match="no_text: 1"):
        promote("promoted-bare", "1", alias="none", smoke_file=rows)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "has no rows"),
        (("text",), "line 1 of .* is no JSON object"),
        (({**SPAIN},), "line 1 of .* needs 'contains'"),
        (({**SPAIN, "contains": ["a", ""]},), "line 1 of .* needs 'contains'"),
        (({"prompt": "x", "contains": "y"},), "line 1 of .* has no 'messages', which models:/"),
    ],
)
def test_a_wrong_smoke_file_ends_before_anything_is_recorded(
    versions: None, smoke: Smoke, rows: tuple[object, ...], said: str
) -> None:
    runs_before = len(mlflow.search_runs(search_all_experiments=True))
    with pytest.raises(InvalidParameterError, match=said):
        promote("promoted-chat", "1", alias="x", smoke_file=smoke(*rows))
    assert len(mlflow.search_runs(search_all_experiments=True)) == runs_before


def test_the_newest_version_is_the_one_that_is_not_named(versions: None) -> None:
    newest = max(
        int(each.version)
        for each in mlflow.MlflowClient().search_model_versions("name='promoted-chat'")
    )
    done = promote("promoted-chat", smoke_file=str(SMOKE), alias="newest")
    assert done.model_uri == f"models:/promoted-chat/{newest}"


def test_what_is_not_there_is_one_line(versions: None, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no registered model nobody in"):
        promote("nobody", smoke_file=SMOKE)
    with pytest.raises(InvalidModelError, match="no model models:/promoted-chat/99"):
        promote("promoted-chat", "99", alias="x", smoke_file=SMOKE)
    with pytest.raises(InvalidParameterError, match="cannot read the smoke file"):
        promote("promoted-chat", "1", alias="x", smoke_file=tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidParameterError, match="error rate must be from 0 to 1, not 2"):
        promote("promoted-chat", "1", alias="x", smoke_file=SMOKE, max_error_rate=2)


def test_the_command_says_what_it_did(
    versions: None, capsys: pytest.CaptureFixture[str], smoke: Smoke
) -> None:
    assert main(["promote", "promoted-chat", "2", "--smoke", str(SMOKE)]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 rows passed" in said
    assert "models:/promoted-chat/2 is models:/promoted-chat@champion" in said
    wrong = smoke({**SPAIN, "contains": "Lima"})
    assert main(["promote", "promoted-chat", "1", "--smoke", str(wrong)]) == 1
    assert "error: 1 of 1 smoke rows failed" in capsys.readouterr().err
