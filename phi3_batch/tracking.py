"""One MLflow run for each scoring job: what was scored with what, and what came of it.

Parameters, counts and places only. Prompts and completions stay in the tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow

from phi3_batch.scoring.batch import ScoringPlan, Summary


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """The MLflow run of a job."""

    run_id: str

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
            }
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
            "column": options.column,
            "limit": options.limit,
            "mode": options.mode,
            **{f"params.{name}": value for name, value in plan.model.params.items()},
        }
        mlflow.log_params({name: value for name, value in params.items() if value is not None})
        yield ScoringRun(run.info.run_id)
