"""What the unit tests share: no runtime runs here, no Spark, no MLflow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3_batch.text import Tokenizer
from tests.conftest import REPOSITORY, SAMPLE_DATA, TINY_MODEL


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY_MODEL / "tokenizer.json")


@pytest.fixture(scope="session")
def chats() -> list[dict]:
    lines = (SAMPLE_DATA / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "build"))


@pytest.fixture
def edit_config(build: Path) -> Callable[[Callable[[dict], object]], None]:
    """Applies a change to the copy's genai_config.json."""

    def edit(change: Callable[[dict], object]) -> None:
        file = build / "genai_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        change(config)
        file.write_text(json.dumps(config), encoding="utf-8")

    return edit
