"""The converted model of a folder, from the machine's cache, or made where there is no room."""

import ctypes
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from phi3_batch.engines.ov.engine import MODEL_BIN, write_model
from phi3_batch.engines.ov.graph import CONVERTER_VERSION, convert
from phi3_batch.engines.ov.int4 import instructions_for
from phi3_batch.engines.ov.int4_kernel import Instructions
from phi3_batch.engines.ov.runtime import openvino
from phi3_batch.folder_cache import FolderCache
from phi3_batch.model_files.manifest import Manifest
from phi3_batch.model_files.onnx_build import ModelFolder
from phi3_batch.user_folder import places

_logger = logging.getLogger(__name__)

# four of Phi-3-mini's size
_LIMIT_BYTES = 10 * 10**9


@contextmanager
def converted_model(folder: ModelFolder, manifest: Manifest) -> Iterator[Path]:
    """A folder with the converted model, for the ``with`` block; what maps its files may go on.

    Args:
        folder: the model.
        manifest: the digests of its files. What is kept under them was converted of such files.

    Raises:
        InvalidModelError: a file is not the one of the manifest, or is written to meanwhile.
        UnsupportedModelError: the model's graph is one that cannot be converted.
        OSError: not even a small file can be written anywhere.
    """
    instructions = instructions_for(folder)
    packed = instructions and instructions.name
    what = f"{manifest.digest} {CONVERTER_VERSION} {openvino.__version__} {packed=}"
    key = hashlib.sha256(what.encode()).hexdigest()[:32]
    make = partial(_make, folder, manifest, instructions)
    for root in places("openvino"):
        try:
            found = FolderCache(root, _LIMIT_BYTES).get(key, make, manifest.size_bytes)
        except OSError as error:
            problem = error
        else:
            yield found
            return
    _logger.warning("the converted model is kept in memory, not on disk: %s", problem)
    with _folder_in_memory() as made:
        make(made)
        yield made


def _make(
    folder: ModelFolder, manifest: Manifest, instructions: Instructions | None, target: Path
) -> None:
    with manifest.checked(folder.path):
        write_model(convert(folder, instructions), folder, target)
    _give_back_freed_memory()


def _give_back_freed_memory() -> None:
    """Return to the system what the C library keeps for later: of Phi-3-mini's tensors, 1.4 GB.

    They are freed by now, and what comes next, the runtime's own weights, does not reuse them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


@contextmanager
def _folder_in_memory() -> Iterator[Path]:
    """A folder whose weights go to memory: the runtime takes nothing but paths."""
    shm = Path("/dev/shm")  # noqa: S108  # where even a read-only container can write a little
    place = shm if os.access(shm, os.W_OK) else None
    memory = os.memfd_create(MODEL_BIN)
    try:
        with tempfile.TemporaryDirectory(prefix="phi3_batch-", dir=place) as folder:
            Path(folder, MODEL_BIN).symlink_to(f"/proc/self/fd/{memory}")
            yield Path(folder)
    finally:
        os.close(memory)
