"""Prompts and completions are people's data: they stay in the tables."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.spark.test_score import SPAIN, score

SECRET = "xyzzy-4711"


def test_no_log_metric_or_artifact_holds_a_prompt_or_a_completion(
    store: Path,
    model_uri: str,
    chat_uri: str,
    write_prompts: Callable[..., str],
    worker_log: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    prompts = [
        f"{SECRET} {SPAIN}",
        f"<|user|>{SECRET}<|end|><|assistant|>",
        f"{SECRET}\x07",
        f"{SECRET} " * 2000,
    ]
    source = write_prompts(prompts)
    assert score(model_uri, source, str(tmp_path / "out")) == 0
    texts = ["--system", SECRET, "--user-template", SECRET + "{prompt}"]
    assert score(chat_uri, source, str(tmp_path / "chats"), "--keep-response", *texts) == 0
    said = "".join(capfd.readouterr())
    spark_logs = list(Path(tempfile.gettempdir()).glob("phi3-batch-spark-*.log"))
    assert spark_logs
    kept = [path for path in store.rglob("*") if path.is_file()]
    assert SECRET not in said
    for path in (*spark_logs, worker_log, *kept):
        assert SECRET.encode() not in path.read_bytes(), path
