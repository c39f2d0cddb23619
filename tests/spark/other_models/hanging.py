"""A PythonModel that never answers one prompt, in a Spark task."""

import time

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pyspark import TaskContext


class Hanging(PythonModel):
    def predict(self, context, model_input, params=None):
        for prompt in model_input["prompt"]:
            if "endless" in prompt and TaskContext.get() is not None:
                time.sleep(10_000)
        return list(model_input["prompt"])


set_model(Hanging())
