"""People's data stays in the tables: a canary in every place of it is found nowhere else.

The places: prompts, messages with their contents, names and roles, columns of a template and of
parameters, ids, kept columns, stop strings, system messages, templates, completions. Elsewhere:
stdout, stderr, logs, Spark's event log, all that is in MLflow's store, what Delta's commits say,
and exceptions with their causes. Names of columns and tables are nobody's secret.
"""

import json
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlflow
import pyarrow as pa
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyspark.sql import DataFrame, SparkSession

from phi3_batch import cli
from tests.delta_files import write_table
from tests.spark.test_other_models import log
from tests.spark.test_score import score

CANARY = f"canary{uuid.uuid4().hex[:8]}"  # logs of earlier runs have others
ROWS = 4
_looked_at: dict[Path, int] = {}  # how much of each file

Table = Callable[..., str]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Write a Delta table with a canary at the beginning of every text; returns its path."""

    def write(prompts: Sequence[str | None] = ("sound",) * ROWS, ids: int = ROWS) -> str:
        rows = [
            {
                "name": f"{CANARY} id {number % ids}",
                "prompt": prompt and f"{CANARY} prompt {prompt} {number}",
                "note": f"{CANARY} kept",
                "stops": [f"{CANARY} stop"],
                "messages": [
                    {"role": role, "content": f"{CANARY} content", "name": f"{CANARY} name"}
                    for role in ("system", "user" if number else f"{CANARY} role")
                ],
            }
            for number, prompt in enumerate(prompts)
        ]
        path = Path(tempfile.mkdtemp(dir=tmp_path))
        return write_table(path / "in", pa.Table.from_pylist(rows))

    return write


@pytest.fixture
def check(
    spark: SparkSession,
    store: Path,
    event_log: Path,
    worker_log: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., str]]:
    """A function that notes where the canary is; a test calls it after each job, and fails then.

    It returns the last line on stderr. What Spark itself raises over a row has the row's value,
    and Spark writes that into its event log: ``by_spark`` leaves that place out.
    """
    told: list[str] = []
    one_line = cli._one_line

    def note(error: Exception) -> str | None:
        told.extend([repr(error), *traceback.format_exception(error)])
        return one_line(error)

    monkeypatch.setattr(cli, "_one_line", note)

    def commits() -> Iterator[str]:
        for file in tmp_path.rglob("_delta_log/*.json"):
            for line in map(json.loads, file.read_text().splitlines()):
                yield json.dumps(
                    {name: line[name] for name in ("commitInfo", "txn") if name in line}
                )

    def places() -> Iterator[tuple[str, str]]:
        yield "stdout", said.out
        yield "stderr", said.err
        yield "exception", "".join(told)
        yield "commit", "".join(commits())
        spark_logs = Path(tempfile.gettempdir()).glob("phi3-batch-spark-*.log")
        for file in (*spark_logs, *filter(Path.is_file, store.rglob("*")), worker_log):
            text = file.read_text(errors="replace")
            # logs grow, and what was in them before is another job's
            yield str(file), text[_looked_at.get(file, 0) if file.suffix != ".db" else 0 :]
            _looked_at[file] = len(text)

    def look(job: str, *, by_spark: bool = False) -> str:
        nonlocal said
        spark.sparkContext._jsc.sc().listenerBus().waitUntilEmpty()
        said = capfd.readouterr()
        found = [
            f"{place}: {text[max(0, at - 300) : at + 60]!r}"
            for place, text in places()
            if (at := text.find(CANARY)) >= 0 and not (by_spark and str(event_log) in place)
        ]
        told.clear()
        if found:
            leaks.append("\n".join([job, *found]))
        return said.err.splitlines()[-1]

    said = capfd.readouterr()
    leaks: list[str] = []
    yield look
    assert not leaks, "\n\n".join(leaks)
    events = [file.read_text() for file in _looked_at if event_log in file.parents]
    assert "SparkListenerSQLExecutionStart" in "".join(events)  # it is looked at


Check = Callable[..., str]


def test_jobs_that_succeed(
    table: Table, check: Check, model_uri: str, chat_uri: str, tmp_path: Path
) -> None:
    source = table(("sound", None, "\x07", "long " * 5000))
    stop = ("--stop", f"{CANARY} stop", "--id", "name")
    assert score(model_uri, source, str(tmp_path / "out"), *stop) == 0
    check("prompts")
    made = ["--system", f"{CANARY} system", "--user-template", CANARY + " template {prompt} {note}"]
    params = ["--param", "stop=col:stops", "--temperature", "1", "--max-tokens", "9"]
    output = str(tmp_path / "chats")
    assert score(chat_uri, source, output, "--keep-response", *made, *params) == 0
    check("chats of a template")
    assert score(chat_uri, source, str(tmp_path / "messages"), *stop[:2]) == 0
    check("chats")


def test_rows_at_which_a_model_raises_or_the_output(
    table: Table, check: Check, spark: SparkSession, tmp_path: Path
) -> None:
    quoting, output = log("quoting"), str(tmp_path / "out")
    source = table(("sound", "sound", "poison"))
    assert score(quoting, source, output) == 0
    check("a row at which the model raises, and others that it echoes")
    [error] = spark.read.format("delta").load(output).selectExpr("error.message").dropna().collect()
    assert error[0] == "the model raised Refusal"
    assert score(quoting, table(("sound", "deadly")), output, "--mode", "append") == 0
    check("a row that kills the model's process")

    spark.sql(f"ALTER TABLE delta.`{output}` ADD CONSTRAINT brief CHECK (length(prompt) < 40)")
    more = table(("sound " * 9,))
    assert score(quoting, more, output, "--mode", "append") == 1
    assert "CHECK constraint brief" in check("a CHECK constraint")
    fields = spark.read.format("delta").load(output).schema
    columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in fields)
    limited = str(tmp_path / "limited")
    limit = columns.replace("prompt string", "prompt varchar(9)")
    spark.sql(f"CREATE TABLE delta.`{limited}` ({limit}) USING delta")
    assert score(quoting, more, limited, "--mode", "append") == 1
    assert "varchar(9)" in check("a limit of length")
    assert score(quoting, table(("poison",)), str(tmp_path / "none")) == 1
    assert check("a model that fails on the rows it is tried on").endswith(" with Refusal")


def test_jobs_that_are_refused(
    table: Table, check: Check, spark: SparkSession, model_uri: str, tmp_path: Path
) -> None:
    source, output = table(ids=2), str(tmp_path / "out")
    assert score(model_uri, source, output, "--id", "name") == 1
    check("ids that name two rows")
    rows: DataFrame = spark.read.format("delta").load(source)
    spark.conf.set("spark.sql.ansi.enabled", "true")  # as it is from 4.0 on
    rows.selectExpr("cast(prompt AS int) AS number", "prompt").createOrReplaceTempView("broken")
    assert score(model_uri, "broken", output) == 1
    said = check("a view that cannot be read", by_spark=True)
    assert said.startswith("error: cannot read broken: [CAST_INVALID_INPUT] The value … of the")
    spark.conf.unset("spark.sql.ansi.enabled")
    wrong = ModelSignature(Schema([ColSpec("long", "prompt")]), Schema([ColSpec("string")]))
    assert score(log("quoting", signature=wrong), source, output) == 1
    check("a batch that MLflow refuses")


def test_smoke_rows(store: Path, check: Check, tmp_path: Path) -> None:
    uri = log("quoting", registered_model_name="quoting")
    assert uri
    smoke = tmp_path / "smoke.jsonl"
    row = {"prompt": f"{CANARY} poison", "contains": f"{CANARY} answer"}
    smoke.write_text(json.dumps(row))
    assert cli.main(["promote", "quoting", "1", "--smoke", str(smoke)]) == 1
    check("a smoke row at which the model raises")
    smoke.write_text(json.dumps({**row, "prompt": f"{CANARY} prompt"}))
    assert cli.main(["promote", "quoting", "1", "--smoke", str(smoke)]) == 1
    check("a smoke row with another answer")
    assert mlflow.search_runs(search_all_experiments=True).shape[0] > 0
