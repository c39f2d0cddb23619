"""What the engine tests share: the embedded model's requests, and engines of their own."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxruntime_genai as og
import pytest

from phi3_batch.engines import Engine
from phi3_batch.engines.native.engine import NativeEngine
from phi3_batch.engines.native.packed_model import PackedModel
from phi3_batch.engines.native.packing import pack_model
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.ov.engine import OpenVINOEngine, write_model
from phi3_batch.engines.ov.graph import convert
from phi3_batch.engines.ov.int4 import instructions_for
from phi3_batch.generation import Completion, GenerationParams, Request
from phi3_batch.model_files import ModelFolder
from tests.conftest import TINY_CHECKPOINT, Sample
from tests.engines.graphs import OLD_LAYOUT
from tests.engines.random_builds import build_all

SPAIN = "What is the capital of Spain?"
FRANCE = "What is the capital of France?"
MADRID = "The capital of Spain is Madrid."
PARIS = "The capital of France is Paris."


def one(engine: Engine, request: Request) -> Completion:
    """The only completion of the only request."""
    [completion] = engine.generate([request])
    return completion


@pytest.fixture(scope="session")
def converted_model(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as OpenVINO runs it on this machine."""
    target = tmp_path_factory.mktemp("openvino")
    write_model(convert(tiny_folder, instructions_for(tiny_folder)), tiny_folder, target)
    return target


@pytest.fixture(scope="session")
def packed_model(tiny_folder: ModelFolder) -> PackedModel:
    """The embedded model as the native engine runs it."""
    return pack(tiny_folder)


def pack(folder: ModelFolder) -> PackedModel:
    """A build as the native engine runs it, in no file that has a name."""
    with tempfile.TemporaryFile() as file:
        index = pack_model(folder, file)
        return PackedModel(json.loads(json.dumps(index)), file)


@pytest.fixture(scope="session", params=["native", "onnxruntime-genai", "openvino"])
def new_engine(
    request: pytest.FixtureRequest,
    tiny_folder: ModelFolder,
    packed_model: PackedModel,
    converted_model: Path,
) -> Callable[..., Engine]:
    """Makes engines that have answered nothing yet, once for each runtime."""

    def new_engine(
        folder: ModelFolder = tiny_folder,
        *,
        shares_prefixes: bool = True,
        threads: int | None = None,
    ) -> Engine:
        if request.param == "native":
            return NativeEngine(
                folder, packed_model, threads=threads, prefix_caching=shares_prefixes
            )
        if request.param == "openvino":
            return OpenVINOEngine(
                folder, converted_model, threads=threads, prefix_caching=shares_prefixes
            )
        return OnnxRuntimeGenAIEngine(folder, threads=threads, keep_prefix=shares_prefixes)

    return new_engine


@pytest.fixture(scope="session")
def engine(new_engine: Callable[..., Engine]) -> Engine:
    """One engine of each runtime."""
    return new_engine()


@pytest.fixture(scope="session")
def reference(tiny_folder: ModelFolder) -> OnnxRuntimeGenAIEngine:
    """The engine whose greedy completions are what every other one's have to be."""
    return OnnxRuntimeGenAIEngine(tiny_folder)


@pytest.fixture(scope="session")
def requests_of_samples(tiny_folder: ModelFolder, samples: Sequence) -> list[Request]:
    """One greedy request for each sample prompt."""
    encode = tiny_folder.tokenizer.encode_prompt
    return [Request(tuple(encode(sample.prompt))) for sample in samples]


@pytest.fixture(scope="session")
def hot(requests_of_samples: list[Request]) -> list[Request]:
    """Sampled requests of which every bit counts: prompts short and long, alone and in company."""
    kinds = [(1.0, 0, 1.0), (2.0, 0, 0.9), (3.0, 40, 1.0), (1.5, 20, 0.8)]
    prompts = [request.prompt_ids for request in requests_of_samples[:40]]
    beginning = prompts[0] * 12
    prompts += [beginning + prompt for prompt in prompts[:15]]
    return [
        Request(prompt, GenerationParams(30, temperature, top_p, top_k, seed=seed))
        for seed, prompt in enumerate(prompts)
        for temperature, top_k, top_p in kinds
    ]


@pytest.fixture(scope="session")
def check_phrasings(
    tiny_folder: ModelFolder, samples: Sequence[Sample]
) -> Callable[[Engine, Engine], None]:
    """Compares an engine with the reference on 300 phrasings that the model never saw."""
    phrasings = [
        lambda prompt: prompt.replace("?<|end|>", "<|end|>"),
        lambda prompt: prompt.replace("?<|end|>", "??<|end|>"),
        lambda prompt: prompt.replace("?<|end|>", "?!<|end|>"),
        lambda prompt: prompt.replace("?<|end|>", ".<|end|>"),
        lambda prompt: prompt.replace("?<|end|>", "? <|end|>"),
        lambda prompt: prompt.replace("<|user|>", "<|user|>\n").replace("\n\n", "\n\n\n"),
    ]
    known = [sample.prompt for sample in samples if "?<|end|>" in sample.prompt]
    asked = {phrase(prompt) for phrase in phrasings for prompt in known} - set(known)
    encode = tiny_folder.tokenizer.encode_prompt
    requests = [
        Request(tuple(encode(prompt)), GenerationParams(max_tokens=60))
        for prompt in random.Random(0).sample(sorted(asked), 300)
    ]

    def check_phrasings(engine: Engine, reference: Engine) -> None:
        pairs = list(zip(engine.generate(requests), reference.generate(requests), strict=True))
        # where it does not know an answer, two tokens may be as good as equally likely
        answers = {sample.answer for sample in samples}
        sure = [(answer, expected) for answer, expected in pairs if expected.text in answers]
        assert len(sure) > 250
        assert [answer for answer, _ in sure] == [expected for _, expected in sure]
        assert sum(answer == expected for answer, expected in pairs) >= 297

    return check_phrasings


@pytest.fixture(scope="session")
def completions_of_samples(engine: Engine, requests_of_samples: list[Request]) -> list[Completion]:
    """What an engine answers when it is given every sample prompt in one call."""
    return engine.generate(requests_of_samples)


@pytest.fixture
def fresh_engine(tiny_folder: ModelFolder) -> OnnxRuntimeGenAIEngine:
    """The reference engine, when it has answered nothing yet."""
    return OnnxRuntimeGenAIEngine(tiny_folder)


@pytest.fixture
def ask(tiny_folder: ModelFolder) -> Callable[..., Request]:
    """Makes a request of a question and parameters."""

    def ask(question: str, **params: object) -> Request:
        prompt = f"<|user|>\n{question}<|end|>\n<|assistant|>\n"
        ids = tiny_folder.tokenizer.encode_prompt(prompt)
        return Request(tuple(ids), GenerationParams(**params))

    return ask


@pytest.fixture
def nonsense(tiny_folder: ModelFolder) -> Callable[[int], tuple[int, ...]]:
    """Makes a prompt of so many tokens; what the model says to it is nonsense, always the same."""
    ids = tuple(tiny_folder.tokenizer.encode_content("What is the capital of Spain? " * 600))
    assert len(ids) > 4096

    return lambda length: ids[:length]


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models of random weights, each in a folder by its name."""
    root = tmp_path_factory.mktemp("builds")
    build_all(root)
    return root


@pytest.fixture
def build(tmp_path: Path, tiny_folder: ModelFolder) -> Path:
    """A copy of the embedded model that a test may change."""
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "build"))


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., ModelFolder]:
    """Makes copies of a model with another graph."""

    def changed(source: Path, *edits: Callable[[onnx.ModelProto], None]) -> ModelFolder:
        target = tmp_path / "changed"
        shutil.copytree(source, target, dirs_exist_ok=True)
        graph = onnx.load(target / "model.onnx", load_external_data=False)
        for edit in edits:
            edit(graph)
        onnx.save(graph, target / "model.onnx")
        return ModelFolder.open(target)

    return changed


@pytest.fixture
def old_layout(tmp_path: Path) -> ModelFolder:
    folder = shutil.copytree(OLD_LAYOUT, tmp_path / "old")
    shutil.copyfile(TINY_CHECKPOINT / "tokenizer.json", folder / "tokenizer.json")
    return ModelFolder.open(folder)


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
