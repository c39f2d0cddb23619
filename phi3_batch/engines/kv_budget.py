"""How large the KV cache may be: by what a queue can use, and by the memory there is."""

from phi3_batch.memory_claims import claim_memory
from phi3_batch.model_files.manifest import total_bytes
from phi3_batch.model_files.onnx_build import ModelFolder

# The cache takes what memory there is, within bounds: room for the context of Phi-3-mini, and none
# for more than the other.
FEWEST_CACHE_TOKENS = 4096
MOST_CACHE_TOKENS = 64 * 1024
# Tokens of a block of the runtime's cache on CPUs
BLOCK_TOKENS = 32

# From so many sequences on a step is nearly as fast for each as it gets, and a prefix cache fills
# whatever room there is.
_SEQUENCES = 32

# The rest is for what comes and goes: rows of a chunk, results, other processes of the machine.
_SHARE = 0.5
# what a step works with
_WORK_BYTES = 500_000_000


def useful_bytes(folder: ModelFolder, value_bytes: int, tokens: int) -> int:
    """What a KV cache takes that holds rows enough at a time.

    Args:
        folder: the model.
        value_bytes: of one value in the cache.
        tokens: of prompt and answer of the longest request; none has more than the context.
    """
    wanted = _SEQUENCES * min(tokens, folder.context_length)
    most = max(folder.context_length, MOST_CACHE_TOKENS)
    cached = min(max(wanted, FEWEST_CACHE_TOKENS), most)
    return cached * folder.dimensions.cache_values_per_token * value_bytes


def claim_blocks(folder: ModelFolder, value_bytes: int, weight_copies: int) -> int:
    """Blocks of a KV cache for a model: a share of what is left when the model is loaded.

    The memory is claimed, with that of the model: another process on the machine does not count on
    it too.

    Args:
        folder: the model, not loaded yet.
        value_bytes: of one value in the cache.
        weight_copies: in how many forms its weights will be in memory. All weights are counted in
            each, more than the spec's forecast counts: what is left over here does no harm.
    """
    taken = weight_copies * total_bytes(folder.path, folder.files) + _WORK_BYTES
    block_bytes = _block_bytes(folder, value_bytes)

    def decide(available: int) -> int:
        blocks = cache_blocks(folder, value_bytes, int(_SHARE * (available - taken)))
        return taken + blocks * block_bytes

    return (claim_memory(decide) - taken) // block_bytes


def cache_blocks(folder: ModelFolder, value_bytes: int, memory_bytes: int) -> int:
    """Blocks of a KV cache for a model: what there is memory for, within bounds.

    Args:
        folder: the model.
        value_bytes: of one value in the cache.
        memory_bytes: for the cache; below 0 where there is too little for the model itself.
    """
    affordable = memory_bytes // _block_bytes(folder, value_bytes)
    fewest = blocks_for(min(folder.context_length, FEWEST_CACHE_TOKENS))
    most = blocks_for(max(folder.context_length, MOST_CACHE_TOKENS))
    return max(fewest, min(affordable, most))


def _block_bytes(folder: ModelFolder, value_bytes: int) -> int:
    return BLOCK_TOKENS * folder.dimensions.cache_values_per_token * value_bytes


def blocks_for(tokens: int) -> int:
    """Blocks that a request of so many tokens, prompt and completion, never needs more than."""
    return -(-tokens // BLOCK_TOKENS) + 1  # one more while it leaves a block that it shares
