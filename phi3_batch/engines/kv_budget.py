"""How large the KV cache may be: by what a queue can use, and by the memory there is."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from phi3_batch.engines.files import total_bytes
from phi3_batch.engines.memory import FEWEST_CACHE_TOKENS, MOST_CACHE_TOKENS
from phi3_batch.engines.model_folder import ModelFolder

_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")

# Tokens of a block of the runtime's cache on CPUs
BLOCK_TOKENS = 32

# The rest is for what comes and goes: rows of a chunk, results, other processes of the machine.
_SHARE = 0.5
# what a step works with
_WORK_BYTES = 500_000_000


def available_bytes() -> int:
    """Memory that this process may still take: its limits', or else the machine's, in bytes."""
    return max(0, min(_rooms(), default=0))


def _rooms() -> Iterator[int]:
    yield _meminfo("MemAvailable")
    # Spark sets it in Python workers, for spark.executor.pyspark.memory
    allowed_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed_space != resource.RLIM_INFINITY:
        yield allowed_space - _address_space_bytes()
    for limit, used in (
        ("memory.max", "memory.current"),  # cgroup v2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # and v1
    ):
        allowed, taken = _read_number(_CGROUPS / limit), _read_number(_CGROUPS / used)
        if allowed is not None and taken is not None:
            # a container's usage counts the files it has read too, which make room when asked
            yield allowed - taken + _cached_files(used)


def cache_bytes(folder: ModelFolder, weight_copies: int) -> int:
    """Memory for a model's KV cache: a share of what is left when the model is loaded.

    Args:
        folder: the model, not loaded yet.
        weight_copies: in how many forms its weights will be in memory. All weights are counted in
            each, more than is foretold in :mod:`memory`: what is left over here does no harm.
    """
    weights = weight_copies * total_bytes(folder.path, folder.files)
    return int(_SHARE * (available_bytes() - weights - _WORK_BYTES))


def cache_blocks(folder: ModelFolder, value_bytes: int, memory_bytes: int) -> int:
    """Blocks of a KV cache for a model: what there is memory for, within bounds.

    Args:
        folder: the model.
        value_bytes: of one value in the cache.
        memory_bytes: for the cache; below 0 where there is too little for the model itself.
    """
    token_bytes = folder.dimensions.cache_values_per_token * value_bytes
    affordable = memory_bytes // (BLOCK_TOKENS * token_bytes)
    fewest = blocks_for(min(folder.context_length, FEWEST_CACHE_TOKENS))
    most = blocks_for(max(folder.context_length, MOST_CACHE_TOKENS))
    return max(fewest, min(affordable, most))


def blocks_for(tokens: int) -> int:
    """Blocks that a request of so many tokens, prompt and completion, never needs more than."""
    return -(-tokens // BLOCK_TOKENS) + 1  # one more while it leaves a block that it shares


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _meminfo(name: str) -> int:
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return 0


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # there is no such limit: no file, or "max"
        return None


def _cached_files(used: str) -> int:
    try:
        statistics = (_CGROUPS / used).with_name("memory.stat").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in statistics.splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
