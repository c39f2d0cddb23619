"""What every model folder says of itself, a build's and a checkpoint's."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files.dimensions import Dimensions, Limits
from phi3_batch.model_files.manifest import Manifest, require_file
from phi3_batch.text import ChatTemplate, Tokenizer

MODEL_TYPE = "phi3"
TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# where a chat template is, if there is one; as in transformers, the second goes before the first
TEMPLATE_FILES = (_TOKENIZER_CONFIG, _TEMPLATE)


@dataclass(frozen=True)
class CheckedFolder(ABC):
    """A model folder that was checked.

    Attributes:
        path: the folder.
        context_length: tokens of prompt and completion together.
        vocab_size: size of the logits, the tokenizer's vocabulary and padding.
        end_token_ids: tokens that end a completion.
        files: names of the files that make the model, relative to ``path``.
        dimensions: of its layers.
    """

    path: Path
    context_length: int
    vocab_size: int
    end_token_ids: tuple[int, ...]
    files: tuple[str, ...]
    dimensions: Dimensions

    @property
    @abstractmethod
    def precision(self) -> str:
        """How the weights are stored."""

    @property
    def model_type(self) -> str:
        """The architecture's name in the folder's configuration."""
        return MODEL_TYPE

    @property
    def limits(self) -> Limits:
        """What requests have to keep to."""
        return Limits(self.context_length, self.vocab_size)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of tokenizer.json, read when it is first asked for."""
        return Tokenizer(self.path / TOKENIZER)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The folder's own, or Phi-3's where it has none.

        Raises:
            InvalidModelError: it cannot be read; or there is none, and the tokenizer lacks control
                tokens of Phi-3's format.
        """
        config = self._tokenizer_config() if _TOKENIZER_CONFIG in self.files else {}
        source = config.get("chat_template")
        if isinstance(source, list):  # several by names
            source = {each["name"]: each["template"] for each in source}.get("default")
        if _TEMPLATE in self.files:
            source = (self.path / _TEMPLATE).read_text(encoding="utf-8")
        special_tokens = {
            # with or without the flags of an added token
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, dict | str)
        }
        return ChatTemplate.of(self.tokenizer, source, special_tokens)

    def _tokenizer_config(self) -> dict[str, Any]:
        file = self.path / _TOKENIZER_CONFIG
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidModelError(f"{file} is damaged: {error}") from error
        return config

    def read_manifest(self) -> Manifest:
        """Digest every file; takes seconds for gigabytes."""
        return Manifest.of(self.path, self.files)


def template_files(path: Path) -> tuple[str, ...]:
    """Those of the template's files that a folder has.

    Raises:
        InvalidModelError: one is empty or a git-LFS pointer.
    """
    there = tuple(name for name in TEMPLATE_FILES if (path / name).is_file())
    for name in there:
        require_file(path, name)
    return there
