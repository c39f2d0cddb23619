"""The signatures of the logged models: what MLflow checks, shows and hands to Spark."""

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

from phi3_batch.contract import COUNTS, MESSAGES_INPUT, PROMPT_INPUT, USAGE_PARAM
from phi3_batch.generation import GenerationParams


def prompt_signature(*, params: bool = True) -> ModelSignature:
    """The prompt model's signature: ``prompt: string`` in, one string out for each row.

    Args:
        params: with the generation parameters and ``usage``, every one with its default, so that
            a call without any gives plain strings; without them, the bare form.
    """
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, PROMPT_INPUT)]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=_prompt_params() if params else None,  # type: ignore[arg-type]  # null is allowed
    )


def _prompt_params() -> ParamSchema:
    defaults = GenerationParams()
    return ParamSchema(
        [
            ParamSpec("max_tokens", DataType.long, defaults.max_tokens),
            ParamSpec("temperature", DataType.double, defaults.temperature),
            ParamSpec("top_p", DataType.double, defaults.top_p),
            ParamSpec("top_k", DataType.long, defaults.top_k),
            ParamSpec("stop", DataType.string, list(defaults.stop), shape=(-1,)),
            ParamSpec("seed", DataType.long, defaults.seed),
            ParamSpec(USAGE_PARAM, DataType.boolean, False),
        ]
    )


def chat_signature() -> ModelSignature:
    """The signature of the chat and the pipeline model, that of MLflow's task ``llm/v1/chat``.

    In the form that MLflow 2.10 gave it; today's MLflow adds tools and more to its own, which
    Phi-3 knows nothing of.
    """
    message = [
        Property("role", DataType.string),
        Property("content", DataType.string),
        Property("name", DataType.string, required=False),
    ]
    choice = [
        Property("index", DataType.long),
        Property("finish_reason", DataType.string),
        Property("message", Object(message)),
    ]
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(Array(Object(message)), MESSAGES_INPUT),
                ColSpec(DataType.double, "temperature", required=False),
                ColSpec(DataType.long, "max_tokens", required=False),
                ColSpec(Array(DataType.string), "stop", required=False),
                ColSpec(DataType.long, "n", required=False),
                ColSpec(DataType.boolean, "stream", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "id"),
                ColSpec(DataType.string, "object"),
                ColSpec(DataType.long, "created"),
                ColSpec(DataType.string, "model"),
                ColSpec(Array(Object(choice)), "choices"),
                ColSpec(Object([Property(name, DataType.long) for name in COUNTS]), "usage"),
            ]
        ),
    )
