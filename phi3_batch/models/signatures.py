"""The signatures of the logged models: what MLflow checks, shows and hands to Spark."""

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from phi3_batch.generation import GenerationParams

PROMPT_COLUMN = "prompt"
USAGE_PARAM = "usage"


def prompt_signature(*, params: bool = True) -> ModelSignature:
    """The prompt model's signature: ``prompt: string`` in, one string out for each row.

    Args:
        params: with the generation parameters and ``usage``, every one with its default, so that
            a call without any gives plain strings; without them, the bare form.
    """
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, PROMPT_COLUMN)]),
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
