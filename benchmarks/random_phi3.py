"""Build a Phi-3 of real layer shapes with random weights, to measure speed on.

    python benchmarks/random_phi3.py

Eight of Phi-3-mini's 32 layers (1.1 billion parameters, 0.7 GB as int4), with the embedded model's
tokenizer. What it says is noise, and takes as long as sense would. Needs the `build` extra, 10 GB
of memory and a few minutes; the result stays in benchmarks/.models for every later run.
"""

import json
import shutil
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOKENIZER = HERE.parent / "sample_data" / "phi3-tiny"
RANDOM_PHI3 = HERE / ".models" / "phi3-mini-8-layers-int4"

# microsoft/Phi-3-mini-4k-instruct, config.json
HIDDEN_SIZE = 3072
INTERMEDIATE_SIZE = 8192
HEADS = 32
VOCABULARY = 32064
CONTEXT_LENGTH = 4096
LAYERS = 8
# an id that nothing means anything by
END_ID = VOCABULARY - 1


def save_checkpoint(target: Path) -> None:
    """Write the checkpoint, 2.3 GB of bfloat16."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT_LENGTH,
        original_max_position_embeddings=CONTEXT_LENGTH,
        sliding_window=2047,
        bos_token_id=1,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    Phi3ForCausalLM(config).save_pretrained(target)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, target)


def build(target: Path, checkpoint: Path) -> None:
    """Write the int4 build of a checkpoint."""
    from phi3_batch.build import build_int4

    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch, "int4")
        build_int4(checkpoint, built, algorithm="rtn")  # as when its figures were taken
        _never_end(built / "genai_config.json")
        built.rename(target)


def random_phi3() -> Path:
    """The int4 build, made at the first call."""
    if not RANDOM_PHI3.exists():
        with tempfile.TemporaryDirectory() as scratch:
            save_checkpoint(Path(scratch))
            build(RANDOM_PHI3, Path(scratch))
    return RANDOM_PHI3


def _never_end(config_file: Path) -> None:
    # the builder adds the tokenizer's own end token, and a random model may hit it by chance
    config = json.loads(config_file.read_text())
    config["model"]["eos_token_id"] = [END_ID]
    config_file.write_text(json.dumps(config, indent=4))


if __name__ == "__main__":
    print(random_phi3())
