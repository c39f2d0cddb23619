"""A job's MLflow run, with stores that are sound, gone, deaf, or die while the job runs."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import mlflow
import pytest
from mlflow.models import Model
from pyspark.sql.types import StructType

from phi3_batch import tracking
from phi3_batch.scoring.delta.outputs import OutputState
from phi3_batch.scoring.delta.record import RunIdentity
from phi3_batch.scoring.delta.tables import InputTable, Location
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.job.check import CheckedJob
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.cut import Chunk
from phi3_batch.scoring.job.plan import ScoringPlan
from phi3_batch.scoring.job.run import Outcome, Progress, Summary
from phi3_batch.scoring.job.statistics import ChunkRecord, Statistics
from phi3_batch.scoring.rows.model import FoundModel, ModelKind, ScoringModel
from phi3_batch.scoring.rows.work import Work

CHUNK = ScoredChunk(Chunk(0, 10, 10), 1.0, 50)
DONE = Progress(rows=10, rows_done=10, requests_left=0, rows_scored=10, seconds=1.0)
STATISTICS = Statistics(
    chunks=(ChunkRecord(0, datetime.now(), datetime.now(), 10, 40, 50, Counter()),),
    prompt_lengths=None,
    completion_lengths=None,
)
COMPLETE = Summary(Outcome.COMPLETE, DONE, None, STATISTICS, 0, "/tables/out")


def make_plan(begun_as: str | None = None) -> ScoringPlan:
    """A plan of one chunk; what Spark would do with it is not asked."""
    where = Location("./in")
    job = CheckedJob(
        options=ScoreOptions("models:/m/1", where, Location("./out")),
        input=InputTable(where, cast(Any, None), 3, "/tables/in", "x@3"),
        model=FoundModel("models:/m/1", "models:/m/1", Model()),
        output=cast(Any, None),
        kept=StructType(),
        added=StructType(),
        run=RunIdentity(
            fingerprint="0123456789abcdef-0123456789abcdef",
            settings={"model": "models:/m/1"},
            input="./in",
            input_id="x",
            input_version=3,
            request_columns=("prompt",),
            ids=(),
            delete_removed=False,
            limit=None,
        ),
    )
    model = ScoringModel("models:/m/1", "models:/m/1", "", ModelKind.USAGE, {}, {}, None)
    return ScoringPlan(
        job=job,
        pinned=cast(Any, None),
        work=Work(model, cast(Any, None), cast(Any, None), ()),
        to_update=None,
        state=OutputState(None if begun_as else "error", run_id=begun_as),
        total=10,
        refused={},
        chunks=(Chunk(0, 10, 10),),
        chunk_count=1,
        done=frozenset(),
        partitions=(),
        notes=(),
        changes=None,
        slots=1,
    )


@pytest.fixture(autouse=True)
def back_to_the_store(store: tuple[str, str]) -> Iterator[None]:
    yield
    mlflow.set_tracking_uri(store[0])


def create_run(store: tuple[str, str], status: str = "RUNNING") -> str:
    """A run that another process has begun."""
    client = mlflow.MlflowClient()
    run_id = str(client.create_run(store[1]).info.run_id)
    client.update_run(run_id, status)
    return run_id


def run_job(
    begun_as: str | None = None, chunks: int = 3, between: Callable[[], object] = lambda: None
) -> tuple[str, list[str], float]:
    """A job of some chunks, as the command has it: its run's id, warnings, seconds of chunks."""
    plan, warnings = make_plan(begun_as), list[str]()
    with tracking.scoring_run(plan, warnings.append) as run:
        started = time.monotonic()
        for number in range(chunks):
            run.record_chunk(CHUNK, DONE)
            if number == 0:
                between()
        seconds = time.monotonic() - started
        assert "/tables/out" in run.record(plan, COMPLETE)
    return run.run_id, warnings, seconds


def assert_recorded(run_id: str) -> None:
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["phi3_batch.outcome"] == "complete"
    assert run.data.metrics["rows"] == 10
    assert run.data.params["input_version"] == "3"
    assert "/tables/out" in mlflow.artifacts.load_text(f"runs:/{run_id}/report.html")


def test_a_job_has_a_run() -> None:
    run_id, warnings, _ = run_job()
    assert warnings == []
    assert_recorded(run_id)
    assert mlflow.get_run(run_id).data.metrics["progress.rows"] == 10


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_job_goes_on_in_its_run_however_that_ended(store: tuple[str, str], status: str) -> None:
    begun_as = create_run(store, status)
    mlflow.MlflowClient().log_param(begun_as, "chunks", "7")  # as another release cut it
    run_id, warnings, _ = run_job(begun_as)
    assert (run_id, warnings) == (begun_as, [])
    assert_recorded(run_id)


@pytest.mark.parametrize("gone", ["deleted", "experiment deleted", "another store"])
def test_a_job_goes_on_in_a_new_run_where_its_own_is_gone(gone: str) -> None:
    client = mlflow.MlflowClient()
    experiment = client.create_experiment(gone)
    begun_as = "ab" * 16
    if gone != "another store":
        begun_as = client.create_run(experiment).info.run_id
    if gone == "deleted":
        client.delete_run(begun_as)
    if gone == "experiment deleted":
        client.delete_experiment(experiment)
    run_id, warnings, _ = run_job(begun_as)
    assert run_id != begun_as
    assert_recorded(run_id)
    [line] = warnings
    assert f"run {begun_as} of this job is gone" in line
    assert line.endswith(f"goes on in run {run_id}")
    # and in the same one from there on
    again, warnings, _ = run_job(begun_as)
    assert (again, warnings) == (run_id, [])


@pytest.mark.parametrize("named", ["finished", "deleted", "missing"])
def test_a_run_that_the_environment_names(
    store: tuple[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = create_run(store, "FINISHED") if named != "missing" else "cd" * 16
    if named == "deleted":
        mlflow.MlflowClient().delete_run(there)
    monkeypatch.setenv("MLFLOW_RUN_ID", there)
    run_id, warnings, _ = run_job()
    assert_recorded(run_id)
    assert (run_id == there) == (named == "finished")
    assert [line[:36] for line in warnings] == (
        [] if named == "finished" else ["MLFLOW_RUN_ID names no run that can "]
    )


def test_a_run_that_the_caller_has_begun_stays_the_caller_s() -> None:
    with mlflow.start_run() as of_caller:
        run_id, warnings, _ = run_job()
        assert run_id != of_caller.info.run_id
        assert mlflow.active_run().info.run_id == of_caller.info.run_id  # type: ignore[union-attr]
    assert warnings == []
    assert_recorded(run_id)
    assert mlflow.get_run(of_caller.info.run_id).data.metrics == {}


def test_a_job_that_fails_or_is_interrupted_says_so_in_its_run() -> None:
    for error, status in ((ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), tracking.scoring_run(make_plan(), print) as run:
            raise error
        assert mlflow.get_run(run.run_id).info.status == status


# stores that fail


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_START_S", "_END_S", "_LEAVE_S"):
        monkeypatch.setattr(tracking, name, 1.0)
    monkeypatch.setattr(tracking, "_MOST_WAITING", 4)


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """The address of a server that takes connections, and answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class TakesAnything(BaseHTTPRequestHandler):
    """What MLflow's server says to who begins a run, whatever it is asked."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        info = {"run_id": "ef" * 16, "experiment_id": "1", "status": "RUNNING", "start_time": 1}
        experiment = {"experiment_id": "1", "name": "any", "lifecycle_stage": "active"}
        says = {"run": {"info": info, "data": {}}, "experiment": experiment}
        body = json.dumps(says).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), TakesAnything) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_answer_costs_a_run_and_no_chunk(deaf_server: str) -> None:
    mlflow.set_tracking_uri(deaf_server)
    run_id, warnings, seconds = run_job()
    assert seconds < 0.5
    assert run_id.startswith("untracked-")
    assert [line for line in warnings if "MLflow takes no run (it does not answer)" in line]
    assert len(warnings) == 1


@pytest.mark.usefixtures("impatient")
def test_a_store_that_stops_answering_costs_no_chunk(
    store: tuple[str, str], deaf_server: str
) -> None:
    run_id, warnings, seconds = run_job(
        chunks=20, between=lambda: mlflow.set_tracking_uri(deaf_server)
    )
    assert seconds < 0.5
    assert ["progress" in line for line in warnings] == [True, False]
    assert warnings[-1].startswith("MLflow did not take all of the run's record (it does not answ")
    mlflow.set_tracking_uri(store[0])
    assert mlflow.get_run(run_id).info.status == "RUNNING"


@pytest.mark.usefixtures("impatient")
def test_a_server_that_dies_in_the_middle(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")

    def die() -> None:
        server.shutdown()
        server.server_close()

    run_id, warnings, seconds = run_job(between=die)
    assert run_id == "ef" * 16
    assert seconds < 2
    assert [line.partition(" (")[0] for line in warnings] == [
        "MLflow does not take the progress of this job",
        "MLflow did not take all of the run's record",
    ]
    assert "127.0.0.1" not in " ".join(warnings)


def test_a_store_that_cannot_be_written(store_folder: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///file:{store_folder}/mlflow.db?mode=ro&uri=true")
    run_id, warnings, _ = run_job()
    assert run_id.startswith("untracked-")
    assert len(warnings) == 1
    assert "MLflow takes no run (MlflowException, " in warnings[0]


def test_artifacts_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    there = mlflow.create_experiment("x", artifact_location=str(tmp_path / "a file/x"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", there)
    run_id, warnings, _ = run_job()
    assert [line.partition(" (")[0] for line in warnings] == [
        "MLflow did not take all of the run's record"
    ]
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.metrics["rows"]) == ("FINISHED", 10)
    assert "phi3_batch.outcome" not in run.data.tags  # so that the same command tries again


# runs that were not ended


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_finished_job_whose_run_was_not_ended_gets_its_record(
    store: tuple[str, str], status: str
) -> None:
    """As SIGKILL between the last commit and the record leaves it."""
    begun_as = create_run(store, status)
    mlflow.MlflowClient().set_tag(begun_as, "phi3_batch.engine", "an engine 1.0")
    page, recorded = tracking.record_finished(make_plan(begun_as), COMPLETE, pytest.fail)
    assert recorded == begun_as
    assert_recorded(begun_as)
    assert "an engine 1.0" in page
    again, recorded = tracking.record_finished(make_plan(begun_as), COMPLETE, pytest.fail)
    assert recorded is None
    assert "an engine 1.0" in again


def test_a_finished_job_that_never_had_a_run_gets_one() -> None:
    plan = make_plan("untracked-0123")
    _, recorded = tracking.record_finished(plan, COMPLETE, pytest.fail)
    assert recorded is not None
    assert_recorded(recorded)
    assert tracking.record_finished(plan, COMPLETE, pytest.fail)[1] is None


def test_a_run_that_somebody_deleted_is_not_made_again(store: tuple[str, str]) -> None:
    begun_as = create_run(store)
    mlflow.MlflowClient().delete_run(begun_as)
    for run_id in (begun_as, "ab" * 16, None):
        _, recorded = tracking.record_finished(make_plan(run_id), COMPLETE, pytest.fail)
        assert recorded is None


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_answer_fails_no_finished_job(deaf_server: str) -> None:
    mlflow.set_tracking_uri(deaf_server)
    warnings = list[str]()
    page, recorded = tracking.record_finished(make_plan("ab" * 16), COMPLETE, warnings.append)
    assert "/tables/out" in page
    assert recorded is None
    assert len(warnings) == 1
