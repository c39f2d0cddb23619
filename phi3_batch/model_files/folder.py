"""What every model folder says of itself, a build's and a checkpoint's."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phi3_batch.model_files.dimensions import Dimensions, Limits
from phi3_batch.model_files.manifest import Manifest
from phi3_batch.text import Tokenizer

MODEL_TYPE = "phi3"
TOKENIZER = "tokenizer.json"


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

    def read_manifest(self) -> Manifest:
        """Digest every file; takes seconds for gigabytes."""
        return Manifest.of(self.path, self.files)
