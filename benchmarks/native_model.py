"""The random model as the native engine reads it, packed by the product's own code."""

from phi3_batch.engines.native.cache import packed_model
from phi3_batch.engines.native.packed_model import PackedModel
from phi3_batch.model_files import ModelFolder


def native_model(folder: ModelFolder) -> PackedModel:
    """The packed model of a build, made at the first call."""
    return packed_model(folder, folder.read_manifest())
