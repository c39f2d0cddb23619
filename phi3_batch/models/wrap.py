"""Scoring a pipeline that somebody logged with MLflow alone.

``mlflow.transformers.log_model(task="llm/v1/chat")`` keeps the checkpoint in a folder and the
tokenizer in another; put together they are what the pipeline model takes.
"""

import os
import shutil
import tempfile
from pathlib import Path

import mlflow
from mlflow.models import Model

from phi3_batch.errors import EnvironmentProblemError, InvalidModelError
from phi3_batch.model_files import Checkpoint
from phi3_batch.models.chat import chat_config
from phi3_batch.models.forms import pipeline_form
from phi3_batch.models.pipeline import params_from_transformers
from phi3_batch.scratch import temporary_files_here


def wrap_pipeline(uri: str) -> str:
    """Save the pipeline model around the checkpoint of a plain one.

    Args:
        uri: of a model that ``mlflow.transformers.log_model(task="llm/v1/chat")`` logged.

    Returns:
        Path of the saved model, in the temporary folder: a copy of the weights, removed when this
        process ends.

    Raises:
        InvalidModelError: it holds no Phi-3 checkpoint, or one that cannot answer chats.
        InvalidParameterError: its model_config has what the pipeline model cannot follow.
        EnvironmentProblemError: there is no room for the copy.
    """
    try:
        with temporary_files_here() as place:
            return _wrap(uri, place)
    except OSError as error:  # a full disk, a folder that cannot be written
        raise EnvironmentProblemError(
            f"{uri} cannot be copied to {tempfile.gettempdir()}"
            f" ({error.strerror or type(error).__name__}): TMPDIR names another place"
        ) from error


def _wrap(uri: str, place: Path) -> str:
    info = Model.load(uri)
    flavor = info.flavors["transformers"]
    params = params_from_transformers(info.flavors["python_function"].get("config") or {})
    config = chat_config(Path(str(flavor.get("source_model_name", ""))).name, params)
    logged = Path(mlflow.artifacts.download_artifacts(uri))
    weights = logged / str(flavor.get("model_binary", "model"))
    if not weights.is_dir():
        raise InvalidModelError(
            f"{uri} has no weights of its own: log it again with save_pretrained=True"
        )
    folder = Path(tempfile.mkdtemp(prefix="pipeline-", dir=place))
    for part in (weights, logged / "components" / "tokenizer"):
        if part.is_dir():
            shutil.copytree(part, folder / "checkpoint", copy_function=_link, dirs_exist_ok=True)
    form, checkpoint = pipeline_form(), Checkpoint.open(folder / "checkpoint")
    form.check(checkpoint, uri)
    with form.arguments(checkpoint, checkpoint.read_manifest()) as arguments:
        mlflow.pyfunc.save_model(folder / "model", model_config=config, **arguments)
    shutil.rmtree(checkpoint.path)
    return str(folder / "model")


def _link(source: str, target: str) -> None:
    """A second name for a file, which costs nothing; a copy where the disk is another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
