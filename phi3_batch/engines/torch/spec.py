"""The engine of torch and transformers before it is loaded: how much memory it takes.

The figures were measured on checkpoints of 4 and 8 layers of Phi-3-mini's shapes and on the
embedded model, on 2 cores. They are peaks of one process.
"""

from phi3_batch.engines.base import Engine
from phi3_batch.engines.spec import EngineSpec
from phi3_batch.engines.torch.batch_size import BATCH_ROWS, BATCH_TOKENS
from phi3_batch.model_files import Checkpoint, Manifest
from phi3_batch.model_files.checkpoint import require_torch
from phi3_batch.model_files.dimensions import FLOAT32_BYTES
from phi3_batch.model_files.manifest import total_bytes

_SIXTEEN_BIT = ("bfloat16", "float16")
# Python with pandas, pyarrow, MLflow, torch and transformers
_PROCESS_BYTES = 1_000_000_000


def memory_bytes(checkpoint: Checkpoint, tokens: int) -> int:
    """About what a process takes at most that runs a checkpoint in batches.

    Args:
        checkpoint: whose files are in memory too while it is loaded.
        tokens: of prompt and answer of the longest request, as if all of them were its prompt's
            and a batch full of such; none has more than the context.
    """
    files_bytes = total_bytes(checkpoint.path, checkpoint.files)
    float32_bytes = files_bytes * (2 if checkpoint.dtype in _SIXTEEN_BIT else 1)
    tokens, dimensions = min(tokens, checkpoint.context_length), checkpoint.dimensions
    in_batch = min(BATCH_ROWS * tokens, max(BATCH_TOKENS, tokens))
    per_token = dimensions.cache_bytes_per_token + 16 * dimensions.hidden_size * FLOAT32_BYTES
    return _PROCESS_BYTES + float32_bytes + max(files_bytes, in_batch * per_token)


def create(checkpoint: Checkpoint, manifest: Manifest) -> Engine:
    """Load a checkpoint.

    Raises:
        EngineError: transformers cannot load it.
        EnvironmentProblemError: torch or transformers is not installed.
    """
    require_torch()
    from phi3_batch.engines.torch.engine import TransformersEngine

    return TransformersEngine(checkpoint)


TRANSFORMERS = EngineSpec(
    name="transformers",
    packages=("torch", "transformers"),
    machines=(),
    refuse=lambda checkpoint: None,
    memory_bytes=memory_bytes,
    create=create,
)
