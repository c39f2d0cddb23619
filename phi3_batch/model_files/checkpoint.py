"""The model on disk: a Phi-3 checkpoint, as transformers writes it.

It is what the model builder makes ONNX builds of, and what a transformers pipeline runs.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3_batch.errors import EnvironmentProblemError, InvalidModelError
from phi3_batch.model_files.dimensions import Dimensions
from phi3_batch.model_files.folder import MODEL_TYPE, TOKENIZER, CheckedFolder, template_files
from phi3_batch.model_files.manifest import require_file

_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"

_DAMAGE = (AttributeError, KeyError, TypeError, ValueError)  # when JSON is not as expected


@dataclass(frozen=True)
class Checkpoint(CheckedFolder):
    """A checked checkpoint folder.

    Attributes:
        dtype: of the stored weights, ``bfloat16`` and the like.

    The ``context_length`` of a LongRoPE model (128k) counts with its short factors alone: beyond
    them its keys would have to be computed anew.
    """

    dtype: str

    @property
    def precision(self) -> str:
        """How the weights are stored."""
        return self.dtype

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Check a folder and read what it says of itself.

        Raises:
            InvalidModelError: files are missing or are git-LFS pointers, the model is of another
                type, or has an adapter.
        """
        path = Path(path)
        if not path.is_dir():
            raise InvalidModelError(f"no folder {path}: give the folder of a Phi-3 checkpoint")
        if not (path / _CONFIG).is_file():
            raise InvalidModelError(f"{path} has no {_CONFIG}: it is not a Phi-3 checkpoint")
        config = _read_json(path, _CONFIG)
        if config.get("model_type") != MODEL_TYPE:
            raise InvalidModelError(
                f"{path} holds a model of type {config.get('model_type')!r}, not {MODEL_TYPE!r}"
            )
        if (path / _ADAPTER).is_file():
            # transformers would add it where peft is installed, and nowhere else
            raise InvalidModelError(
                f"{path} has an adapter beside its weights: merge it into them"
                f" (merge_and_unload of peft), or remove {_ADAPTER}"
            )
        require_file(path, TOKENIZER)
        optional = [_GENERATION_CONFIG] if (path / _GENERATION_CONFIG).is_file() else []
        generation = _read_json(path, _GENERATION_CONFIG) if optional else {}
        try:
            return cls(
                path=path,
                context_length=_context_length(config),
                vocab_size=int(config["vocab_size"]),
                end_token_ids=_end_token_ids(generation, config),
                # transformers 4 called it torch_dtype
                dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
                files=(
                    *(_CONFIG, *optional, TOKENIZER),
                    *(*_weight_files(path), *template_files(path)),
                ),
                dimensions=_dimensions(config),
            )
        except _DAMAGE as error:
            raise _damaged(path / _CONFIG, error) from error


def require_torch() -> None:
    """Raise an EnvironmentProblemError where what runs checkpoints is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        raise EnvironmentProblemError(
            "pipeline models need torch and transformers: pip install 'phi3-batch[pipeline]'"
        )


def _read_json(path: Path, name: str) -> dict[str, Any]:
    require_file(path, name)
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidModelError(f"{path / name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InvalidModelError(f"{path / name} is damaged: it is no JSON object")
    return content


def _damaged(file: Path, error: Exception) -> InvalidModelError:
    return InvalidModelError(f"{file} is damaged: {type(error).__name__} {error}")


def _end_token_ids(generation: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    # config.json names one, generation_config.json all that end an answer
    ids = generation.get("eos_token_id") or config["eos_token_id"]
    return (ids,) if isinstance(ids, int) else tuple(int(token_id) for token_id in ids)


def _context_length(config: dict[str, Any]) -> int:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return int(config["max_position_embeddings"])
    return int(config["original_max_position_embeddings"])


def _dimensions(config: dict[str, Any]) -> Dimensions:
    heads, hidden_size = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Dimensions(
        layers=int(config["num_hidden_layers"]),
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or hidden_size // heads),
        hidden_size=hidden_size,
    )


def _weight_files(path: Path) -> tuple[str, ...]:
    # where there are both, it is the one file that transformers loads
    if (path / _WEIGHTS).is_file() or not (path / _WEIGHTS_INDEX).is_file():
        require_file(path, _WEIGHTS)
        return (_WEIGHTS,)
    index = _read_json(path, _WEIGHTS_INDEX)
    try:
        shards = sorted({str(name) for name in index["weight_map"].values()})
    except _DAMAGE as error:
        raise _damaged(path / _WEIGHTS_INDEX, error) from error
    for name in shards:
        require_file(path, name)
    return (_WEIGHTS_INDEX, *shards)
