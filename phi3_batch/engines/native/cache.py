"""The packed model of a folder, from the machine's cache, or made where there is no room."""

import hashlib
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from phi3_batch.engines.native.packed_model import FORMAT, PackedModel
from phi3_batch.folder_cache import FolderCache
from phi3_batch.model_files import Manifest, ModelFolder
from phi3_batch.user_folder import places

_logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "weights.bin", "index.json"
# four of Phi-3-mini's size
_LIMIT_BYTES = 10 * 10**9


def packed_model(folder: ModelFolder, manifest: Manifest) -> PackedModel:
    """The packed model of a folder, packed if no process of this machine has done it.

    Args:
        folder: the model.
        manifest: the digests of its files. What is kept under them was made of such files.

    Raises:
        InvalidModelError: a file is not the one of the manifest, or is written to meanwhile.
        UnsupportedModelError: it is a model that the library cannot compute.
        OSError: there is no memory for the weights, or a file of the model cannot be read.
    """
    key = hashlib.sha256(f"{manifest.digest} {FORMAT}".encode()).hexdigest()[:32]
    make = partial(_make, folder, manifest)
    for root in places("native"):
        try:
            found = FolderCache(root, _LIMIT_BYTES).get(key, make, manifest.size_bytes)
        except OSError as error:
            problem = error
            continue
        index = json.loads((found / INDEX).read_text(encoding="utf-8"))
        with (found / WEIGHTS).open("rb") as file:
            return PackedModel(index, file)
    _logger.warning("the packed model is kept in memory, not on disk: %s", problem)
    with os.fdopen(os.memfd_create(WEIGHTS), "w+b") as file, manifest.checked(folder.path):
        return PackedModel(_pack(folder, file), file)


def _make(folder: ModelFolder, manifest: Manifest, target: Path) -> None:
    with (target / WEIGHTS).open("wb") as file, manifest.checked(folder.path):
        index = _pack(folder, file)
    (target / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _pack(folder: ModelFolder, file: BinaryIO) -> dict[str, Any]:
    # here, for it imports onnx, which takes longer than all else where the model is packed
    from phi3_batch.engines.native.packing import pack_model

    return pack_model(folder, file)
