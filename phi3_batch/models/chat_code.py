"""The file that MLflow runs to get the chat model: models from code, no pickle."""

from mlflow.models import set_model

from phi3_batch.models.chat import ChatModel

set_model(ChatModel())
