"""Logging models to MLflow."""

import contextlib
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.models.model import ModelInfo

import phi3_batch
from phi3_batch.engines import ModelFolder
from phi3_batch.engines.model_folder import Manifest
from phi3_batch.errors import InvalidParameterError
from phi3_batch.models.prompt import MANIFEST_ARTIFACT, MODEL_ARTIFACT
from phi3_batch.models.signatures import PROMPT_COLUMN, prompt_signature

# What the ONNX models import when they are loaded. torch is not among them, and must not be.
_ONNX_REQUIREMENTS = ("mlflow", "onnxruntime-genai", "onnxruntime", "tokenizers", "pandas", "numpy")

_INPUT_EXAMPLE = {PROMPT_COLUMN: "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"}


def log_prompt_model(
    model_dir: str | Path,
    *,
    name: str = "phi3-prompt",
    registered_model_name: str | None = None,
    alias: str | None = None,
    params: bool = True,
) -> ModelInfo:
    """Log an int4 ONNX build of Phi-3 as a model that completes raw prompts.

    Logs into the active MLflow run, or into one of its own.

    Args:
        model_dir: folder of the build, with genai_config.json and the .onnx files.
        name: of the logged model.
        registered_model_name: also registers a version under this name.
        alias: also gives that version this alias, as in ``models:/NAME@ALIAS``.
        params: False logs the bare form, whose signature takes no parameters: greedy text of at
            most 256 tokens, without usage.

    Returns:
        MLflow's ModelInfo; ``.model_uri`` is what ``load_model`` and ``spark_udf`` take.

    Raises:
        InvalidModelError: the folder is not an int4 ONNX build of Phi-3.
        InvalidParameterError: an alias without a name to register under.
    """
    if alias and not registered_model_name:
        raise InvalidParameterError("an alias needs a registered model name to belong to")
    folder = ModelFolder.open(model_dir)
    manifest = folder.read_manifest()
    run = mlflow.active_run()
    with (
        contextlib.nullcontext(run) if run else mlflow.start_run(run_name=f"log {name}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        manifest_file = Path(scratch, "manifest.json")
        manifest_file.write_text(manifest.to_json(), encoding="utf-8")
        mlflow.log_params(_describe(folder, manifest))
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("prompt_code.py")),
            artifacts={
                MODEL_ARTIFACT: str(folder.path),
                MANIFEST_ARTIFACT: str(manifest_file),
            },
            code_paths=[str(Path(phi3_batch.__file__).parent)],
            signature=prompt_signature(params=params),
            input_example=_INPUT_EXAMPLE,
            pip_requirements=[f"{package}=={version(package)}" for package in _ONNX_REQUIREMENTS],
            metadata={"phi3_batch": phi3_batch.__version__},
            registered_model_name=registered_model_name,
        )
    if alias and registered_model_name:
        mlflow.MlflowClient().set_registered_model_alias(
            registered_model_name, alias, str(info.registered_model_version)
        )
    return info


def _describe(folder: ModelFolder, manifest: Manifest) -> dict[str, object]:
    return {
        "model_type": folder.model_type,
        "precision": str(folder.quantization),
        "context_length": folder.context_length,
        "vocab_size": folder.vocab_size,
        "size_mb": round(sum(size for size, _ in manifest.files.values()) / 1e6, 1),
        **{f"sha256 {name}": sha256 for name, (_, sha256) in manifest.files.items()},
    }
