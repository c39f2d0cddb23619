"""Model folders on disk: what they are, what they say of themselves, and their digests."""

from phi3_batch.model_files.checkpoint import Checkpoint
from phi3_batch.model_files.dimensions import Dimensions, Limits
from phi3_batch.model_files.manifest import Manifest
from phi3_batch.model_files.onnx_build import ModelFolder

__all__ = ["Checkpoint", "Dimensions", "Limits", "Manifest", "ModelFolder"]
