"""The random model as the native engine reads it, packed by the product's own code."""

from phi3_batch.engines.native.cache import packed_model
from phi3_batch.engines.native.engine import BLOCK_TOKENS, NativeEngine
from phi3_batch.engines.native.packed_model import PackedModel
from phi3_batch.engines.native.spec import KV_VALUE_BYTES
from phi3_batch.model_files import ModelFolder


def native_model(folder: ModelFolder) -> PackedModel:
    """The packed model of a build, made at the first call."""
    return packed_model(folder, folder.read_manifest())


def native_cache_bytes(engine: NativeEngine, folder: ModelFolder) -> int:
    """What is in full blocks of its KV cache; each row has one more, which is not full."""
    blocks = len(engine._loaded.blocks._key_of)
    return blocks * BLOCK_TOKENS * folder.dimensions.cache_values_per_token * KV_VALUE_BYTES
