"""A PythonModel that fails on one prompt, and quotes it when it does."""

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Choking(PythonModel):
    def predict(self, context, model_input, params=None):
        for prompt in model_input["prompt"]:
            if "poison" in prompt:
                raise ValueError(f"cannot answer {prompt}")
        return list(model_input["prompt"])


set_model(Choking())
