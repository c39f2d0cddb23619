"""The forms in which a model folder is logged: prompt, chat and pipeline model."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow.models import ModelSignature

import phi3_batch
from phi3_batch.contract import CHAT_TASK, MESSAGES_INPUT, PROMPT_INPUT, model_metadata
from phi3_batch.engines.registry import CHECKPOINT_ENGINES, ONNX_ENGINES
from phi3_batch.engines.spec import EngineSpec
from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files import Checkpoint, Manifest, ModelFolder
from phi3_batch.models.reference import Reference
from phi3_batch.models.signatures import chat_signature, prompt_signature
from phi3_batch.models.weights import (
    CHECKPOINT_ARTIFACT,
    ENGINE_ARTIFACT,
    MANIFEST_ARTIFACT,
    MODEL_ARTIFACT,
    REFERENCE_ARTIFACT,
)
from phi3_batch.platforms import find_mlflow

# What the models import when they are loaded, beside what their engines do.
_PACKAGES = (
    *("filelock", "jinja2", "llguidance", "numpy", "pandas"),
    *("platformdirs", "tokenizers", "xxhash"),
)

_PROMPT_EXAMPLE = {PROMPT_INPUT: "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"}
_CHAT_EXAMPLE = {
    MESSAGES_INPUT: [{"role": "user", "content": "What is the capital of Spain?"}],
    "temperature": 0.0,
    "max_tokens": 60,
}


@dataclass(frozen=True, slots=True)
class Form:
    """What MLflow needs to know of a model beside its weights.

    Attributes:
        code_file: the models-from-code file beside this one.
        artifact: under which the model folder is stored.
        engines: that may run the model, which then imports their packages.
        signature: of its predict.
        input_example: one call of it.
        task: in the model's metadata, where MLflow has a name for it.
    """

    code_file: str
    artifact: str
    engines: Sequence[EngineSpec[ModelFolder]] | Sequence[EngineSpec[Checkpoint]]
    signature: ModelSignature
    input_example: dict[str, Any]
    task: str | None = None

    @property
    def requirements(self) -> list[str]:
        """What the model imports, pinned to the versions that are installed."""
        pinned = [f"{name}=={version(name)}" for name in (find_mlflow(), *_PACKAGES)]
        for engine in self.engines:
            marker = " or ".join(f"platform_machine == '{name}'" for name in engine.machines)
            if engine.find_missing():  # of several: one of them has to be there
                continue
            for name in engine.packages:
                pinned.append(f"{name}=={version(name)}{marker and '; '}{marker}")
        return pinned

    def check(self, folder: ModelFolder | Checkpoint, called: str = "") -> None:
        """See to it that a folder's tokenizer can make the prompts of this form.

        Args:
            folder: the weights.
            called: what the user knows them by, if not by the folder.

        Raises:
            InvalidModelError: there is no chat template that can be read, the tokenizer is
                another model's, or is no tokenizer at all.
        """
        called = called or str(folder.path)
        tokenizer, limit = folder.tokenizer, folder.vocab_size
        ids = [("its vocabulary goes up to", tokenizer.vocab_size - 1)]
        if self.task == CHAT_TASK:
            try:
                tokens = folder.chat_template.control_tokens()
            except InvalidModelError as error:
                of_prompts = "log it as a model of raw prompts (phi3-batch log prompt)"
                if isinstance(folder, Checkpoint):
                    of_prompts = f"make its int4 build (phi3-batch build), and {of_prompts}"
                raise InvalidModelError(
                    f"{called} cannot answer chats: {error}; put the model's own"
                    f" chat_template.jinja there, or {of_prompts}"
                ) from error
            ids += [(f"{name} is", token_id) for name, token_id in tokens.items()]
        for what, token_id in ids:
            if token_id >= limit:
                raise InvalidModelError(
                    f"{called} has the tokenizer of another model: {what} id {token_id}, and the"
                    f" model knows {limit} tokens; put the tokenizer.json there that the model came"
                    " with"
                )

    @contextlib.contextmanager
    def arguments(
        self,
        folder: ModelFolder | Checkpoint,
        manifest: Manifest,
        engine: str | None = None,
        reference: Reference | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Arguments of ``mlflow.pyfunc.log_model`` or ``save_model``, within the ``with`` block.

        Args:
            folder: the weights.
            manifest: their digests.
            engine: which is to run them; None for a checkpoint, which has one engine.
            reference: where machines fetch them, if the model is not to hold them.
        """
        metadata = model_metadata(phi3_batch.__version__)
        with tempfile.TemporaryDirectory() as scratch:
            # files, not model_config: MLflow drops that on a cluster, on the way to the executors
            texts = {"manifest.json": (MANIFEST_ARTIFACT, manifest.to_json())}
            if engine is not None:
                texts["engine.txt"] = (ENGINE_ARTIFACT, engine)
            artifacts = {}
            if reference is None:
                artifacts[self.artifact] = str(folder.path)
            else:
                texts["reference.txt"] = (REFERENCE_ARTIFACT, reference.uri)
            for file, (artifact, text) in texts.items():
                Path(scratch, file).write_text(text, encoding="utf-8")
                artifacts[artifact] = str(Path(scratch, file))
            yield {
                "python_model": str(Path(__file__).with_name(self.code_file)),
                "artifacts": artifacts,
                "code_paths": [str(Path(phi3_batch.__file__).parent)],
                "signature": self.signature,
                "input_example": self.input_example,
                "pip_requirements": self.requirements,
                "metadata": metadata | {"task": self.task} if self.task else metadata,
            }


def prompt_form(*, params: bool) -> Form:
    """ONNX int4, raw prompts; ``params`` as in :func:`prompt_signature`."""
    signature = prompt_signature(params=params)
    return Form("prompt_code.py", MODEL_ARTIFACT, ONNX_ENGINES, signature, _PROMPT_EXAMPLE)


def chat_form(*, params: bool = True) -> Form:
    """ONNX int4, chats; ``params`` as in :func:`chat_signature`."""
    signature = chat_signature(params=params)
    return Form("chat_code.py", MODEL_ARTIFACT, ONNX_ENGINES, signature, _CHAT_EXAMPLE, CHAT_TASK)


def pipeline_form(*, params: bool = True) -> Form:
    """A transformers checkpoint, chats; ``params`` as in :func:`chat_signature`."""
    return Form(
        "pipeline_code.py",
        CHECKPOINT_ARTIFACT,
        CHECKPOINT_ENGINES,
        chat_signature(params=params),
        _CHAT_EXAMPLE,
        CHAT_TASK,
    )
