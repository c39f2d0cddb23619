"""The signatures of the logged models: what MLflow checks, shows and hands to Spark."""

from dataclasses import asdict

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Object, Property

from phi3_batch.contract import (
    COUNTS,
    LOGIT_BIAS,
    MESSAGES_INPUT,
    MODEL_PARAMS,
    PROMPT_INPUT,
    RESPONSE_FORMAT,
    USAGE_PARAM,
)
from phi3_batch.generation import GenerationParams

_TYPES = {
    bool: DataType.boolean,
    float: DataType.double,
    int: DataType.long,
    str: DataType.string,
    tuple: DataType.string,
}


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
    defaults = asdict(GenerationParams())
    return ParamSchema(
        [
            *(_param(name, default) for name, default in defaults.items()),
            ParamSpec(USAGE_PARAM, DataType.boolean, False),
        ]
    )


def _chat_params() -> ParamSchema:
    # as OpenAI's clients say it; an object has no null
    anything = AnyType()  # type: ignore[no-untyped-call]
    kind = [
        Property("type", DataType.string),
        Property("json_schema", anything, required=False),
    ]
    response_format = ParamSpec(RESPONSE_FORMAT, Object(kind), {"type": "text"})
    return ParamSchema([*(_param(name, None) for name in MODEL_PARAMS), response_format])


def _param(name: str, default: object) -> ParamSpec:
    if name == LOGIT_BIAS:
        return ParamSpec(name, DataType.string, None if default is None else "")
    kind = _TYPES[type(getattr(GenerationParams(), name))]
    if isinstance(getattr(GenerationParams(), name), tuple):
        return ParamSpec(name, kind, list(default or ()), shape=(-1,))  # type: ignore[call-overload]
    return ParamSpec(name, kind, default)


def chat_signature(*, params: bool = True) -> ModelSignature:
    """The signature of the chat and the pipeline model, that of MLflow's task ``llm/v1/chat``.

    In the form that MLflow 2.10 gave it; today's MLflow adds tools and more to its own, which
    Phi-3 knows nothing of.

    Args:
        params: with MODEL_PARAMS, null where the model's own hold, and with MORE_CHAT_PARAMS among
            the inputs; without them, the bare form.
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
    more = [
        ColSpec(Array(DataType.string), "choices", required=False),
        ColSpec(DataType.double, "repetition_penalty", required=False),
        ColSpec(DataType.long, "min_tokens", required=False),
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
                *(more if params else []),
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
        params=_chat_params() if params else None,  # type: ignore[arg-type]  # null is allowed
    )
