"""Logging a pipeline in MLflow's own transformers flavor.

The only module of this layer that needs torch and transformers; imported by who uses it.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import transformers
from mlflow.models.model import ModelInfo
from transformers import Pipeline

from phi3_batch.contract import CHAT_TASK
from phi3_batch.engines.torch.engine import quiet_transformers
from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Checkpoint
from phi3_batch.models.forms import pipeline_form


def open_pipeline(model: str | Path | Pipeline, scratch: Path) -> tuple[Checkpoint, Pipeline]:
    """A checkpoint folder and its pipeline, whichever of the two is given.

    Args:
        model: folder of the checkpoint, or a text-generation pipeline.
        scratch: where a pipeline's checkpoint is written.

    Raises:
        InvalidModelError: the folder is not a Phi-3 checkpoint, the pipeline has another task, or
            its tokenizer lacks control tokens of the chat format.
    """
    with _quiet():
        if not isinstance(model, str | Path):
            if getattr(model, "task", None) != "text-generation":
                raise InvalidModelError(
                    f"a {type(model).__name__} is no text-generation pipeline of transformers"
                )
            model.save_pretrained(scratch)
            checkpoint = Checkpoint.open(scratch)
            pipeline_form().check(checkpoint, "the pipeline")
            return checkpoint, model
        checkpoint = Checkpoint.open(model)
        pipeline_form().check(checkpoint)  # before the weights are read
        # absolute, for MLflow would look for a relative one on the Hugging Face hub
        path = str(checkpoint.path.absolute())
        return checkpoint, transformers.pipeline("text-generation", model=path, tokenizer=path)


def log(pipeline: Pipeline, name: str, model_config: Mapping[str, Any]) -> ModelInfo:
    """Log a pipeline by ``mlflow.transformers.log_model``, with task ``llm/v1/chat``."""
    with _quiet():
        info: ModelInfo = mlflow.transformers.log_model(
            transformers_model=pipeline,
            name=name,
            task=CHAT_TASK,
            model_config=dict(model_config),
            pip_requirements=pipeline_form().requirements,  # else MLflow imports torchvision
        )
    return info


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without MLflow's warnings about a model card on the hub."""
    logger = logging.getLogger("mlflow.transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers():
            yield
    finally:
        logger.setLevel(level)
