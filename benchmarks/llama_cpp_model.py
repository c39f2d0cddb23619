"""The random model for llama.cpp: the same shapes in its own 4-bit format, Q4_0.

Q4_0 has blocks of 32 weights too, so the file is as large and takes as many operations. Its weights
are drawn directly as blocks: what they are changes nothing about the speed.
"""

from pathlib import Path

import numpy as np
import random_phi3 as model

GGUF = model.HERE / ".models" / "phi3-mini-8-layers-q4_0.gguf"
HEAD_SIZE = model.HIDDEN_SIZE // model.HEADS


def llama_cpp_model() -> Path:
    """The GGUF file, made at the first call. Needs the gguf package."""
    if not GGUF.exists():
        part = GGUF.with_suffix(".part")
        _write(part)
        part.rename(GGUF)
    return GGUF


def _write(target: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(target, "phi3")
    writer.add_context_length(model.CONTEXT_LENGTH)
    writer.add_embedding_length(model.HIDDEN_SIZE)
    writer.add_feed_forward_length(model.INTERMEDIATE_SIZE)
    writer.add_block_count(model.LAYERS)
    writer.add_head_count(model.HEADS)
    writer.add_head_count_kv(model.HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_vocab_size(model.VOCABULARY)
    writer.add_tokenizer_model("none")
    draw = np.random.default_rng(0)
    hidden, inner = model.HIDDEN_SIZE, model.INTERMEDIATE_SIZE

    def add_linear(name: str, outputs: int, inputs: int) -> None:
        # https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, block_q4_0: a float16
        # scale and 32 weights of 4 bits
        blocks = draw.integers(0, 256, (outputs, inputs // 32, 18), dtype=np.uint8)
        scale = np.full((1,), 0.01, np.float16).view(np.uint8)
        blocks[:, :, :2] = scale
        rows = blocks.reshape(outputs, -1)
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, np.float32))

    add_linear("token_embd.weight", model.VOCABULARY, hidden)
    for layer in range(model.LAYERS):
        add_norm(f"blk.{layer}.attn_norm.weight")
        add_linear(f"blk.{layer}.attn_qkv.weight", 3 * hidden, hidden)
        add_linear(f"blk.{layer}.attn_output.weight", hidden, hidden)
        add_norm(f"blk.{layer}.ffn_norm.weight")
        add_linear(f"blk.{layer}.ffn_up.weight", 2 * inner, hidden)
        add_linear(f"blk.{layer}.ffn_down.weight", hidden, inner)
    add_norm("output_norm.weight")
    add_linear("output.weight", model.VOCABULARY, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
