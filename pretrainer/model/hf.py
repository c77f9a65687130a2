"""Export to and import from Hugging Face's LlamaForCausalLM: config.json and model.safetensors, no pickles.

RoPE uses the same "rotate half" layout on both sides, so weights are renamed and never permuted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrainer.config import ModelConfig, MoeConfig, RopeScalingConfig
from pretrainer.errors import ConfigError, StorageError, require
from pretrainer.schema import BOS, EOS, PAD

# our name -> Hugging Face's; inside a block the name follows "model.layers.<i>."
_TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.gate.weight": "mlp.gate_proj.weight",
    "ffn.up.weight": "mlp.up_proj.weight",
    "ffn.down.weight": "mlp.down_proj.weight",
}


# What a LlamaForCausalLM is; other fields of ModelConfig are free.
_LLAMA = {
    "ffn": "swiglu", "norm": "rmsnorm", "norm_position": "pre", "bias": "none", "qk_norm": False, "positions": "rope",
    "rope_scaling": RopeScalingConfig(), "causal": True, "sliding_window": None, "moe": MoeConfig(),
}  # fmt: skip


def require_llama(config: ModelConfig) -> None:
    """Raise ConfigError for a model that LlamaForCausalLM does not compute."""
    for name, expected in _LLAMA.items():
        value = getattr(config, name)
        if name == "moe" and value.experts == 0:
            continue
        require(value == expected, f"model.{name}", value, f"export writes a Llama, which has {expected!r} here")


def why_no_export(config: ModelConfig) -> str | None:
    """What of a model `require_llama` refuses, in words; None where it can be exported."""
    try:
        require_llama(config)
    except ConfigError as error:
        return str(error)
    return None


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter name -> Hugging Face's, for every parameter of the model."""
    top = {ours: theirs for ours, theirs in _TOP.items() if ours != "head.weight" or not config.tie_embeddings}
    blocks = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.layers)
        for ours, theirs in _BLOCK.items()
    }
    return top | blocks


def hf_config(config: ModelConfig, vocab_size: int, seq_len: int) -> dict[str, Any]:
    """config.json of LlamaForCausalLM; seq_len is the context that the model was trained with."""
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size,
        "hidden_size": config.hidden, "intermediate_size": config.ffn_width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.width_per_head, "hidden_act": "silu", "rms_norm_eps": config.norm_eps,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": seq_len, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
        # transformers 5 reads rope_parameters, 4 reads rope_theta
        "rope_theta": config.rope_theta, "rope_parameters": rope, "torch_dtype": "float32", "dtype": "float32",
    }  # fmt: skip


def to_hf(
    full_state_dict: Mapping[str, Tensor], config: ModelConfig, vocab_size: int, folder: str | Path, seq_len: int = 2048
) -> None:
    """Write config.json and model.safetensors, from which AutoModelForCausalLM.from_pretrained gives the same logits.

    full_state_dict maps our parameter names to whole tensors; seq_len becomes max_position_embeddings. Raises
    ConfigError for an architecture other than Llama's.
    """
    require_llama(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = hf_names(config)
    tensors = {theirs: full_state_dict[ours].detach().cpu().contiguous() for ours, theirs in names.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = hf_config(config, vocab_size, seq_len)
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def _model_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
    rope = raw.get("rope_parameters") or {}
    if raw.get("model_type") != "llama" or raw.get("attention_bias") or raw.get("mlp_bias"):
        raise StorageError(f"{folder}/config.json is not of a Llama without biases: export it as LlamaForCausalLM")
    if rope.get("rope_type", "default") != "default" or raw.get("rope_scaling"):
        raise StorageError(f"{folder}/config.json scales RoPE, which is not supported: use one without rope_scaling")
    usual = raw["hidden_size"] // raw["num_attention_heads"]
    head_width = None if raw.get("head_dim") == usual else raw.get("head_dim")
    return ModelConfig(
        layers=raw["num_hidden_layers"], hidden=raw["hidden_size"], heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads"), head_width=head_width, ffn_hidden=raw["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))), norm_eps=raw["rms_norm_eps"],
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )  # fmt: skip


def from_hf(folder: str | Path) -> tuple[dict[str, Tensor], ModelConfig, int]:
    """(state dict with our names, model config, vocabulary size) of a LlamaForCausalLM folder; reads safetensors only.

    Raises StorageError for another architecture and for a missing tensor.
    """
    folder = Path(folder)
    raw = json.loads((folder / "config.json").read_text())
    config = _model_config(raw, folder)
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    missing = sorted(set(hf_names(config).values()) - set(tensors))
    if missing:
        raise StorageError(f"{folder} lacks {len(missing)} tensors ({missing[0]}, ...): copy all its .safetensors")
    return {ours: tensors[theirs] for ours, theirs in hf_names(config).items()}, config, int(raw["vocab_size"])
