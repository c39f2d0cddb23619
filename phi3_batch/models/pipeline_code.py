"""The file that MLflow runs to get the pipeline model: models from code, no pickle."""

from mlflow.models import set_model

from phi3_batch.models.pipeline import PipelineModel

set_model(PipelineModel())
