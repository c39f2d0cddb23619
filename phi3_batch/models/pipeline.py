"""The pipeline model: a transformers checkpoint, messages in, chat completions out.

What ``mlflow.transformers.log_model(task="llm/v1/chat")`` logs does not survive ``spark_udf``: it
takes the first row's parameters for the whole batch, and fails on the missing columns and arrays
that Spark hands it. This model has the same checkpoint, and the chat model's inputs and outputs.
"""

from collections.abc import Mapping
from typing import Any

from mlflow.pyfunc.model import PythonModelContext

from phi3_batch.errors import InvalidParameterError
from phi3_batch.model_files import Checkpoint
from phi3_batch.model_files.checkpoint import require_torch
from phi3_batch.models.chat import ChatModel
from phi3_batch.models.weights import CHECKPOINT_ARTIFACT, LoggedWeights

# transformers' names of generation parameters, and ours
_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_strings": "stop",
}
# settings that say nothing of which tokens are chosen
_WITHOUT_EFFECT = {"pad_token_id", "return_full_text", "use_cache"}
# what transformers samples with where top_k is not given
_TRANSFORMERS_TOP_K = 50


class PipelineModel(ChatModel):
    """Answers chats as :class:`~phi3_batch.models.chat.ChatModel`, by torch and transformers."""

    def _open_weights(self, context: PythonModelContext) -> LoggedWeights:
        require_torch()  # here, so that a job hears of it before its first row
        return LoggedWeights.open(context, CHECKPOINT_ARTIFACT, Checkpoint.open)


def params_from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The generation parameters of a transformers pipeline in our names.

    ``do_sample`` decides, as in transformers: False is greedy whatever the temperature. Where it
    is not given, the temperature decides.

    Raises:
        InvalidParameterError: one that the pipeline model cannot follow, such as num_beams.
    """
    given = {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT}
    do_sample = given.pop("do_sample", None)
    unknown = [name for name in given if name not in _NAMES]
    if unknown:
        raise InvalidParameterError(
            f"the pipeline model cannot follow {unknown[0]!r} in model_config, only do_sample,"
            f" {', '.join(_NAMES)}"
        )
    params = {_NAMES[name]: value for name, value in given.items() if value is not None}
    if do_sample:
        params = {"temperature": 1.0, "top_k": _TRANSFORMERS_TOP_K} | params
    elif do_sample is not None:
        params["temperature"] = 0.0
    return params
