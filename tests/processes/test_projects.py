"""The MLproject file: `mlflow run` as its users start it, and what its runs hold afterwards."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException

from phi3_batch.cli import main
from tests.conftest import REPOSITORY, SAMPLE_DATA, TINY_CHECKPOINT, TINY_MODEL, ChatSample

# where `mlflow`, and the `python` of the entry points, are found
BIN = Path(sys.executable).parent
SCORE = {"model": "models:/story@champion", "input": "sample_data/chats.jsonl"}


@pytest.fixture(scope="module")
def experiment_id(store: Path) -> Iterator[str]:
    """An experiment for the runs of this file; the processes find it in the environment."""
    found = MlflowClient().create_experiment("projects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_ID", found)
        patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        # our command sets it, in whatever test of this process called it
        patch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
        yield found


def mlflow_run(entry_point: str, *parameters: str) -> tuple[Run, str]:
    """Start `mlflow run` from sample_data; returns its run and its output."""
    command = ["mlflow", "run", str(REPOSITORY), "--env-manager", "local", "-e", entry_point]
    done = subprocess.run(
        [*command, *(part for parameter in parameters for part in ("-P", parameter))],
        cwd=SAMPLE_DATA,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run_id = re.search(r"in run with ID '(\w+)'", done.stdout)
    assert run_id is not None, done.stdout
    run = MlflowClient().get_run(run_id.group(1))
    assert (done.returncode == 0) is (run.info.status == "FINISHED"), done.stdout
    return run, done.stdout


def run_in_process(experiment_id: str, entry_point: str, parameters: dict[str, str]) -> None:
    """The same without a process for MLflow itself; the entry point has one all the same."""
    mlflow.projects.run(
        str(REPOSITORY),
        entry_point,
        parameters=parameters,
        experiment_id=experiment_id,
        env_manager="local",
    )


def latest_run(experiment_id: str) -> Run:
    return MlflowClient().search_runs([experiment_id], order_by=["attribute.start_time DESC"])[0]


def test_the_story_of_a_model(
    experiment_id: str,
    chat_samples: list[ChatSample],
    read: Callable[[Path], pd.DataFrame],
    tmp_path: Path,
) -> None:
    """MLflow's four parts in turn: tracked, a project, a model, registered; and then scored."""
    client = MlflowClient()

    # a project run logs the build as a model; its path starts where mlflow was called
    logged, _ = mlflow_run("log_chat", f"model_dir={TINY_MODEL.name}", "register=story")
    assert logged.data.tags["mlflow.project.entryPoint"] == "log_chat"
    assert logged.data.params["model_dir"] == TINY_MODEL.name
    assert logged.data.params["model_type"] == "phi3"
    [output] = logged.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.params["precision"] == "int4-block-32-acc-level-4"

    # the model is a version in the registry, which nobody uses yet
    version = client.get_model_version("story", "1")
    assert version.run_id == logged.info.run_id
    assert version.aliases == []

    # it answers the smoke rows, so it is promoted; the run says how
    smoke = SAMPLE_DATA / "smoke.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")  # it is as it was for `mlflow run`
        assert main(["promote", "story", "1", "--smoke", str(smoke), "--alias", "champion"]) == 0
    promoted = client.get_model_version_by_alias("story", "champion")
    assert promoted.version == 1
    smoke_run = client.get_run(promoted.tags["phi3_batch.smoke_run_id"])
    assert smoke_run.data.metrics["smoke_error_rate"] == 0

    # a project run scores a table with it; a shell would need quotes for the output's name
    parameters = {
        "model": "models:/story@champion",
        "input": "sample_data/chats.jsonl",
        "output": str(tmp_path / "the answers"),
        "max-tokens": "60",
        "limit": "5",
    }
    scored, output = mlflow_run("score", *(f"{name}={text}" for name, text in parameters.items()))
    assert scored.info.status == "FINISHED", output
    answers = read(tmp_path / "the answers")
    known = {sample.id: sample.answer for sample in chat_samples}
    assert answers["id"].nunique() == len(answers) == 5
    assert all(known[row.id] == row.completion for row in answers.itertuples())

    # and one run holds what MLflow was given, what the job did, and with what
    assert set(answers["run_id"]) == {scored.info.run_id}
    assert scored.data.tags["mlflow.project.entryPoint"] == "score"
    assert scored.data.params["input"] == parameters["input"]
    assert scored.data.params["model_version"] == "models:/story/1"
    assert scored.data.params["params.max_tokens"] == "60"
    assert scored.data.metrics["rows"] == 5
    assert scored.data.metrics["rows_with_errors"] == 0
    assert scored.data.metrics["completion_tokens"] == answers["completion_tokens"].sum()
    [used] = client.get_run(scored.info.run_id).inputs.model_inputs
    assert used.model_id == model.model_id


def test_a_wrong_value_fails_the_run_with_one_line(experiment_id: str, tmp_path: Path) -> None:
    parameters = SCORE | {"output": str(tmp_path / "answers"), "mode": "x"}
    run, output = mlflow_run("score", *(f"{name}={text}" for name, text in parameters.items()))
    assert run.info.status == "FAILED"
    assert "Invalid value for '--mode'" in output
    assert "Traceback" not in output
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "hot", "Invalid value for '--temperature'"),
        ("temperatur", "0.5", "No such option: --temperatur"),
    ],
)
def test_every_parameter_is_checked(
    name: str,
    value: str,
    message: str,
    experiment_id: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    parameters = SCORE | {"output": str(tmp_path / "answers"), name: value}
    with pytest.raises(ExecutionException, match="failed"):
        run_in_process(experiment_id, "score", parameters)
    assert message in capfd.readouterr().err
    run = latest_run(experiment_id)
    assert run.info.status == "FAILED"
    assert run.data.params[name] == value


@pytest.mark.parametrize(
    ("entry_point", "given", "missing"),
    [
        ("log_prompt", {"model_dir": str(TINY_MODEL)}, "'register'"),
        ("log_chat", {"register": "project-chat"}, "'model_dir'"),
        ("log_pipeline", {}, "'checkpoint', 'register'"),
        ("score", {"mode": "append"}, "'model', 'input', 'output'"),
    ],
)
def test_parameters_without_a_default_are_required(
    entry_point: str, given: dict[str, str], missing: str, experiment_id: str
) -> None:
    with pytest.raises(ExecutionException, match=f"missing parameters: {missing}$"):
        run_in_process(experiment_id, entry_point, given)


@pytest.mark.parametrize(
    ("entry_point", "folder", "models"),
    [
        # log_chat is in the story
        ("log_prompt", {"model_dir": TINY_MODEL}, {"phi3-prompt"}),
        (
            "log_pipeline",
            {"checkpoint": TINY_CHECKPOINT},
            {"phi3-pipeline", "phi3-pipeline-transformers"},
        ),
    ],
)
def test_models_are_logged_into_the_run(
    entry_point: str, folder: dict[str, Path], models: set[str], experiment_id: str
) -> None:
    name = f"project-{entry_point}"
    run_in_process(
        experiment_id,
        entry_point,
        {key: str(path) for key, path in folder.items()} | {"register": name},
    )
    run = latest_run(experiment_id)
    assert run.info.status == "FINISHED"
    client = MlflowClient()
    outputs = client.get_run(run.info.run_id).outputs  # MLflow 3.0 lists runs without them
    logged = [client.get_logged_model(output.model_id) for output in outputs.model_outputs]
    assert {model.name for model in logged} == models
    assert client.get_model_version(name, "1").run_id == run.info.run_id
