"""Small Phi-3 models of random weights, built by the real model builder."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY_CHECKPOINT

SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 512,
    "sliding_window": None,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 1000,
    "pad_token_id": 1000,
}
# by name: what is different in the configuration, and the builder's options
BUILDS = {
    "grouped": ({"num_key_value_heads": 2}, ["block_size=32", "accuracy_level=4"]),
    "half rotated": (
        {"partial_rotary_factor": 0.5},
        ["block_size=16", "accuracy_level=0", "is_symmetric=false"],
    ),
    "apart": (
        {"num_key_value_heads": 3, "hidden_size": 384},
        [
            "block_size=128",
            "accuracy_level=4",
            "is_symmetric=false",
            "disable_qkv_fusion=true",
            "nodes_to_exclude=/lm_head/MatMul",
        ],
    ),
    "one key": (
        {"num_key_value_heads": 1, "num_attention_heads": 8, "hidden_size": 512},
        ["block_size=256", "accuracy_level=0", "algo_config=rtn"],
    ),
    "tied": ({"tie_word_embeddings": True}, ["block_size=32", "accuracy_level=4"]),
}
# only the last token's logits: to be seen by the engine alone
PRUNED = {"pruned": ({}, ["block_size=32", "accuracy_level=4", "prune_lm_head=true"])}
REFUSED = {
    "LongRoPE": (
        {
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "type": "longrope",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 256,
                "short_factor": [1 + place / 20 for place in range(16)],
                "long_factor": [1 + place / 2 for place in range(16)],
            },
        },
        ["block_size=32", "accuracy_level=1"],
    ),
    "4 and 8 bits": ({}, ["block_size=32", "accuracy_level=4", "algo_config=k_quant_mixed"]),
    "for CUDA": ({}, ["block_size=32", "accuracy_level=4"]),  # all else in float16
}

# All by one process: it takes seconds to import torch, and half of one to build.
BUILDER = """
import json, shutil, sys
from pathlib import Path

import onnxruntime_genai.models
import torch
from transformers import Phi3Config, Phi3ForCausalLM

sys.path.insert(0, onnxruntime_genai.models.__path__[0])
import builder

root, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
for name, (shape, options) in json.loads(sys.argv[3]).items():
    kind = "cuda" if "CUDA" in name else "cpu"
    torch.manual_seed(0)
    checkpoint = root / "checkpoints" / name
    Phi3ForCausalLM(Phi3Config(**shape)).save_pretrained(checkpoint)
    for file in tokenizer.glob("tokenizer*.json"):
        shutil.copyfile(file, checkpoint / file.name)
    arguments = "", str(checkpoint), str(root / name), "int4", kind, str(root / "cache")
    options = ["hf_token=false", "windowed_kv_cache=false", *options]
    builder.create_model(*arguments, **builder.parse_extra_options(*arguments, options))
    shutil.copyfile(tokenizer / "tokenizer.json", root / name / "tokenizer.json")
"""


def build_all(root: Path) -> None:
    """Build each of them in a folder by its name."""
    builds = BUILDS | PRUNED | REFUSED
    wanted = {name: (SHAPE | shape, options) for name, (shape, options) in builds.items()}
    arguments = [str(root), str(TINY_CHECKPOINT), json.dumps(wanted)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", BUILDER, *arguments],
        env=os.environ | {"GIT_DIR": os.devnull, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert not done.returncode, done.stderr[-2000:]
