"""phi3_batch: batch inference with Phi-3 on Spark, on CPUs, through MLflow.

The public names are imported when they are first used, so that ``import phi3_batch`` costs
nothing: it loads neither mlflow nor pyspark nor a runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phi3_batch.app import plan as plan
    from phi3_batch.app import score as score
    from phi3_batch.app import verify as verify
    from phi3_batch.errors import Phi3BatchError as Phi3BatchError
    from phi3_batch.inference import complete as complete
    from phi3_batch.inference import spark_udf as spark_udf
    from phi3_batch.models.log import log_chat_model as log_chat_model
    from phi3_batch.models.log import log_pipeline_model as log_pipeline_model
    from phi3_batch.models.log import log_prompt_model as log_prompt_model
    from phi3_batch.promotion import promote as promote

__version__ = "0.1.0"

_HOMES = {
    "Phi3BatchError": "phi3_batch.errors",
    "complete": "phi3_batch.inference",
    "log_chat_model": "phi3_batch.models.log",
    "log_pipeline_model": "phi3_batch.models.log",
    "log_prompt_model": "phi3_batch.models.log",
    "plan": "phi3_batch.app",
    "promote": "phi3_batch.promotion",
    "score": "phi3_batch.app",
    "spark_udf": "phi3_batch.inference",
    "verify": "phi3_batch.app",
}

__all__ = [
    "Phi3BatchError",
    "__version__",
    "complete",
    "log_chat_model",
    "log_pipeline_model",
    "log_prompt_model",
    "plan",
    "promote",
    "score",
    "spark_udf",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
