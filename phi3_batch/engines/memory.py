"""How much an engine holds at a time, and how much memory that takes, told without loading it.

The figures were measured on builds and checkpoints of 4 and 8 layers of Phi-3-mini's shapes, those
of OpenVINO on 32 too, and on the embedded model, on 2 cores. They are peaks of one process, and
good to about a fifth.
"""

from dataclasses import dataclass

from phi3_batch.engines.base import Limits

# The ONNX runtime sets the KV cache aside at once (0.8 MB a token at Phi-3-mini's size), so it
# starts small and doubles, up to the context length, for requests that need more.
SMALLEST_CAPACITY = 512

# Rows of a batch of the transformers engine, and rows x (longest prompt + most new tokens). A
# token's keys and values are 0.8 MB at Phi-3-mini's size (32 layers x 2 x 3072 values x 4 bytes):
# 6.4 GB beside 15.3 GB of weights.
BATCH_ROWS = 16
BATCH_TOKENS = 8192

_FLOAT32_BYTES = 4
_FLOAT16_BYTES = 2

# OpenVINO's cache takes what memory there is, within bounds: room for the context of Phi-3-mini,
# and none for more than the other. From 32 rows on a step takes as long for more, and a prefix
# cache fills whatever room there is.
_OPENVINO_ROWS = 32
FEWEST_CACHE_TOKENS = 4096
MOST_CACHE_TOKENS = 64 * 1024

# Python with pandas, pyarrow, MLflow and the runtime
_ONNX_PROCESS_BYTES = 300_000_000
_TRANSFORMERS_PROCESS_BYTES = 1_000_000_000


def cache_capacity(tokens: int, context_length: int) -> int:
    """Tokens that the ONNX engine sets a KV cache aside for, when a request needs so many."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, context_length)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model that decide how much memory it takes while it runs."""

    layers: int
    key_value_heads: int
    head_size: int
    hidden_size: int

    @property
    def cache_values_per_token(self) -> int:
        """Keys and values of a token."""
        return self.layers * self.key_value_heads * self.head_size * 2

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of a token in float32, as engines other than OpenVINO keep them."""
        return self.cache_values_per_token * _FLOAT32_BYTES


def openvino_memory_bytes(
    files_bytes: int, dimensions: Dimensions, limits: Limits, tokens: int
) -> int:
    """About what a process takes that runs an ONNX build by OpenVINO, with rows enough at a time.

    With less memory it runs fewer rows at a time; with more, up to 65,536 tokens of them. Where our
    own kernel multiplies, it takes less: the weights are in memory once, after they are converted.

    Args:
        files_bytes: of the build.
        dimensions: of the model.
        limits: of the model.
        tokens: of prompt and answer of the longest request; none has more than the context.
    """
    most = max(limits.context_length, MOST_CACHE_TOKENS)
    wanted = _OPENVINO_ROWS * min(tokens, limits.context_length)
    cached = min(max(wanted, FEWEST_CACHE_TOKENS), most)
    cache = cached * dimensions.cache_values_per_token * _FLOAT16_BYTES
    # weights as the file has them and as they are multiplied, which the embedding is not
    embedding = limits.vocab_size * dimensions.hidden_size * _FLOAT32_BYTES
    return _ONNX_PROCESS_BYTES + files_bytes + max(0, files_bytes - embedding) + cache


def onnx_memory_bytes(files_bytes: int, dimensions: Dimensions, limits: Limits, tokens: int) -> int:
    """About what a process takes at most that runs an ONNX build by onnxruntime-genai.

    Args:
        files_bytes: of the build; its weights are in memory as they are in the files.
        dimensions: of the model.
        limits: of the model.
        tokens: of prompt and answer of the longest request, as if all of them were its prompt's;
            none has more than the context.
    """
    tokens = min(tokens, limits.context_length)
    cache = cache_capacity(tokens, limits.context_length) * dimensions.cache_bytes_per_token
    # while a prompt is read, its logits twice, and what a layer works with
    per_token = (2 * limits.vocab_size + 12 * dimensions.hidden_size) * _FLOAT32_BYTES
    return _ONNX_PROCESS_BYTES + files_bytes + cache + tokens * per_token


def transformers_memory_bytes(
    files_bytes: int, float32_bytes: int, dimensions: Dimensions, limits: Limits, tokens: int
) -> int:
    """About what a process takes at most that runs a checkpoint in batches.

    Args:
        files_bytes: of the checkpoint, which are in memory too while it is loaded.
        float32_bytes: of its weights, as they are in memory.
        dimensions: of the model.
        limits: of the model.
        tokens: of prompt and answer of the longest request, as if all of them were its prompt's
            and a batch full of such; none has more than the context.
    """
    tokens = min(tokens, limits.context_length)
    in_batch = min(BATCH_ROWS * tokens, max(BATCH_TOKENS, tokens))
    per_token = dimensions.cache_bytes_per_token + 16 * dimensions.hidden_size * _FLOAT32_BYTES
    return _TRANSFORMERS_PROCESS_BYTES + float32_bytes + max(files_bytes, in_batch * per_token)
