"""A PythonModel whose process is killed by a larger batch, as by the kernel when memory is out."""

import os
import signal

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Dying(PythonModel):
    def predict(self, context, model_input, params=None):
        if len(model_input) > 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(model_input["prompt"])


set_model(Dying())
