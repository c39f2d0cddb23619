"""Build a checkpoint as the builder of onnxruntime-genai 0.3.0 did, the age of Phi-3's own files.

The ONNX files of Phi-3 that Microsoft published in 2024 are of that age, and their graphs differ
from those of today's builder: opset 14, nine inputs to attention, scales of one dimension. The
old packages no longer run beside today's, so their Python source is taken from their wheels::

    pip download --no-deps --python-version 3.11 --only-binary :all: \
        onnxruntime-genai==0.3.0 onnxruntime==1.18.0
    python tools/build_old_layout.py onnxruntime_genai-0.3.0-*.whl onnxruntime-1.18.0-*.whl \
        sample_data/phi3-tiny tests/data/phi3-tiny-int4-0.3.0

What is changed in it is only how it reads the checkpoint: see CHANGES.
"""

import argparse
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from types import ModuleType

import onnxruntime.quantization.matmul_nbits_quantizer as todays_quantizer
import torch

BUILDER = "onnxruntime_genai/models/builder.py"
QUANTIZER = "onnxruntime/quantization/matmul_4bits_quantizer.py"
# Part of the old builder's source, and what transformers 5 needs in its place.
CHANGES = {
    "use_auth_token=True, trust_remote_code=True, ": "",
    # plain rotary embedding has a "scaling" too, of the type "default"
    'hasattr(config, "rope_scaling") and config.rope_scaling is not None': "False",
    # the tables of cosines and sines no longer hang on a layer: they are computed
    "attention.rotary_emb": "None",
    # what a checkpoint does not say is None now: it is left out, as it was
    "config = GenerationConfig.from_pretrained(model_name_or_path, **extra_kwargs)": (
        "config = GenerationConfig.from_pretrained(model_name_or_path, **extra_kwargs)\n"
        "        config = argparse.Namespace("
        "**{name: value for name, value in config.to_dict().items() if value is not None})"
    ),
}
KEPT = {"genai_config.json", "model.onnx", "model.onnx.data"}


def load(wheel: Path, name: str, changes: dict[str, str], package: str | None = None) -> ModuleType:
    """Run a module of a wheel."""
    source = zipfile.ZipFile(wheel).read(name).decode("utf-8")
    for old, new in changes.items():
        if old not in source:
            sys.exit(f"{wheel} is another version: it has no {old!r}")
        source = source.replace(old, new)
    module = types.ModuleType(Path(name).stem)
    module.__package__ = package
    sys.modules[name.removesuffix(".py").replace("/", ".")] = module
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def main() -> None:
    """Build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("builder_wheel", type=Path, help="of onnxruntime-genai 0.3.0")
    parser.add_argument("quantizer_wheel", type=Path, help="of onnxruntime 1.18.0")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--block-size", default="32")
    parser.add_argument("--accuracy-level", default="4")
    arguments = parser.parse_args()
    load(arguments.quantizer_wheel, QUANTIZER, {}, todays_quantizer.__package__)
    builder = load(arguments.builder_wheel, BUILDER, CHANGES)
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        builder.create_model(
            "",
            str(arguments.checkpoint),
            str(arguments.out),
            "int4",
            "cpu",
            str(Path(cache, "cache")),
            int4_block_size=arguments.block_size,
            int4_accuracy_level=arguments.accuracy_level,
        )
    for file in arguments.out.iterdir():
        if file.name not in KEPT:
            file.unlink()


if __name__ == "__main__":
    main()
