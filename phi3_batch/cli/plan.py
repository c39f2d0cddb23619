"""The command ``phi3-batch plan``."""

from typing import Annotated

import typer

from phi3_batch.cli.console import status
from phi3_batch.cli.forecast import print_forecast, print_plan
from phi3_batch.cli.options import takes
from phi3_batch.options import JobOptions


@takes(JobOptions)
def plan(
    options: JobOptions,
    executors: Annotated[
        int | None,
        typer.Option(help="Number of executors to plan for. By default the session's.", min=1),
    ] = None,
) -> None:
    """Estimate a job's tokens, time and memory, by trying a few requests.

    Takes the same options as score, and writes nothing.
    """
    from phi3_batch.models.wrap import wrap_pipeline
    from phi3_batch.scoring import session
    from phi3_batch.scoring.job import forecast
    from phi3_batch.scoring.job.asked import ScoreOptions
    from phi3_batch.scoring.job.plan import plan_scoring

    asked = ScoreOptions.of(options)
    with status("starting Spark (the first start fetches Delta's jars)"):
        spark = session.get_session()
    with status("checking the tables and the model"):
        planned = plan_scoring(spark, asked, wrap_pipeline=wrap_pipeline)
    print_plan(planned)
    with status("counting tokens, trying a few requests"):
        expected = forecast.make_forecast(spark, planned, executors)
    print_forecast(expected, planned.refused)
