"""The command ``phi3-batch plan``."""

from typing import Annotated

import typer

from phi3_batch.cli.console import status
from phi3_batch.cli.forecast import print_forecast, print_plan
from phi3_batch.cli.options import takes_job_options
from phi3_batch.options import JobOptions


@takes_job_options
def plan(
    options: JobOptions,
    executors: Annotated[
        int | None,
        typer.Option(
            help="Executors that the job is to have; the session's own by default.", min=1
        ),
    ] = None,
) -> None:
    """Say what a job would read, write and take, by its tokens and a few requests tried.

    Takes the options of score, and writes nothing.
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
