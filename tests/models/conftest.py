"""What the model tests share: an MLflow store of their own, and the models logged in it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.models.model import ModelInfo

import phi3_batch
from phi3_batch.engines import Engine, registry, this_process
from phi3_batch.model_files import ModelFolder

# Lines of the requirements.txt of models over an ONNX build: no torch among them.
ONNX_REQUIREMENTS = {
    *(
        f"{name}=={version(name)}"
        for name in (
            *("mlflow", "tokenizers", "pandas", "numpy", "filelock", "jinja2", "llguidance"),
            *("onnxruntime", "onnxruntime-genai", "platformdirs", "xxhash"),
        )
    ),
    *(
        f'{name}=={version(name)}; platform_machine == "x86_64"'
        for name in ("llvmlite", "onnx", "openvino-genai")
    ),
}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Tracking URI and experiment id of a new sqlite store; its artifacts lie beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    experiment_id = MlflowClient(uri).create_experiment(
        "tests", artifact_location=(folder / "artifacts").as_uri()
    )
    return uri, experiment_id


@pytest.fixture(autouse=True, scope="module")
def in_store(store: tuple[str, str]) -> Iterator[None]:
    """Everything logged here goes to the tests' store, and what was set before comes back."""
    uri, experiment_id = store
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
        # an experiment chosen by other tests of the process would go before the variable
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
        patch.setattr(sys, "path", list(sys.path))  # load_model puts the model's code on it
        mlflow.set_tracking_uri(uri)
        yield
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def store_folder(store: tuple[str, str]) -> Path:
    return Path(store[0].removeprefix("sqlite:///")).parent


@pytest.fixture(scope="module")
def client(store: tuple[str, str]) -> MlflowClient:
    return MlflowClient(store[0])


@pytest.fixture(scope="module")
def logged(in_store: None, tiny_folder: ModelFolder) -> ModelInfo:
    """The prompt model, logged and registered with its defaults."""
    return phi3_batch.log_prompt_model(
        tiny_folder.path, registered_model_name="phi3", alias="champion"
    )


@pytest.fixture(scope="module")
def model(logged: ModelInfo) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(logged.model_uri)


@pytest.fixture
def copy_of_model(logged: ModelInfo, tmp_path: Path) -> Path:
    """The logged model's files, in a folder that a test may damage."""
    source = mlflow.artifacts.download_artifacts(logged.model_uri)
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.fixture
def with_chatml(tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a copy of a model's folder whose tokenizer has ChatML's control tokens."""

    def copy(folder: Path) -> Path:
        copied = Path(shutil.copytree(folder, tmp_path / "chatml"))
        for file in copied.rglob("tokenizer*.json"):
            text = file.read_text(encoding="utf-8")
            for theirs, ours in (("<|im_start|>", "<|user|>"), ("<|im_end|>", "<|end|>")):
                text = text.replace(f'"{ours}"', f'"{theirs}"')
            file.write_text(text, encoding="utf-8")
        return copied

    return copy


@pytest.fixture
def engines_loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The engines loaded from here on, none of them left over from before."""
    loaded: list[Path] = []

    create = registry.create

    def watched(folder: ModelFolder, *rest: Any, **wanted: Any) -> Engine:
        engine = create(folder, *rest, **wanted)
        loaded.append(folder.path)
        return engine

    monkeypatch.setattr(registry, "create", watched)
    this_process.reset()
    return loaded
