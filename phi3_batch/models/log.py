"""Logging models to MLflow."""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.models.model import ModelInfo

from phi3_batch.engines import check_choice
from phi3_batch.engines.registry import AUTO
from phi3_batch.model_files import Checkpoint, Manifest, ModelFolder
from phi3_batch.model_files.checkpoint import require_torch
from phi3_batch.models.chat import chat_config
from phi3_batch.models.forms import Form, chat_form, pipeline_form, prompt_form
from phi3_batch.models.names import check_names
from phi3_batch.models.pipeline import params_from_transformers
from phi3_batch.models.reference import Reference

if TYPE_CHECKING:
    from transformers import Pipeline


def log_prompt_model(
    model_dir: str | Path,
    *,
    name: str = "phi3-prompt",
    registered_model_name: str | None = None,
    alias: str | None = None,
    params: bool = True,
    engine: str = AUTO,
    by_reference: str | None = None,
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
        engine: what is to run it: "native", "openvino", "onnxruntime-genai", or "auto" for the
            fastest that can. The environment variable PHI3_BATCH_ENGINE overrides it where it is
            loaded.
        by_reference: where machines can fetch the same folder, a path or a URI that MLflow fetches
            artifacts from. The logged model then holds no weights, but their digests and this.

    Returns:
        MLflow's ModelInfo; ``.model_uri`` is what ``load_model`` and ``spark_udf`` take.

    Raises:
        InvalidModelError: the folder is not an int4 ONNX build of Phi-3, or has the tokenizer of
            another model; or what is there by reference is another folder.
        InvalidParameterError: a name that MLflow refuses, an alias without a name to
            register under, or no such engine.
    """
    check_choice(engine)
    folder = ModelFolder.open(model_dir)
    check_names(name, registered_model_name, alias)
    form = prompt_form(params=params)
    form.check(folder)
    reference = _reference(folder, by_reference)
    with _run(name):
        return _log(
            form,
            folder,
            name,
            registered_model_name,
            alias,
            engine=engine,
            reference=reference,
        )


def log_chat_model(
    model_dir: str | Path,
    *,
    name: str = "phi3-chat",
    registered_model_name: str | None = None,
    alias: str | None = None,
    model_config: Mapping[str, Any] | None = None,
    params: bool = True,
    engine: str = AUTO,
    by_reference: str | None = None,
) -> ModelInfo:
    """Log an int4 ONNX build of Phi-3 as a model that answers chats.

    Logs into the active MLflow run, or into one of its own.

    Args:
        model_dir: folder of the build, with genai_config.json and the .onnx files.
        name: of the logged model, and what its completions have as ``model``.
        registered_model_name: also registers a version under this name.
        alias: also gives that version this alias, as in ``models:/NAME@ALIAS``.
        model_config: parameters of :class:`~phi3_batch.generation.GenerationParams` for rows that
            do not give their own, such as ``{"max_tokens": 60, "top_p": 0.9}``.
        params: False logs the bare form, whose signature takes no parameters beside a row's own:
            no choices, no schema, no log-probabilities.
        engine: what is to run it, as of :func:`log_prompt_model`.
        by_reference: where machines can fetch the folder, as of :func:`log_prompt_model`.

    Returns:
        MLflow's ModelInfo; ``.model_uri`` is what ``load_model`` and ``spark_udf`` take.

    Raises:
        InvalidModelError: the folder is not an int4 ONNX build of Phi-3, or its tokenizer lacks
            control tokens of Phi-3's chat format.
        InvalidParameterError: a name that MLflow refuses, an alias without a name to
            register under, no such engine, or a parameter that is unknown or out of range.
    """
    check_choice(engine)
    folder = ModelFolder.open(model_dir)
    check_names(name, registered_model_name, alias)
    config = chat_config(name, model_config or {})
    form = chat_form(params=params)
    form.check(folder)
    reference = _reference(folder, by_reference)
    with _run(name):
        return _log(form, folder, name, registered_model_name, alias, config, engine, reference)


def log_pipeline_model(
    model: "str | Path | Pipeline",
    *,
    name: str = "phi3-pipeline",
    registered_model_name: str | None = None,
    alias: str | None = None,
    model_config: Mapping[str, Any] | None = None,
    params: bool = True,
    by_reference: str | None = None,
) -> ModelInfo:
    """Log a Phi-3 checkpoint as a transformers text-generation pipeline that answers chats.

    Two models are logged into one run. The plain one, by ``mlflow.transformers.log_model`` with
    task ``llm/v1/chat``, is for ``mlflow.transformers.load_model``; its name ends with
    ``-transformers``. The other has the same weights and works under ``spark_udf`` too, with the
    chat model's inputs and outputs: it is the one that is registered and returned.

    Args:
        model: folder of the checkpoint, or a text-generation pipeline.
        name: of the logged model, and what its completions have as ``model``.
        registered_model_name: also registers a version under this name.
        alias: also gives that version this alias, as in ``models:/NAME@ALIAS``.
        model_config: generation parameters in transformers' names (``max_new_tokens``,
            ``temperature``, ``do_sample`` …) for rows that do not give their own.
        params: as of :func:`log_chat_model`.
        by_reference: where machines can fetch the checkpoint, as of :func:`log_prompt_model`. The
            plain model, which would hold the weights, is not logged then.

    Returns:
        MLflow's ModelInfo of the second model.

    Raises:
        InvalidModelError: the folder is not a Phi-3 checkpoint, or its tokenizer lacks control
            tokens of Phi-3's chat format; or what is there by reference is another folder.
        InvalidParameterError: a name that MLflow refuses, an alias without a name to
            register under, or a model_config that the model cannot follow.
        EnvironmentProblemError: torch or transformers is not installed.
    """
    check_names(name, registered_model_name, alias)
    if isinstance(model, str | Path):
        Checkpoint.open(model)  # what can be wrong with it is told before torch is imported
    require_torch()
    from phi3_batch.models import transformers_flavor

    transformers_config = dict(model_config or {})
    config = chat_config(name, params_from_transformers(transformers_config))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, pipeline = transformers_flavor.open_pipeline(model, Path(scratch))
        reference = _reference(checkpoint, by_reference)
        with _run(name):
            if reference is None:
                transformers_flavor.log(pipeline, f"{name}-transformers", transformers_config)
            return _log(
                pipeline_form(params=params),
                checkpoint,
                name,
                registered_model_name,
                alias,
                config,
                reference=reference,
            )


def _reference(folder: ModelFolder | Checkpoint, uri: str | None) -> Reference | None:
    if uri is None:
        return None
    reference = Reference.to(uri)
    reference.check(folder.path, folder.files)
    return reference


def _run(name: str) -> contextlib.AbstractContextManager[object]:
    """The active MLflow run, or one of its own."""
    if mlflow.active_run():
        return contextlib.nullcontext()
    return mlflow.start_run(run_name=f"log {name}")


def _log(
    form: Form,
    folder: ModelFolder | Checkpoint,
    name: str,
    registered_model_name: str | None,
    alias: str | None,
    model_config: dict[str, Any] | None = None,
    engine: str | None = None,
    reference: Reference | None = None,
) -> ModelInfo:
    manifest = folder.read_manifest()
    _log_params(name, _describe(folder, manifest) | ({"engine": engine} if engine else {}))
    with form.arguments(folder, manifest, engine, reference) as arguments:
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=name,
            registered_model_name=registered_model_name,
            model_config=model_config,
            **arguments,
        )
    if alias and registered_model_name:
        mlflow.MlflowClient().set_registered_model_alias(
            registered_model_name, alias, str(info.registered_model_version)
        )
    return info


def _log_params(name: str, params: Mapping[str, object]) -> None:
    """Log what a model is; where another model of the run is something else, under its name."""
    run = mlflow.active_run()
    assert run is not None  # _run has seen to it
    there = mlflow.MlflowClient().get_run(run.info.run_id).data.params
    taken = any(there.get(key, str(value)) != str(value) for key, value in params.items())
    prefix = f"{name}." if taken else ""
    mlflow.log_params({prefix + key: value for key, value in params.items()})


def _describe(folder: ModelFolder | Checkpoint, manifest: Manifest) -> dict[str, object]:
    return {
        "model_type": folder.model_type,
        "precision": folder.precision,
        "context_length": folder.context_length,
        "vocab_size": folder.vocab_size,
        "size_mb": round(manifest.size_bytes / 1e6, 1),
        **{f"sha256 {name}": sha256 for name, (_, sha256) in manifest.files.items()},
    }
