"""Whole jobs over Spark Connect, from a client that has neither Java nor py4j."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyspark.sql import DataFrame, SparkSession

import phi3_batch
from phi3_batch.cli import main
from phi3_batch.scoring.compat import JVM_ERRORS
from phi3_batch.scoring.rows import time_limit, worker
from tests.conftest import Sample, fastest_engine
from tests.faults.harness import (
    SEED,
    Workplace,
    chunk_commits,
    compare,
    distinct_rows,
)
from tests.spark.test_other_models import log
from tests.spark.test_runs import OUT_OF_BUDGET
from tests.spark.test_runs import said as said
from tests.spark.test_score import MADRID, SPAIN, score

Said = Callable[[], dict[str, str]]

# they need an environment of their own
pytestmark = pytest.mark.skipif(bool(JVM_ERRORS), reason="in `make test-spark VERSION=connect-4.2`")


@pytest.fixture
def write(spark: SparkSession, tmp_path: Path) -> Callable[..., str]:
    """Write rows as a Delta table; returns its path."""

    def write(rows: list[Any], columns: str, mode: str = "error", name: str = "in") -> str:
        path = str(tmp_path / name)
        spark.createDataFrame(rows, columns).write.format("delta").mode(mode).save(path)
        return path

    return write


@pytest.fixture
def read(spark: SparkSession) -> Callable[[str], DataFrame]:
    return lambda path: spark.read.format("delta").load(path)


Write = Callable[..., str]
Read = Callable[[str], DataFrame]
PROMPTS = "id string, prompt string"


def test_there_is_no_jvm_on_this_side(spark: SparkSession) -> None:
    assert find_spec("py4j") is None
    assert type(spark).__module__.startswith("pyspark.sql.connect")


def test_a_table_of_prompts_is_stopped_resumed_and_checked(
    model_uri: str, samples: list[Sample], write: Write, read: Read, said: Said, tmp_path: Path
) -> None:
    rows = [(sample.id, sample.prompt) for sample in samples] + [("none", None)]
    source, output = write(rows, PROMPTS), str(tmp_path / "out")
    assert score(model_uri, source, output, "--max-output-tokens", "1") == OUT_OF_BUDGET
    there = read(output).count()
    assert 0 < there < len(rows)
    said()
    assert score(model_uri, source, output) == 0
    fields = said()
    assert fields["scored"].startswith(f"{len(rows) - there} rows in ")
    assert fields["engine"].startswith(fastest_engine())
    assert main(["verify", "--input", source, "--output", output]) == 0
    assert said()["check"] == "336 in, 336 out, 0 missing, 0 doubled, 0 orphaned"
    answers = {row["id"]: row["completion"] for row in read(output).collect()}
    assert answers == {sample.id: sample.answer for sample in samples} | {"none": None}
    assert score(model_uri, source, output, "--mode", "overwrite", "--limit", "5") == 0
    assert read(output).count() == 5


def test_a_table_of_chats_with_ids_is_brought_up_to_date(
    chat_uri: str, write: Write, read: Read, said: Said, tmp_path: Path
) -> None:
    columns = "id string, country string"
    countries = ["Spain", "France", "Peru"]
    source, output = write([(name, name) for name in countries], columns), str(tmp_path / "out")
    ask = ("--id", "id", "--logprobs", "--user-template", "What is the capital of {country}?")
    assert score(chat_uri, source, output, *ask) == 0
    before = {row["id"]: row for row in read(output).collect()}
    assert before["Spain"]["completion"] == "The capital of Spain is Madrid."
    assert -0.5 < before["Spain"]["logprob"] < 0

    write([("Italy", "Italy"), ("Peru", "Chile"), ("Spain", "Spain")], columns, "overwrite")
    said()
    assert score(chat_uri, source, output, *ask, "--delete-removed") == 0
    assert said()["changes"].startswith("1 new, 1 changed, 0 failed before, 1 unchanged")
    after = {row["id"]: row for row in read(output).collect()}
    assert set(after) == {"Italy", "Peru", "Spain"}
    assert after["Spain"] == before["Spain"]
    assert after["Peru"]["completion"] != before["Peru"]["completion"]


@pytest.mark.parametrize(
    ("model", "prompt", "code"),
    [("choking", "poison", "engine_error"), ("quoting", "deadly", "worker_crashed")],
)
def test_a_bad_row_costs_no_other(
    model: str,
    prompt: str,
    code: str,
    spark: SparkSession,
    write: Write,
    read: Read,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    rows = [(str(number), f"filler {number}") for number in range(20)] + [("bad", prompt)]
    output = str(tmp_path / "out")
    assert score(log(model), write(rows, PROMPTS), output) == 0
    errors = {row["id"]: row["error"] for row in read(output).collect()}
    assert errors.pop("bad")["code"] == code
    assert set(errors.values()) == {None}
    assert prompt not in "".join(capfd.readouterr())


def test_a_row_that_hangs_costs_no_other(
    write: Write, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HANG_SECONDS", 3)
    monkeypatch.setattr(time_limit, "_SECONDS_PER_TOKEN", 0)
    monkeypatch.setattr(time_limit, "_SECONDS_PER_CHARACTER", 0)
    output = str(tmp_path / "out")
    source = write([("a", "sound"), ("b", "endless")], PROMPTS)
    assert score(log("hanging"), source, output) == 0
    rows = {row["id"]: row for row in read(output).collect()}
    assert rows["a"]["completion"] == "sound"
    assert rows["b"]["error"]["code"] == "worker_crashed"


def test_the_python_functions(
    spark: SparkSession, model_uri: str, chat_uri: str, write: Write, tmp_path: Path
) -> None:
    source, output = write([("a", SPAIN), ("b", None)], PROMPTS), str(tmp_path / "out")
    job: dict[str, Any] = {"model": model_uri, "input": source, "output": output}
    assert phi3_batch.plan(spark, **job).requests == 1
    done = phi3_batch.score(spark, **job)
    assert (done.complete, dict(done.errors)) == (True, {"null_prompt": 1})
    assert done.output.where("id = 'a'").head()["completion"] == MADRID
    assert phi3_batch.verify(spark, input=source, output=output).balance.ok

    countries = spark.createDataFrame([("Spain",), (None,)], "country string")
    asked = {"user_template": "What is the capital of {country}?", "temperature": 0.0}
    answered = phi3_batch.complete(
        countries, chat_uri, choices=[MADRID, "no"], probabilities=True, **asked
    )
    rows = {row["country"]: row for row in answered.collect()}
    assert rows["Spain"]["answer"] == rows["Spain"]["completion"] == MADRID
    assert rows["Spain"]["probabilities"][MADRID] > 0.9
    assert rows[None]["error"]["code"] == "null_prompt"


def test_a_job_that_is_killed_is_resumed(
    model_uri: str, server: str, workplace: Workplace, write: Write, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 900)
    columns = "id long, sample string, language string, prompt string"
    source = write([tuple(row.values()) for row in rows], columns)
    output = workplace.folder / "out"
    command = ("--model", model_uri, "--input", source, "--output", output)
    job = workplace.start(*command, SPARK_REMOTE=server)
    assert job.await_progress(lambda done, _: done > 0), job.words()
    assert not job.ends_within(Random(SEED).uniform(0, 2)), job.words()
    job.kill()
    assert 0 < sum(commit.rows for commit in chunk_commits(output)) < 900

    job = workplace.start(*command, SPARK_REMOTE=server)
    assert job.finish() == 0, job.words()
    assert job.field("check") == "900 in, 900 out, 0 missing, 0 doubled, 0 orphaned"
    assert compare(rows, output, {sample.prompt: sample.answer for sample in samples}).ok


WAITING = """
import pathlib, time
from phi3_batch.scoring.session import get_session
session = get_session()
print("there", flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.1)
"""


def test_a_process_ends_at_once_though_the_server_has_gone(
    server: str, workplace: Workplace
) -> None:
    there = urlsplit(server)
    with forwarding_to((there.hostname or "", there.port or 0)) as port:
        script = workplace.folder / "waiting.py"  # with -c, pyspark-client takes itself for a test
        script.write_text(WAITING)
        job = workplace.start_command(
            [sys.executable, str(script)],
            SPARK_REMOTE=f"sc://127.0.0.1:{port}",
        )
        while not job.stdout:
            assert not job.ends_within(0.1), job.words()
    assert not job.ends_within(0.1), job.words()  # it waits
    (workplace.folder / "go").touch()
    assert job.ends_within(30), job.words()


@contextmanager
def forwarding_to(server: tuple[str, int]) -> Iterator[int]:
    """A port that leads to a server for a time."""
    listening, open_ones = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()

    def copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                pair = (listening.accept()[0], socket.create_connection(server))
                open_ones.extend(pair)
                for ends in (pair, pair[::-1]):
                    Thread(target=copy, args=ends, daemon=True).start()

    Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        for each in (listening, *open_ones):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_a_server_that_is_gone_is_one_line(model_uri: str, workplace: Workplace) -> None:
    job = workplace.start(
        *("--model", model_uri, "--input", "in", "--output", "out"),
        SPARK_REMOTE="sc://127.0.0.1:9",
    )
    assert job.finish() == 1, job.words()
    assert job.stderr[-1].startswith("error: no Spark Connect server answers at SPARK_REMOTE (")
    assert "Traceback" not in job.words()
