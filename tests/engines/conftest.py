"""What the engine tests share: the embedded model's requests, and engines of their own."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime_genai as og
import pytest

from phi3_batch.engines import Engine, ModelFolder
from phi3_batch.engines.onnxruntime_genai import OnnxRuntimeGenAIEngine
from phi3_batch.generation import Completion, GenerationParams, Request


@pytest.fixture(scope="session")
def requests_of_samples(tiny_engine: Engine, samples: Sequence) -> list[Request]:
    """One greedy request for each sample prompt."""
    encode = tiny_engine.tokenizer.encode_prompt
    return [Request(tuple(encode(sample.prompt))) for sample in samples]


@pytest.fixture(scope="session")
def completions_of_samples(
    tiny_engine: Engine, requests_of_samples: list[Request]
) -> list[Completion]:
    """What the engine answers when it is given every sample prompt in one call."""
    return tiny_engine.generate(requests_of_samples)


@pytest.fixture
def fresh_engine(tiny_folder: ModelFolder) -> OnnxRuntimeGenAIEngine:
    """An engine that has answered nothing yet."""
    return OnnxRuntimeGenAIEngine(tiny_folder)


@pytest.fixture
def ask(tiny_engine: Engine) -> Callable[..., Request]:
    """Makes a request of a question and parameters."""

    def ask(question: str, **params: object) -> Request:
        prompt = f"<|user|>\n{question}<|end|>\n<|assistant|>\n"
        ids = tiny_engine.tokenizer.encode_prompt(prompt)
        return Request(tuple(ids), GenerationParams(**params))

    return ask


@pytest.fixture
def nonsense(tiny_engine: Engine) -> Callable[[int], tuple[int, ...]]:
    """Makes a prompt of so many tokens; what the model says to it is nonsense, always the same."""
    ids = tuple(tiny_engine.tokenizer.encode_content("What is the capital of Spain? " * 600))
    assert len(ids) > 4096

    return lambda length: ids[:length]


@pytest.fixture
def build(tmp_path: Path, tiny_folder: ModelFolder) -> Path:
    """A copy of the embedded model that a test may change."""
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "build"))


@pytest.fixture
def build_with_sliding_window(build: Path) -> Path:
    """The embedded model, with the section that today's builder writes for Phi-3-mini."""
    file = build / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["decoder"]["sliding_window"] = {
        "window_size": 2047,
        "slide_key_value_cache": False,
        "slide_inputs": False,
        "layers": [],
        "cache_slack": 0,
    }
    file.write_text(json.dumps(config), encoding="utf-8")
    return build


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call gave the runtime, by engines made after this."""
    counts: list[int] = []
    runtime_generator = og.Generator

    class CountingGenerator:
        def __init__(self, *arguments: object) -> None:
            self._generator = runtime_generator(*arguments)

        def append_tokens(self, ids: Sequence[int]) -> None:
            counts.append(len(ids))
            self._generator.append_tokens(ids)

        def __getattr__(self, name: str) -> object:
            return getattr(self._generator, name)

    monkeypatch.setattr(og, "Generator", CountingGenerator)
    return counts
