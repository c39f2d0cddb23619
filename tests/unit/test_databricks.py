"""The Databricks bundle, by the classes that Databricks publishes for its schema."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from databricks.bundles.jobs import Job
from typer.testing import CliRunner

from phi3_batch.cli import app
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "databricks"
BUNDLE = yaml.safe_load((FOLDER / "databricks.yml").read_text())
JOBS = {
    name: job
    for file in sorted(FOLDER.glob("resources/*.yml"))
    for name, job in yaml.safe_load(file.read_text())["resources"]["jobs"].items()
}


def commands(job: dict[str, Any]) -> list[list[str]]:
    """The arguments of its tasks, with the bundle's variables."""
    values = {name: variable["default"] for name, variable in BUNDLE["variables"].items()}
    return [
        [
            re.sub(r"\$\{var\.(\w+)\}", lambda found: str(values[found[1]]), parameter)
            for parameter in task["python_wheel_task"]["parameters"]
        ]
        for task in job["tasks"]
    ]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_one_by_databricks_own_classes(name: str) -> None:
    job = Job.from_dict(JOBS[name])  # which refuses what it does not know
    assert [task.task_key for task in job.tasks] == ["log", "promote", "score"]
    assert [task.depends_on[0].task_key for task in job.tasks[1:]] == ["log", "promote"]
    with pytest.raises(ValueError, match="tusks"):
        Job.from_dict(JOBS[name] | {"tusks": []})


@pytest.mark.parametrize("name", JOBS)
def test_every_variable_is_declared_and_every_place_is_there(name: str) -> None:
    text = str(JOBS[name])
    assert set(re.findall(r"\$\{var\.(\w+)\}", text)) <= set(BUNDLE["variables"])
    assert (FOLDER / BUNDLE["artifacts"]["phi3_batch"]["path"] / "pyproject.toml").exists()
    wheels = re.findall(r"[./]+/dist/\*\.whl", text)
    assert wheels
    for wheel in wheels:
        assert Path(FOLDER / "resources" / wheel).resolve().parent == REPOSITORY / "dist"


@pytest.mark.parametrize("name", JOBS)
def test_the_tasks_are_commands_of_ours(name: str) -> None:
    """Read as the command line reads them, up to where they would begin."""
    for command in commands(JOBS[name]):
        done = CliRunner().invoke(app, [*command, "--no-such-option"])
        assert done.exit_code == 2
        assert "No such option: --no-such-option" in done.output
