"""Which settings a session under spark-submit gets besides those given."""

import os

import pytest

from phi3_batch.scoring.session import settings_to_add


def test_a_cluster_runs_one_task_per_executor_with_all_its_cores() -> None:
    added = settings_to_add({"spark.master": "yarn", "spark.executor.cores": "8"})
    assert added["spark.task.cpus"] == "8"
    assert added["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
    assert added["spark.log.level"] == "WARN"
    assert "spark.driver.host" not in added


@pytest.mark.parametrize(
    ("master", "cores"),
    [("local", "1"), ("local[3]", "3"), ("local[4,2]", "4"), ("local[*]", str(os.cpu_count()))],
)
def test_a_local_run_is_one_task_with_all_its_cores(master: str, cores: str) -> None:
    assert settings_to_add({"spark.master": master})["spark.task.cpus"] == cores


def test_what_was_given_stays() -> None:
    given = {"spark.master": "local[2]", "spark.task.cpus": "1", "spark.sql.extensions": "x.Y"}
    assert not settings_to_add(given).keys() & given.keys()


def test_nothing_is_guessed_where_the_executors_cores_are_not_said() -> None:
    assert "spark.task.cpus" not in settings_to_add({"spark.master": "yarn"})
