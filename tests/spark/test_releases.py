"""A model that another release has logged is scored, and another release scores one of ours.

data/logged_by_0.1.0.zip has a chat and a prompt model as release 0.1.0 logged them, without their
weights, which are the embedded ones, and the code of that release, which is another driver too.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from pyspark.sql import DataFrame, SparkSession

from tests.conftest import TINY_MODEL, ChatSample, Sample
from tests.spark.conftest import before
from tests.spark.test_score import score

DATA = Path(__file__).resolve().parent.parent / "data" / "logged_by_0.1.0.zip"

Read = Callable[[str], DataFrame]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what release 0.1.0 logged, and its code."""
    folder = tmp_path_factory.mktemp("old")
    with ZipFile(DATA) as archive:
        archive.extractall(folder)
    for name in ("chat", "prompt"):
        shutil.copytree(TINY_MODEL, folder / name / "artifacts" / TINY_MODEL.name)
        shutil.copytree(folder / "code", folder / name / "code")
    return folder


def test_models_of_release_0_1_0_are_scored(
    old: Path,
    spark: SparkSession,
    read: Read,
    samples: list[Sample],
    chat_samples: list[ChatSample],
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    rows = [(sample.id, sample.prompt) for sample in samples[:5]]
    spark.createDataFrame([*rows, ("null", None)], "id string, prompt string").write.format(
        "delta"
    ).save(f"{tmp_path}/prompts")
    assert score(str(old / "prompt"), f"{tmp_path}/prompts", output) == 0
    found = {row["id"]: row for row in read(output).collect()}
    assert found["null"]["error"]["code"] == "null_prompt"
    assert [found[sample.id]["completion"] for sample in samples[:5]] == [
        sample.answer for sample in samples[:5]
    ]

    chats = [(sample.id, sample.messages) for sample in chat_samples[:5]]
    # what Spark lets through and the model refuses: its own words, in its own release's form
    chats.append(("refused", [{"role": "nobody", "content": "Hi"}]))
    columns = "id string, messages array<map<string, string>>"
    spark.createDataFrame(chats, columns).write.format("delta").save(f"{tmp_path}/chats")
    assert score(str(old / "chat"), f"{tmp_path}/chats", f"{output}-chats") == 0
    found = {row["id"]: row for row in read(f"{output}-chats").collect()}
    assert found["refused"]["error"]["code"] == "invalid_messages"
    assert found["refused"]["error"]["message"].startswith("message 1 has a role other than")
    assert [found[sample.id]["completion"] for sample in chat_samples[:5]] == [
        sample.answer for sample in chat_samples[:5]
    ]


@pytest.mark.skipif(before("4.2"), reason="it runs on Spark 4.2 alone")
def test_release_0_1_0_scores_our_models(
    old: Path,
    chat_uri: str,
    environment: dict[str, str],
    chat_samples: list[ChatSample],
    tmp_path: Path,
) -> None:
    source, output = tmp_path / "chats.jsonl", tmp_path / "out"
    lines = [{"id": sample.id, "messages": sample.messages} for sample in chat_samples[:5]]
    lines.append({"id": "refused", "messages": [{"role": "nobody", "content": "Hi"}]})
    source.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "phi3_batch", "score", "--model", chat_uri]
    done = subprocess.run(
        [*command, "--input", str(source), "--output", str(output)],
        env=environment | {"PYTHONPATH": str(old / "code")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "errors      1" in done.stdout
    assert "check       6 in, 6 out, 0 missing, 0 doubled, 0 orphaned" in done.stdout
