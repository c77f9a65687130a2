"""Which architectures of Hugging Face's transformers compute which of our models, as data: one entry per family.

A family says what it needs of a ModelConfig, how config.json is written and read, and which tensors are which
(hf_family.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pretrainer.config import ModelConfig, MoeConfig, RopeScalingConfig
from pretrainer.errors import StorageError
from pretrainer.model.hf_family import Family, Weights, joined, renamed, stacked, transposed

# ------------------------------------------------------------------------------------------------ Llama and its like

_PRE_NORM: dict[str, tuple[Any, ...]] = {"causal": (True,), "norm_position": ("pre",)}
_LIKE_LLAMA = _PRE_NORM | {
    "norm": ("rmsnorm",), "ffn": ("swiglu", "geglu"), "positions": ("rope",), "qk_norm": (False,), "bias": ("none",),
    "sliding_window": (False,), "global_attention_every": (False,), "moe.experts": (False,),
}  # fmt: skip
_GATES = {"swiglu": "silu", "geglu": "gelu"}


def _llama_weights(config: ModelConfig) -> Iterator[Weights]:
    yield renamed("embed.weight", "model.embed_tokens.weight")
    yield renamed("norm.weight", "model.norm.weight")
    if not config.tie_embeddings:
        yield renamed("head.weight", "lm_head.weight")
    for layer in range(config.layers):
        yield from _llama_block(config, f"blocks.{layer}.", f"model.layers.{layer}.")


def _llama_block(config: ModelConfig, ours: str, theirs: str) -> Iterator[Weights]:
    yield renamed(f"{ours}attention_norm.weight", f"{theirs}input_layernorm.weight")
    yield renamed(f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight")
    for name in "qkvo":
        yield renamed(f"{ours}attention.{name}.weight", f"{theirs}self_attn.{name}_proj.weight")
        if config.bias == "all" or (config.bias == "qkv" and name != "o"):
            yield renamed(f"{ours}attention.{name}.bias", f"{theirs}self_attn.{name}_proj.bias")
    for name in ("q_norm", "k_norm") if config.qk_norm else ():
        yield renamed(f"{ours}attention.{name}.weight", f"{theirs}self_attn.{name}.weight")
    for name in () if config.moe.experts else ("gate", "up", "down"):
        yield renamed(f"{ours}ffn.{name}.weight", f"{theirs}mlp.{name}_proj.weight")
        if config.bias == "all":
            yield renamed(f"{ours}ffn.{name}.bias", f"{theirs}mlp.{name}_proj.bias")


def _rope(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters`; NTK scaling by a fixed factor is another base."""
    scaling, theta, width = config.rope_scaling, config.rope_theta, config.width_per_head
    if scaling.type in ("none", "ntk"):
        stretch = scaling.factor ** (width / (width - 2)) if scaling.type == "ntk" else 1.0
        return {"rope_type": "default", "rope_theta": theta * stretch}
    raw: dict[str, Any] = {"rope_type": scaling.type, "rope_theta": theta, "factor": scaling.factor}
    if scaling.type == "linear":
        return raw
    raw["original_max_position_embeddings"] = scaling.original_context
    if scaling.type == "llama3":
        return raw | {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    given = {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
    return raw | {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow} | given


def _read_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a ModelConfig, from transformers 4's fields or 5's."""
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind, theta = rope.get("rope_type", rope.get("type", "default")), rope.get("rope_theta", raw.get("rope_theta", 1e4))
    if kind == "default":
        return {"rope_theta": float(theta)}
    if kind not in ("linear", "yarn", "llama3"):
        raise StorageError(f"config.json has rope_type {kind!r}, which is not supported: use default, linear, yarn or "
                           "llama3")  # fmt: skip
    names = {"factor": "factor", "original_max_position_embeddings": "original_context"}
    names |= {name: name for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")}
    names |= {"attention_factor": "attention_factor"}
    known = {ours: rope[theirs] for theirs, ours in names.items() if rope.get(theirs) is not None}
    return {"rope_theta": float(theta), "rope_scaling": RopeScalingConfig(type=kind, **known)}


def _write_llama(config: ModelConfig, context: int) -> dict[str, Any]:
    rope = _rope(config)
    raw = {
        "hidden_size": config.hidden, "intermediate_size": config.ffn_width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.width_per_head, "hidden_act": _GATES[config.ffn], "rms_norm_eps": config.norm_eps,
        "attention_bias": config.bias == "all", "mlp_bias": config.bias == "all",
        "tie_word_embeddings": config.tie_embeddings, "max_position_embeddings": context,
        # transformers 5 reads rope_parameters, 4 reads rope_theta and rope_scaling
        "rope_theta": rope["rope_theta"], "rope_parameters": rope,
    }  # fmt: skip
    return raw if rope["rope_type"] == "default" else raw | {"rope_scaling": rope}


def _read_llama(raw: Mapping[str, Any]) -> dict[str, Any]:
    heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
    width = raw.get("head_dim") or hidden // heads
    gates = {theirs: ours for ours, theirs in _GATES.items()}
    return {
        "layers": raw["num_hidden_layers"], "hidden": hidden, "heads": heads,
        "kv_heads": raw.get("num_key_value_heads"), "head_width": None if width * heads == hidden else width,
        "ffn": _one_of(gates, raw.get("hidden_act", "silu"), "hidden_act"), "ffn_hidden": raw["intermediate_size"],
        "norm_eps": raw.get("rms_norm_eps", 1e-6), "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "context": raw.get("max_position_embeddings"), **_read_rope(raw),
    }  # fmt: skip


def _one_of(known: Mapping[str, str], value: str, name: str) -> str:
    if value not in known:
        raise StorageError(f"config.json has {name} {value!r}, which is not supported: use one of {', '.join(known)}")
    return known[value]


def _read_llama_biases(raw: Mapping[str, Any]) -> dict[str, Any]:
    attention, ffn = bool(raw.get("attention_bias")), bool(raw.get("mlp_bias"))
    if attention != ffn:
        raise StorageError("config.json has biases in one of attention and MLP: only both or none are supported")
    return _read_llama(raw) | {"bias": "all" if attention else "none"}


# ------------------------------------------------------------------------------------- windows, biases, norms of heads


def _write_mistral(config: ModelConfig, context: int) -> dict[str, Any]:
    return _write_llama(config, context) | {"sliding_window": config.sliding_window}


def _read_mistral(raw: Mapping[str, Any]) -> dict[str, Any]:
    return _read_llama(raw) | {"sliding_window": raw.get("sliding_window")}


def _write_qwen(config: ModelConfig, context: int) -> dict[str, Any]:
    kinds = ["full_attention" if config.window(i) is None else "sliding_attention" for i in range(config.layers)]
    return _write_llama(config, context) | {
        "use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window,
        "max_window_layers": 0, "layer_types": kinds,
    }  # fmt: skip


def _read_qwen(raw: Mapping[str, Any]) -> dict[str, Any]:
    fields = _read_llama(raw)
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    if window is None:
        return fields
    kinds = raw.get("layer_types")
    if kinds is None:  # the first max_window_layers see everything
        full = raw.get("max_window_layers", 0)
        kinds = ["full_attention" if i < full else "sliding_attention" for i in range(fields["layers"])]
    full_at = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    every = full_at[0] + 1 if full_at else None
    if full_at != [i for i in range(len(kinds)) if every and (i + 1) % every == 0]:
        raise StorageError("config.json has layers without a window, and not every n-th: that is not supported")
    return fields | {"sliding_window": window, "global_attention_every": every}


# ------------------------------------------------------------------------------------------------ mixtures of experts


def _mixtral_weights(config: ModelConfig) -> Iterator[Weights]:
    yield from _llama_weights(config)
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.ffn.", f"model.layers.{layer}.block_sparse_moe."
        yield renamed(f"{ours}router.weight", f"{theirs}gate.weight")
        for name, their_name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            each = tuple(f"{theirs}experts.{e}.{their_name}.weight" for e in range(config.moe.experts))
            yield stacked(f"{ours}experts.{name}", each)


def _write_mixtral(config: ModelConfig, context: int) -> dict[str, Any]:
    moe = {"num_local_experts": config.moe.experts, "num_experts_per_tok": config.moe.top_k}
    return _write_mistral(config, context) | moe


def _read_mixtral(raw: Mapping[str, Any]) -> dict[str, Any]:
    moe = MoeConfig(experts=raw["num_local_experts"], top_k=raw["num_experts_per_tok"])
    return _read_mistral(raw) | {"moe": moe}


def _qwen3_moe_weights(config: ModelConfig) -> Iterator[Weights]:
    yield from _llama_weights(config)
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.ffn.", f"model.layers.{layer}.mlp."
        yield renamed(f"{ours}router.weight", f"{theirs}gate.weight")
        for name in ("gate", "up", "down"):
            each = tuple(f"{theirs}experts.{e}.{name}_proj.weight" for e in range(config.moe.experts))
            yield stacked(f"{ours}experts.{name}", each)


def _write_qwen3_moe(config: ModelConfig, context: int) -> dict[str, Any]:
    return _write_qwen(config, context) | {
        "num_experts": config.moe.experts, "num_experts_per_tok": config.moe.top_k,
        "norm_topk_prob": config.moe.normalise, "moe_intermediate_size": config.ffn_width, "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }  # fmt: skip


def _read_qwen3_moe(raw: Mapping[str, Any]) -> dict[str, Any]:
    if raw.get("decoder_sparse_step", 1) != 1 or raw.get("mlp_only_layers"):
        raise StorageError("config.json has dense layers between those with experts, which is not supported")
    experts = raw.get("num_experts", raw.get("num_local_experts", 0))  # the newer name in transformers 5
    moe = MoeConfig(experts=experts, top_k=raw["num_experts_per_tok"],
                    normalise=bool(raw.get("norm_topk_prob", False)))  # fmt: skip
    return _read_qwen(raw) | {"moe": moe, "ffn_hidden": raw["moe_intermediate_size"], "qk_norm": True}


# -------------------------------------------------------------------------------------------------------------- GPT-2

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}


def _gpt2_weights(config: ModelConfig) -> Iterator[Weights]:
    yield renamed("embed.weight", "transformer.wte.weight")
    yield renamed("embed_positions.weight", "transformer.wpe.weight")
    if not config.tie_embeddings:
        yield renamed("head.weight", "lm_head.weight")
    norms = [("norm", "transformer.ln_f")]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        norms += [(f"{ours}attention_norm", f"{theirs}ln_1"), (f"{ours}ffn_norm", f"{theirs}ln_2")]
        for kind in ("weight", "bias"):
            qkv = tuple(f"{ours}attention.{name}.{kind}" for name in "qkv")
            yield joined(qkv, f"{theirs}attn.c_attn.{kind}", flip=kind == "weight")
        linear = (("attention.o", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj"))
        for own, their_name in linear:
            yield transposed(f"{ours}{own}.weight", f"{theirs}{their_name}.weight")
            yield renamed(f"{ours}{own}.bias", f"{theirs}{their_name}.bias")
    for own, their_name in norms:
        for kind in ("weight", "bias"):
            yield renamed(f"{own}.{kind}", f"{their_name}.{kind}")


def _write_gpt2(config: ModelConfig, context: int) -> dict[str, Any]:
    return {
        "n_layer": config.layers, "n_embd": config.hidden, "n_head": config.heads, "n_positions": config.context,
        "n_inner": config.ffn_width, "activation_function": _ACTIVATIONS[config.ffn],
        "layer_norm_epsilon": config.norm_eps, "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip


def _read_gpt2(raw: Mapping[str, Any]) -> dict[str, Any]:
    if raw.get("scale_attn_by_inverse_layer_idx") or not raw.get("scale_attn_weights", True):
        raise StorageError("config.json scales attention in a way that is not supported")
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    return {
        "layers": raw["n_layer"], "hidden": raw["n_embd"], "heads": raw["n_head"], "context": raw["n_positions"],
        "ffn": _one_of(activations, raw.get("activation_function", "gelu_new"), "activation_function"),
        "ffn_hidden": raw.get("n_inner") or 4 * raw["n_embd"], "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", True)),
        "norm": "layernorm", "bias": "all", "positions": "learned",
    }  # fmt: skip


_QWEN_NEEDS = _LIKE_LLAMA | {"sliding_window": (False, True), "global_attention_every": (False, True)}
# A bias on the choice of experts is a part of the model that these have not.
_MIXTURE = {"moe.experts": (True,), "moe.score": ("softmax",), "moe.shared_experts": (0,),
            "moe.balance": ("none", "sequence", "slot_block")}  # fmt: skip

# model_type -> family; the first that can compute a model is what it is exported as.
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LIKE_LLAMA | {"bias": ("none", "all")}, _llama_weights, _write_llama,
                    _read_llama_biases),
    "mistral": Family("MistralForCausalLM", _LIKE_LLAMA | {"sliding_window": (True,)}, _llama_weights, _write_mistral,
                      _read_mistral),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN_NEEDS | {"bias": ("qkv",)}, _llama_weights, _write_qwen,
                    lambda raw: _read_qwen(raw) | {"bias": "qkv"}),
    "qwen3": Family("Qwen3ForCausalLM", _QWEN_NEEDS | {"qk_norm": (True,)}, _llama_weights, _write_qwen,
                    lambda raw: _read_qwen(raw) | {"qk_norm": True}),
    "mixtral": Family("MixtralForCausalLM",
                      _LIKE_LLAMA | _MIXTURE | {"sliding_window": (False, True), "moe.normalise": (True,)},
                      _mixtral_weights, _write_mixtral, _read_mixtral),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", _QWEN_NEEDS | _MIXTURE | {"qk_norm": (True,)}, _qwen3_moe_weights,
                        _write_qwen3_moe, _read_qwen3_moe),
    "gpt2": Family("GPT2LMHeadModel",
                   _PRE_NORM | {"positions": ("learned",), "norm": ("layernorm",), "bias": ("all",),
                                "ffn": tuple(_ACTIVATIONS), "qk_norm": (False,), "sliding_window": (False,),
                                "moe.experts": (False,), "kv_heads": (False,), "head_width": (False,)},
                   _gpt2_weights, _write_gpt2, _read_gpt2),
}  # fmt: skip
