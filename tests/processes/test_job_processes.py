"""The job as a process of its own: Ctrl-C, Java's memory, and a caller that knows only MLflow."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.conftest import SAMPLE_DATA


def test_ctrl_c_ends_the_job_at_once_and_leaves_nothing(
    model_uri: str, environment: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_bytes((SAMPLE_DATA / "prompts.jsonl").read_bytes() * 30)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "phi3_batch", "score", "--model", model_uri]
    job = subprocess.Popen(
        [*command, "--input", str(source), "--output", str(output)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stderr is not None
    said = [next(line for line in job.stderr if line.startswith("scoring: "))]
    job.send_signal(signal.SIGINT)
    said += job.stderr.readlines()
    assert job.wait() == 130
    assert said[-1] == "interrupted: the output is unchanged; run the same command to start again\n"
    assert all(line.startswith("scoring: ") for line in said[:-1])
    assert not list(output.glob("_delta_log/*.json"))


def test_a_row_that_java_has_no_memory_for_is_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "prompts.parquet"
    pd.DataFrame({"prompt": ["word " * 12_000_000]}).to_parquet(source)
    command = [sys.executable, "-m", "phi3_batch", "score", "--model", "models:/m"]
    job = subprocess.run(
        [*command, "--input", str(source), "--output", str(tmp_path / "out")],
        env={**environment, "SPARK_DRIVER_MEMORY": "512m"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 1
    why = "Spark's driver JVM is gone (killed, or out of memory: spark.driver.memory)"
    assert job.stderr.splitlines()[-1] == f"error: cannot read {source}: {why}"
    assert "Traceback" not in job.stderr


def test_spark_udf_without_our_code_gives_the_same_text(
    model_uri: str, store: Path, tmp_path: Path
) -> None:
    """A plain session, and a caller that imports mlflow alone, as a notebook would."""
    comedian = (
        "<|system|>You are a stand-up comedian.<|end|><|user|>Tell me a joke about atom<|end|>"
        "<|assistant|>"
    )
    script = tmp_path / "caller.py"
    script.write_text(
        f"""
import json, os, sys
import mlflow
from pyspark.sql import SparkSession

os.environ["PYSPARK_PYTHON"] = sys.executable
mlflow.set_tracking_uri("sqlite:///{store}/mlflow.db")
prompt = {comedian!r}
loaded = mlflow.pyfunc.load_model({model_uri!r}).predict({{"prompt": prompt}})
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False).getOrCreate()
udf = mlflow.pyfunc.spark_udf(spark, {model_uri!r}, env_manager="local")
rows = spark.createDataFrame([(prompt,), (None,)], "prompt string").coalesce(1)
scored = [row[0] for row in rows.select(udf("prompt")).collect()]
json.dump([loaded, scored], open({str(tmp_path / "result.json")!r}, "w"))
"""
    )
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path, capture_output=True)
    loaded, scored = json.loads((tmp_path / "result.json").read_text())
    joke = "Why should you never trust an atom? Because they make up everything!"
    assert loaded == [joke]
    assert scored == [joke, ""]
