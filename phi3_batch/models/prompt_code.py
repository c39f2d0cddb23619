"""The file that MLflow runs to get the prompt model: models from code, no pickle."""

from mlflow.models import set_model

from phi3_batch.models.prompt import PromptModel

set_model(PromptModel())
