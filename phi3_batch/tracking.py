"""One MLflow run for each scoring job: what was scored with what, and what came of it.

Parameters, counts and places only. Prompts and completions stay in the tables.
"""

import logging
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.spark_dataset_source import SparkDatasetSource
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException
from py4j.protocol import Py4JError

from phi3_batch.report import RunReport, render
from phi3_batch.scoring.batch import Progress, Summary
from phi3_batch.scoring.chunks import ScoredChunk
from phi3_batch.scoring.plan import ScoringPlan
from phi3_batch.scoring.said import first_line
from phi3_batch.scoring.tables import InputTable

_logger = logging.getLogger(__name__)

_ENGINE_TAG = "phi3_batch.engine"


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

    def record_chunk(self, scored: ScoredChunk, progress: Progress) -> None:
        """Log how far the run is, after each chunk; the step is the rows that are done.

        A store that does not answer costs the job its curve, not its life.
        """
        metrics = {
            "progress.rows": progress.rows_done,
            "progress.rows_with_errors": progress.errors.total(),
            "progress.generated_tokens": progress.generated_tokens,
            "progress.tokens_per_second": progress.tokens_per_second,
            "progress.retries": progress.retries,
            "chunk.seconds": scored.seconds,
        }
        try:
            mlflow.log_metrics(metrics, step=progress.rows_done)
        except MlflowException as error:
            _logger.warning("MLflow did not take a chunk's metrics: %s", first_line(error))

    def interrupted(self) -> None:
        """Mark the run as killed; the same command goes on in it."""
        mlflow.end_run("KILLED")

    def record(self, plan: ScoringPlan, summary: Summary, report_file: Path | None) -> None:
        """Log what the run has come to, and its report.

        Args:
            plan: of the job.
            summary: of the job.
            report_file: where the report is written too.
        """
        progress, statistics = summary.progress, summary.statistics
        assert statistics is not None  # an interrupted job records nothing
        metrics: dict[str, float] = {
            "rows": progress.rows_done,
            "rows_with_errors": statistics.errors.total(),
            "requests": progress.requests_done,
            "retries": progress.retries,
            "prompt_tokens": statistics.prompt_tokens,
            "completion_tokens": statistics.completion_tokens,
            "completion_tokens_per_second": progress.tokens_per_second,
            "seconds": progress.seconds,
            **{f"errors.{code}": count for code, count in statistics.errors.items()},
        }
        if summary.balance:
            metrics |= {
                "rows_missing": summary.balance.missing,
                "rows_doubled": summary.balance.doubled,
            }
        mlflow.log_metrics(metrics, model_id=self.model_id, dataset=self.dataset)
        # tags, for a run that was resumed ends at another version than it stopped at
        mlflow.set_tags(
            {
                "phi3_batch.outcome": summary.outcome.value,
                "output_version": summary.output_version,
                "output_path": summary.output_path,
            }
        )
        engines = self._add_engines(summary.engines)
        page = render(_report(plan, summary, self.run_id, engines))
        mlflow.log_text(page, "report.html")
        if report_file:
            report_file.write_text(page, encoding="utf-8")

    def _add_engines(self, engines: Iterable[str]) -> str:
        """Tag the run with the engines that answered in it, those before it was resumed too."""
        client = mlflow.MlflowClient()
        before = client.get_run(self.run_id).data.tags.get(_ENGINE_TAG, "")
        names = ", ".join(sorted({*engines, *filter(None, before.split(", "))}))
        if names:
            mlflow.set_tag(_ENGINE_TAG, names)
        return names


@contextmanager
def scoring_run(plan: ScoringPlan) -> Iterator[ScoringRun]:
    """An MLflow run around a job; it ends as failed when the job does."""
    options = plan.options
    with _ended_without_spark(_start_run(plan)) as run:
        params = {
            "fingerprint": plan.fingerprint,
            "model": options.model,
            "model_version": plan.model.resolved_uri,
            "input": options.input.text,
            "input_version": plan.input.version,
            "output": options.output.text,
            "limit": options.limit,
            "mode": options.mode,
            "ids": ",".join(options.ids) or None,
            "chunks": plan.chunk_count,
            # parameters too, and texts as digests
            **{name: value for name, value in plan.settings.items() if name != "model"},
        }
        there = run.data.params  # `mlflow run` has logged some, quoted for its shell
        mlflow.log_params(
            {k: value for k, value in params.items() if value is not None and k not in there}
        )
        # the links that MLflow shows: the table that was read, and the model that read it
        dataset, model_id = _dataset(plan.input), _model_in_store(plan.model.model_id)
        _log_dataset(dataset)
        if model_id:
            # mlflow.log_inputs(models=...) refuses every store but Databricks', the client none
            model = LoggedModelInput(model_id)
            mlflow.MlflowClient().log_inputs(run.info.run_id, models=[model])
        yield ScoringRun(run.info.run_id, dataset, model_id)


def _log_dataset(dataset: Dataset) -> None:
    try:
        mlflow.log_input(dataset, context="scoring")
    except MlflowException:
        # a store has each dataset once, and another driver has entered it between this one's look
        # and its own entry: now it is found
        mlflow.log_input(dataset, context="scoring")


def _report(plan: ScoringPlan, summary: Summary, run_id: str, engines: str) -> RunReport:
    statistics = summary.statistics
    assert statistics is not None  # an interrupted job has no report
    packages = ("phi3-batch", "pyspark", "delta-spark", "mlflow-skinny")
    return RunReport(
        state=summary.outcome.value,
        model=f"{plan.model.resolved_uri} ({plan.model.kind.value})",
        input=plan.options.input.text,
        output=summary.output_path,
        fingerprint=plan.fingerprint,
        run_id=run_id,
        rows_expected=plan.total,
        rows=statistics.rows,
        requests=sum(chunk.requests for chunk in plan.chunks),
        prompt_tokens=statistics.prompt_tokens,
        completion_tokens=statistics.completion_tokens,
        errors=statistics.errors,
        chunks=statistics.chunks,
        prompt_lengths=statistics.prompt_lengths,
        completion_lengths=statistics.completion_lengths,
        parameters={
            **plan.settings,
            "mode": plan.options.mode,
            "chunks": str(plan.chunk_count),
            "tasks at once": str(plan.slots),
            "retries": str(summary.progress.retries),
        },
        versions={
            "input": f"version {plan.input.version}" if plan.input.version is not None else "-",
            "output": f"version {summary.output_version}",
            "engine": engines or "-",
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    )


def _start_run(plan: ScoringPlan) -> mlflow.ActiveRun:
    """MLflow's run of a job: one that is resumed goes on in its own, where the store has it."""
    begun_as = plan.state.run_id
    if begun_as and "MLFLOW_RUN_ID" not in os.environ:  # which `mlflow run` sets
        try:
            mlflow.MlflowClient().get_run(begun_as)
        except MlflowException:
            pass
        else:
            return mlflow.start_run(run_id=begun_as)
    return mlflow.start_run(run_name=f"score {plan.options.input.text}")


@contextmanager
def _ended_without_spark(run: mlflow.ActiveRun) -> Iterator[mlflow.ActiveRun]:
    """MLflow's ``with`` block of a run, which ends even where the JVM has died.

    To end a run, MLflow asks the Spark session where its registry is.
    """
    client = mlflow.MlflowClient()
    try:
        yield run
    except BaseException:
        try:
            mlflow.end_run("FAILED")
        except (Py4JError, OSError):
            client.set_terminated(run.info.run_id, "FAILED")
        raise
    mlflow.end_run()


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
