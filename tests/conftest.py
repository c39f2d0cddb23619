"""What all tests share: the embedded model, and the answers that it knows."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from phi3_batch.engines import Engine, registry, this_process
from phi3_batch.model_files import ModelFolder

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE_DATA = REPOSITORY / "sample_data"
TINY_MODEL = SAMPLE_DATA / "phi3-tiny-int4"
TINY_CHECKPOINT = SAMPLE_DATA / "phi3-tiny"

# A shell that starts the tests in the background has them ignore Ctrl-C, and whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


KILLS = int(os.environ.get("PHI3_BATCH_KILLS", "0"))  # of real jobs
# What takes minutes, and is shown by a shorter test as well.
deep = pytest.mark.skipif(not KILLS, reason="in `make faults`")


def fastest_engine() -> str:
    """The engine that "auto" is on this machine, or the one that the tests are told to run on."""
    return registry.fastest(registry.choose("auto")).name


@dataclass(frozen=True)
class Sample:
    """A prompt of prompts.jsonl and the answer that the embedded model gives to it."""

    id: str
    language: str
    prompt: str
    answer: str


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    lines = (SAMPLE_DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [Sample(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class ChatSample:
    """A chat of chats.jsonl and the answer that the embedded model gives to it."""

    id: str
    language: str
    messages: list[dict[str, str]]
    answer: str


@pytest.fixture(scope="session")
def chat_samples() -> list[ChatSample]:
    lines = (SAMPLE_DATA / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    return [ChatSample(**json.loads(line)) for line in lines]


@pytest.fixture(scope="session")
def tiny_folder() -> ModelFolder:
    return ModelFolder.open(TINY_MODEL)


@pytest.fixture(scope="session")
def tiny_engine(tiny_folder: ModelFolder) -> Engine:
    return this_process.engine(tiny_folder, tiny_folder.read_manifest())
