"""The commands ``phi3-batch log …``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3_batch.cli.console import out, status
from phi3_batch.cli.values import CheckedCommand
from phi3_batch.engines.registry import AUTO, CHOICES, check_choice
from phi3_batch.errors import InvalidParameterError

if TYPE_CHECKING:  # the commands import what they need: --help must not wait for mlflow
    from mlflow.models.model import ModelInfo

log_app = typer.Typer(help="Log a model to MLflow.", no_args_is_help=True, rich_markup_mode=None)

_Build = Annotated[
    Path, typer.Argument(help="Folder of an int4 ONNX build of Phi-3.", show_default=False)
]
_Register = Annotated[
    str | None, typer.Option(help="Register a version under this name.", metavar="NAME")
]
_Alias = Annotated[
    str | None, typer.Option(help="Give that version this alias, as in models:/NAME@ALIAS.")
]
_Name = Annotated[str, typer.Option(help="Name of the logged model.")]


def _known_engine(name: str) -> str:
    try:
        return check_choice(name)
    except InvalidParameterError as error:
        raise typer.BadParameter(str(error)) from error


_Engine = Annotated[
    str,
    typer.Option(
        parser=_known_engine,
        metavar=f"<{'|'.join(CHOICES)}>",
        help="What runs the model; auto takes the fastest that can, where it is run. The"
        " environment variable PHI3_BATCH_ENGINE of an executor overrides it.",
    ),
]

_Reference = Annotated[
    str | None,
    typer.Option(
        help="Log where the weights are, not the weights: a folder with the same files, which every"
        " machine fetches once. A path on shared storage, or a URI that MLflow reads.",
        metavar="URI",
    ),
]


@log_app.command("prompt", cls=CheckedCommand)
def log_prompt(
    model_dir: _Build,
    register: _Register = None,
    alias: _Alias = None,
    name: _Name = "phi3-prompt",
    engine: _Engine = AUTO,
    by_reference: _Reference = None,
) -> None:
    """Log a model of raw prompts: column `prompt` in, text out."""
    from phi3_batch.models.log import log_prompt_model

    info = log_prompt_model(
        model_dir,
        name=name,
        registered_model_name=register,
        alias=alias,
        engine=engine,
        by_reference=by_reference,
    )
    _print_logged(info, register, alias)


@log_app.command("chat", cls=CheckedCommand)
def log_chat(
    model_dir: _Build,
    register: _Register = None,
    alias: _Alias = None,
    name: _Name = "phi3-chat",
    engine: _Engine = AUTO,
    by_reference: _Reference = None,
) -> None:
    """Log a chat model: `messages` in, chat completions out."""
    from phi3_batch.models.log import log_chat_model

    info = log_chat_model(
        model_dir,
        name=name,
        registered_model_name=register,
        alias=alias,
        engine=engine,
        by_reference=by_reference,
    )
    _print_logged(info, register, alias)


@log_app.command("pipeline", cls=CheckedCommand)
def log_pipeline(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a Phi-3 checkpoint.", show_default=False)
    ],
    register: _Register = None,
    alias: _Alias = None,
    name: _Name = "phi3-pipeline",
    by_reference: _Reference = None,
) -> None:
    """Log a transformers pipeline as a chat model, run by torch.

    Logs two models: NAME for Spark, serving and predict, and NAME-transformers for
    mlflow.transformers.load_model; the first alone with --by-reference.
    """
    from phi3_batch.models.log import log_pipeline_model

    with status("loading torch and the checkpoint"):
        info = log_pipeline_model(
            checkpoint,
            name=name,
            registered_model_name=register,
            alias=alias,
            by_reference=by_reference,
        )
    _print_logged(info, register, alias)


def _print_logged(info: "ModelInfo", register: str | None, alias: str | None) -> None:
    out.print(f"logged      {info.model_uri}")
    if register:
        out.print(f"registered  models:/{register}/{info.registered_model_version}")
    if alias:
        out.print(f"alias       models:/{register}@{alias}")
