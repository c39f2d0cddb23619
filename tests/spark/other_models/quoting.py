"""A PythonModel that answers what it was asked; some prompts it fails on, of some it dies."""

import os
import signal

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pyspark import TaskContext


class Refusal(Exception):  # noqa: N818
    """Neither an Error nor an Exception by its name."""


class Quoting(PythonModel):
    def predict(self, context, model_input, params=None):
        for prompt in model_input["prompt"]:
            if "deadly" in prompt and TaskContext.get():  # not in the driver's pilot
                os.kill(os.getpid(), signal.SIGKILL)
            if "poison" in prompt:
                try:
                    raise KeyError(prompt)
                except KeyError as error:
                    raise Refusal(f"cannot answer\n{prompt}") from error
        return list(model_input["prompt"])


set_model(Quoting())
