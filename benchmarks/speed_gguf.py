"""A Hugging Face LLM folder as a GGUF file in Q4_0, for speed alone: it carries no vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors import safe_open

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
Q4 = GGMLQuantizationType.Q4_0


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    plain = name.removeprefix("model.").removesuffix(".weight")
    if plain.startswith("layers."):
        _, layer, part = plain.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[plain] + ".weight"


def write_gguf(source: Path, path: Path) -> None:
    """Every matrix in Q4_0 (4 bits, blocks of 32), norms in float32; the head is the embedding table where they are tied."""
    config = json.loads((source / "config.json").read_bytes())
    heads = config["num_attention_heads"]
    part = path.with_suffix(".part")
    writer = GGUFWriter(part, {"llama": "llama", "qwen3": "qwen3"}[config["model_type"]])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base((config.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            for name in weights.keys():  # noqa: SIM118, not a dict
                if name == "lm_head.weight" and config["tie_word_embeddings"]:
                    continue
                value = weights.get_tensor(name).astype(np.float32)
                if value.ndim == 1:
                    writer.add_tensor(gguf_name(name), value)
                else:
                    writer.add_tensor(gguf_name(name), quants.quantize(value, Q4), raw_dtype=Q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
