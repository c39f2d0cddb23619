"""A PythonModel as tutorials write it: it answers the first row, whatever it is given."""

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class FirstOnly(PythonModel):
    def predict(self, context, model_input, params=None):
        return f"you said: {model_input['prompt'][0]}"


set_model(FirstOnly())
