"""Which settings a session under spark-submit gets besides those given."""

import pytest

from phi3_batch.scoring.start import settings_to_add


def test_a_cluster_runs_one_task_per_executor_with_all_its_cores() -> None:
    added = settings_to_add({"spark.master": "yarn", "spark.executor.cores": "8"}, 6)
    assert added["spark.task.cpus"] == "8"
    assert added["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
    assert added["spark.log.level"] == "WARN"
    assert added["spark.databricks.delta.snapshotPartitions"] == "8"
    assert "spark.driver.host" not in added


@pytest.mark.parametrize(
    ("master", "cores"),
    [
        ("local", "1"),
        ("local[3]", "3"),
        ("local[4,2]", "4"),
        ("local[4, 2]", "4"),
        ("local[*]", "6"),
        ("local[*,2]", "6"),
    ],
)
def test_a_local_run_is_one_task_with_all_its_cores(master: str, cores: str) -> None:
    # 6 are the slots that Spark makes of *, whatever the machine has
    assert settings_to_add({"spark.master": master}, 6)["spark.task.cpus"] == cores


def test_what_was_given_stays() -> None:
    given = {"spark.task.cpus": "1", "spark.sql.extensions": "x.Y"}
    given["spark.databricks.delta.snapshotPartitions"] = "50"
    for master in ("local[2]", "yarn"):
        given["spark.master"] = master
        assert not settings_to_add(given, 6).keys() & given.keys()


def test_nothing_is_guessed_where_the_executors_cores_are_not_said() -> None:
    for master in ("yarn", "local-cluster[2,1,1024]"):
        assert "spark.task.cpus" not in settings_to_add({"spark.master": master}, 6)
