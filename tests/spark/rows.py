"""Rows through a model, DataFrame in and rows out: what a job does, without its tables."""

from functools import cache
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession

from phi3_batch.models.wrap import wrap_pipeline
from phi3_batch.options import JobOptions
from phi3_batch.scoring.job.asked import ScoreOptions
from phi3_batch.scoring.rows.model import ScoringModel, check_params, find_model, load_model
from phi3_batch.scoring.rows.score import COPY, RowScorer
from phi3_batch.scoring.rows.time_limit import TimeLimit
from phi3_batch.scoring.rows.udf import ModelUdf, model_udf
from phi3_batch.scoring.rows.work import with_request_ids, with_requests
from phi3_batch.scoring.rows.worker import ENGINE

Generation = tuple[tuple[str, Any], ...]


def complete(table: DataFrame, model: str, **options: Any) -> list[Row]:
    """The rows with what scoring adds to them.

    Args:
        table: the rows.
        model: its URI.
        options: of :class:`~phi3_batch.options.JobOptions`.
    """
    asked = ScoreOptions.of(JobOptions(model=model, input="in", output="out", **options))
    found = find_model(model)
    asked.source.check(found, table.schema, "in")
    check_params(found, asked.generation)
    rows = with_request_ids(table, table.columns, asked.source.request_columns(found), "settings")
    generation = tuple(asked.generation.items())
    row_params = frozenset(asked.source.param_columns)
    loaded = _load(model, generation, row_params)
    kept = table.columns if asked.keep is None else asked.keep
    work = with_requests(rows, table.schema, asked.source, loaded, kept)
    udf = _udf(model, generation, row_params, work.is_greedy)
    scorer = RowScorer(work, udf, TimeLimit(loaded), asked.keep_response, asked.answers)
    scored = scorer.score(scorer.number_copies(work.rows), tasks=2, blamed={})
    return scored.drop(COPY, ENGINE).collect()


@cache
def _load(model: str, generation: Generation, row_params: frozenset[str]) -> ScoringModel:
    """A model with the parameters of a job, which MLflow takes a while to load."""
    return load_model(
        find_model(model),
        dict(generation),
        row_params=row_params,
        wrap_pipeline=wrap_pipeline,
        pilot_prompts=list,
    )


@cache
def _udf(model: str, generation: Generation, row_params: frozenset[str], greedy: bool) -> ModelUdf:
    spark = SparkSession.getActiveSession()
    assert spark is not None
    return model_udf(spark, _load(model, generation, row_params), greedy=greedy)
