"""The model on disk: an int4 ONNX build of Phi-3, as onnxruntime-genai's model builder writes it.

A folder is checked once, in the place where the user names it, so that a wrong one is a clear
line there and not a failure in a runtime on an executor.
"""

import json
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from phi3_batch.errors import InvalidModelError
from phi3_batch.model_files.dimensions import Dimensions
from phi3_batch.model_files.folder import MODEL_TYPE, TOKENIZER, CheckedFolder, template_files
from phi3_batch.model_files.manifest import require_file

_CONFIG = "genai_config.json"
_GRAPH = 2  # its place among the files

# of a weight: some builds keep the layers that rounding harms most in 8 bits
_KNOWN_BITS = ((4,), (4, 8))


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights are stored, read from the graph's MatMulNBits nodes.

    Attributes:
        bits: of a weight: 4 everywhere, or 4 in some layers and 8 in others.
        block_size: weights that share a scale, in the first of them.
        accuracy_level: what activations are rounded to, in the first of them.
    """

    bits: tuple[int, ...]
    block_size: int
    accuracy_level: int

    def __str__(self) -> str:
        weights = "+".join(f"int{bits}" for bits in self.bits)
        return f"{weights}-block-{self.block_size}-acc-level-{self.accuracy_level}"


@dataclass(frozen=True)
class ModelFolder(CheckedFolder):
    """A checked model folder.

    Attributes:
        quantization: how the weights are stored.
        sliding_window: that section of genai_config.json, empty where there is none.
    """

    quantization: Quantization
    sliding_window: Mapping[str, object]

    @property
    def precision(self) -> str:
        """How the weights are stored."""
        return str(self.quantization)

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.path / self.files[_GRAPH]

    @classmethod
    def open(cls, path: str | Path) -> "ModelFolder":
        """Check a folder and read what it says of itself.

        Raises:
            InvalidModelError: files are missing or are git-LFS pointers, the model is of another
                type, or no layer's weights are int4.
        """
        path = Path(path)
        if not path.is_dir():
            raise InvalidModelError(f"no folder {path}: give the folder of an int4 ONNX build")
        config = _read_config(path)
        model = config["model"]
        if model["type"] != MODEL_TYPE:
            raise InvalidModelError(
                f"{path} holds a model of type {model['type']!r}, not {MODEL_TYPE!r}"
            )
        graph = str(model["decoder"]["filename"])
        for name in (graph, TOKENIZER):
            require_file(path, name)
        quantization, data_files = _read_graph(path / graph)
        for name in data_files:
            require_file(path, name)
        return cls(
            path=path,
            context_length=model["context_length"],
            vocab_size=model["vocab_size"],
            end_token_ids=tuple(_end_token_ids(model)),
            quantization=quantization,
            sliding_window=model["decoder"].get("sliding_window", {}),
            files=(_CONFIG, TOKENIZER, graph, *data_files, *template_files(path)),
            dimensions=_dimensions(model["decoder"]),
        )


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / _CONFIG).is_file():
        # a repository of builds keeps them two levels down (cpu_and_mobile/cpu-int4-…)
        nearby = [*path.glob(f"*/{_CONFIG}"), *path.glob(f"*/*/{_CONFIG}")]
        builds = sorted(str(found.parent) for found in nearby)
        hint = f"; did you mean {builds[0]}?" if builds else ": it is not an ONNX build of Phi-3"
        raise InvalidModelError(f"{path} has no {_CONFIG}{hint}")
    require_file(path, _CONFIG)
    try:
        config: dict[str, Any] = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        model = config["model"]
        _ = model["type"], model["decoder"]["filename"]
        sizes = astuple(_dimensions(model["decoder"]))
        numbers = (model["context_length"], model["vocab_size"], *_end_token_ids(model), *sizes)
        for number in numbers:
            if not isinstance(number, int):
                raise TypeError(f"{number!r} is not a whole number")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(
            f"{path / _CONFIG} is damaged: {type(error).__name__} {error}"
        ) from error
    return config


def _dimensions(decoder: Mapping[str, Any]) -> Dimensions:
    return Dimensions(
        layers=decoder["num_hidden_layers"],
        key_value_heads=decoder["num_key_value_heads"],
        head_size=decoder["head_size"],
        hidden_size=decoder["hidden_size"],
    )


def _end_token_ids(model: dict[str, Any]) -> list[int]:
    ids = model["eos_token_id"]
    return ids if isinstance(ids, list) else [ids]


def _read_graph(path: Path) -> tuple[Quantization, tuple[str, ...]]:
    """Quantisation and names of external data files, straight from the ONNX file's bytes.

    An ONNX file is a protobuf message, and what is looked for stands in it literally: integer
    attributes as name (field 1), value (field 3) and places of external data as the entry
    "location" (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). That spares users the
    onnx package.
    """
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph,
    ):
        if graph.find(b"MatMulNBits") < 0:
            raise InvalidModelError(
                f"{path} is not int4: its graph has no MatMulNBits node; use an int4 build"
            )
        quantization = Quantization(
            bits=tuple(sorted(set(_integer_attributes(graph, b"bits")))) or (4,),
            block_size=next(_integer_attributes(graph, b"block_size"), 0),
            accuracy_level=next(_integer_attributes(graph, b"accuracy_level"), 0),
        )
        if quantization.bits not in _KNOWN_BITS:
            others = " and ".join(f"{bits}-bit" for bits in quantization.bits)
            raise InvalidModelError(f"{path} has {others} weights; use an int4 build")
        locations = set()
        for match in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])([^\x00]{1,127})", graph):
            length, name = match.group(1)[0], match.group(2)
            if len(name) < length:
                raise InvalidModelError(f"{path} is cut short: the download is incomplete")
            locations.add(name[:length].decode("utf-8", "replace"))
    return quantization, tuple(sorted(locations))


def _integer_attributes(graph: mmap.mmap, name: bytes) -> Iterator[int]:
    """Each node's value of an attribute, in the order of the nodes."""
    length = bytes([len(name)])
    pattern = re.escape(b"\x0a" + length + name) + rb"\x18([\x80-\xff]*[\x00-\x7f])"
    for match in re.finditer(pattern, graph):
        yield sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(match.group(1)))
