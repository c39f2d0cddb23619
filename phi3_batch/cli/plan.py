"""The command ``phi3-batch plan``."""

from typing import Annotated

import typer

from phi3_batch.cli import options as given
from phi3_batch.cli.console import status
from phi3_batch.cli.forecast import print_forecast, print_plan


def plan(
    model: given.Model,
    input: given.Input,
    output: given.Output,
    column: given.Column = None,
    user_template: given.UserTemplateText = None,
    system: given.System = None,
    keep: given.Keep = None,
    keep_response: given.KeepResponse = False,
    limit: given.Limit = None,
    mode: given.OutputMode = given.Mode.error,
    id: given.Ids = None,
    retry_errors: given.RetryErrors = False,
    delete_removed: given.DeleteRemoved = False,
    max_tokens: given.MaxTokens = None,
    temperature: given.Temperature = None,
    top_p: given.TopP = None,
    top_k: given.TopK = None,
    stop: given.Stop = None,
    seed: given.Seed = None,
    n: given.Choices = None,
    param: given.Params = None,
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
    asked = given.score_options(
        model=model,
        input=input,
        output=output,
        column=column,
        user_template=user_template,
        system=system,
        keep=keep,
        keep_response=keep_response,
        limit=limit,
        mode=mode,
        ids=id,
        retry_errors=retry_errors,
        delete_removed=delete_removed,
        param=param,
        stop=stop,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        n=n,
    )
    from phi3_batch.models.wrap import wrap_pipeline
    from phi3_batch.scoring import forecast, session
    from phi3_batch.scoring.plan import plan_scoring

    with status("starting Spark (the first start fetches Delta's jars)"):
        spark = session.get_session()
    with status("checking the tables and the model"):
        planned = plan_scoring(spark, asked, wrap_pipeline=wrap_pipeline)
    print_plan(planned)
    with status("counting tokens, trying a few requests"):
        expected = forecast.make_forecast(spark, planned, executors)
    print_forecast(expected, planned.refused)
