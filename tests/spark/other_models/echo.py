"""Somebody's PythonModel: answers every row, and notes in a file how many it was given at once."""

from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Echo(PythonModel):
    def load_context(self, context):
        self.seen = Path(Path(context.artifacts["seen_path"]).read_text())

    def predict(self, context, model_input, params=None):
        with self.seen.open("a") as seen:
            seen.write(f"{len(model_input)}\n")
        return [f"you said: {prompt}" for prompt in model_input["prompt"]]


set_model(Echo())
