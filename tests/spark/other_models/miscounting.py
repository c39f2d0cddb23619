"""A PythonModel that answers once too often."""

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Miscounting(PythonModel):
    def predict(self, context, model_input, params=None):
        return ["more"] * (len(model_input) + 1)


set_model(Miscounting())
