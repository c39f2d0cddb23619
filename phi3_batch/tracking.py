"""One MLflow run for each scoring job: what was scored with what, and what came of it.

Parameters, counts and places only. Prompts and completions stay in the tables.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.spark_dataset_source import SparkDatasetSource
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException

from phi3_batch.scoring.batch import Summary
from phi3_batch.scoring.plan import ScoringPlan
from phi3_batch.scoring.source import Source
from phi3_batch.scoring.tables import InputTable


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """The MLflow run of a job.

    Attributes:
        run_id: of the run.
        dataset: the input, as MLflow knows it.
        model_id: of the logged model; None where it is not in the tracking store.
    """

    run_id: str
    dataset: Dataset
    model_id: str | None

    @property
    def place(self) -> str:
        """Where to look it up."""
        return f"run {self.run_id} in {mlflow.get_tracking_uri()}"

    def record(self, summary: Summary) -> None:
        """Log what a finished job did."""
        mlflow.log_metrics(
            {
                "rows": summary.rows,
                "rows_with_errors": sum(summary.errors.values()),
                "prompt_tokens": summary.prompt_tokens,
                "completion_tokens": summary.completion_tokens,
                "completion_tokens_per_second": summary.tokens_per_second,
                "seconds": summary.seconds,
                **{f"errors.{code}": count for code, count in summary.errors.items()},
            },
            model_id=self.model_id,
            dataset=self.dataset,
        )
        mlflow.log_params(
            {"output_version": summary.output_version, "output_path": summary.output_path}
        )


@contextmanager
def scoring_run(plan: ScoringPlan) -> Iterator[ScoringRun]:
    """An MLflow run around a job; it ends as failed when the job does."""
    options = plan.options
    with mlflow.start_run(run_name=f"score {options.input.text}") as run:
        params = {
            "model": options.model,
            "model_version": plan.model.resolved_uri,
            "input": options.input.text,
            "input_version": plan.input.version,
            "output": options.output.text,
            "limit": options.limit,
            "mode": options.mode,
            **_describe(options.source),
            **{f"params.{name}": value for name, value in plan.model.params.items()},
        }
        there = run.data.params  # `mlflow run` has logged some, quoted for its shell
        mlflow.log_params(
            {k: value for k, value in params.items() if value is not None and k not in there}
        )
        # the links that MLflow shows: the table that was read, and the model that read it
        dataset, model_id = _dataset(plan.input), _model_in_store(plan.model.model_id)
        mlflow.log_input(dataset, context="scoring")
        if model_id:
            # mlflow.log_inputs(models=...) refuses every store but Databricks', the client none
            model = LoggedModelInput(model_id)
            mlflow.MlflowClient().log_inputs(run.info.run_id, models=[model])
        yield ScoringRun(run.info.run_id, dataset, model_id)


def _describe(source: Source) -> dict[str, object]:
    """Where requests come from; texts as digests, for a template is somebody's prompt too."""
    template = source.user_template
    return {
        "column": source.column,
        "system_sha256": _sha256(source.system),
        "user_template_sha256": _sha256(template.text) if template else None,
        "user_template_columns": ",".join(template.columns) if template else None,
        **{f"params.{name}": f"col:{column}" for name, column in source.param_columns.items()},
    }


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _model_in_store(model_id: str | None) -> str | None:
    """The logged model's id, unless it is a folder, or its store is another than the runs'."""
    if model_id is None:
        return None
    try:
        mlflow.MlflowClient().get_logged_model(model_id)
    except MlflowException:
        return None
    return model_id


def _dataset(table: InputTable) -> Dataset:
    # metadata alone: MLflow's dataset of a DataFrame would count rows, and keep a profile
    return MetaDataset(  # type: ignore[abstract]  # MLflow's own, without a profile
        _dataset_source(table), name=table.location.text
    )


def _dataset_source(table: InputTable) -> DatasetSource:
    if table.path is None:
        return SparkDatasetSource(table_name=table.location.text)
    if table.version is None:
        return SparkDatasetSource(path=table.path)
    return DeltaDatasetSource(path=table.path, delta_table_version=table.version)
