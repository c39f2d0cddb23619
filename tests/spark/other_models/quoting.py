"""A PythonModel that answers with what it was asked, and fails on some of it, quoting it."""

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Refusal(Exception):  # noqa: N818
    """Neither an Error nor an Exception by its name."""


class Quoting(PythonModel):
    def predict(self, context, model_input, params=None):
        for prompt in model_input["prompt"]:
            if "poison" in prompt:
                try:
                    raise KeyError(prompt)
                except KeyError as error:
                    raise Refusal(f"cannot answer\n{prompt}") from error
        return list(model_input["prompt"])


set_model(Quoting())
