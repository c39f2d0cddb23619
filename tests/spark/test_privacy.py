"""Prompts and completions are people's data: they stay in the tables."""

from collections.abc import Callable
from pathlib import Path

import pytest

from phi3_batch.scoring.session import log_file
from tests.spark.test_score import SPAIN, score

SECRET = "xyzzy-4711"


def test_no_log_metric_or_artifact_holds_a_prompt_or_a_completion(
    store: Path,
    model_uri: str,
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
    assert score(model_uri, write_prompts(prompts), str(tmp_path / "out")) == 0
    said = "".join(capfd.readouterr())
    spark_log = log_file()
    assert spark_log is not None
    kept = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    for text in (said.encode(), spark_log.read_bytes(), worker_log.read_bytes(), *kept):
        assert SECRET.encode() not in text
