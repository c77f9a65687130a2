"""Model sizes as data, and the arithmetic on them."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

from pretrainer.config import Config, ModelConfig
from pretrainer.errors import ConfigError

# GPT-2 and GPT-3: learned positions, LayerNorm, biases, one matrix for input and output.
_GPT: dict[str, Any] = dict(positions="learned", norm="layernorm", bias="all", ffn="gelu_tanh")
_GPT2 = _GPT | dict(context=1024)  # Radford et al. 2019; vocabulary 50,257
# Brown et al. 2020, arXiv:2005.14165, table 2.1; vocabulary 50,257. Departures: no layer is sparse; and where the
# table's heads times their width do not make its d_model (XL, 13B), the heads or d_model are those that do.
_GPT3 = _GPT | dict(context=2048)
_LLAMA2: dict[str, Any] = dict(tie_embeddings=False, context=4096)  # arXiv:2307.09288; vocabulary 32,000
_LLAMA3: dict[str, Any] = dict(tie_embeddings=False, context=8192, kv_heads=8, rope_theta=5e5)  # vocabulary 128,256
_MISTRAL: dict[str, Any] = dict(tie_embeddings=False, context=32_768, kv_heads=8)  # arXiv:2310.06825; 32,000
_QWEN: dict[str, Any] = dict(bias="qkv", context=131_072, rope_theta=1e6, norm_eps=1e-6)  # arXiv:2412.15115


def _stretched(factor: float) -> dict[str, Any]:  # arXiv:2407.21783, section 3.4.2
    return dict(context=131_072, rope_scaling=dict(type="llama3", factor=factor, original_context=8192))


# name -> the fields of ModelConfig that differ from its defaults
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(layers=2, hidden=64, heads=4),  # for tests: trains in seconds on one core
    "tiny-gpt2": _GPT | dict(layers=2, hidden=64, heads=4, context=1024),
    "tiny-moe": dict(layers=2, hidden=64, heads=4, ffn_hidden=96, moe=dict(experts=4, top_k=2)),
    "quickstart": dict(layers=4, hidden=128, heads=4),  # learns Python on two cores in minutes
    # 27.5M on TinyStories: github.com/Om-Alve/smolGPT; vocabulary 4,096
    "smolgpt": dict(layers=8, hidden=512, heads=8, ffn_hidden=1365, positions="learned", context=512),
    "125m": dict(layers=12, hidden=768, heads=12, ffn_hidden=2048),  # GPT-2 small (Radford et al. 2019) as a Llama
    "1b": dict(layers=16, hidden=2048, heads=32, kv_heads=8, ffn_hidden=8192, rope_theta=500_000.0),  # Llama 3.2 1B
    "gpt2": _GPT2 | dict(layers=12, hidden=768, heads=12),
    "gpt2-medium": _GPT2 | dict(layers=24, hidden=1024, heads=16),
    "gpt2-large": _GPT2 | dict(layers=36, hidden=1280, heads=20),
    "gpt2-xl": _GPT2 | dict(layers=48, hidden=1600, heads=25),
    "gpt3-125m": _GPT3 | dict(layers=12, hidden=768, heads=12),
    "gpt3-350m": _GPT3 | dict(layers=24, hidden=1024, heads=16),
    "gpt3-760m": _GPT3 | dict(layers=24, hidden=1536, heads=16),
    "gpt3-1.3b": _GPT3 | dict(layers=24, hidden=2048, heads=16),
    "gpt3-2.7b": _GPT3 | dict(layers=32, hidden=2560, heads=32),
    "gpt3-6.7b": _GPT3 | dict(layers=32, hidden=4096, heads=32),
    "gpt3-13b": _GPT3 | dict(layers=40, hidden=5120, heads=40),
    "gpt3-175b": _GPT3 | dict(layers=96, hidden=12_288, heads=96),
    "llama2-7b": _LLAMA2 | dict(layers=32, hidden=4096, heads=32, ffn_hidden=11_008),
    "llama2-13b": _LLAMA2 | dict(layers=40, hidden=5120, heads=40, ffn_hidden=13_824),
    "llama2-70b": _LLAMA2 | dict(layers=80, hidden=8192, heads=64, kv_heads=8, ffn_hidden=28_672),
    "tinyllama-1.1b": _LLAMA2 | dict(layers=22, hidden=2048, heads=32, kv_heads=4, ffn_hidden=5632, context=2048),
    "llama3-8b": _LLAMA3 | dict(layers=32, hidden=4096, heads=32, ffn_hidden=14_336),
    "llama3-70b": _LLAMA3 | dict(layers=80, hidden=8192, heads=64, ffn_hidden=28_672),
    "llama3.1-8b": _LLAMA3 | dict(layers=32, hidden=4096, heads=32, ffn_hidden=14_336) | _stretched(8.0),
    "llama3.1-70b": _LLAMA3 | dict(layers=80, hidden=8192, heads=64, ffn_hidden=28_672) | _stretched(8.0),
    "llama3-405b": _LLAMA3 | dict(layers=126, hidden=16_384, heads=128, ffn_hidden=53_248) | _stretched(8.0),
    "mistral-7b": _MISTRAL | dict(layers=32, hidden=4096, heads=32, ffn_hidden=14_336, sliding_window=4096),
    "mixtral-8x7b": _MISTRAL | dict(layers=32, hidden=4096, heads=32, ffn_hidden=14_336, rope_theta=1e6,
                                    moe=dict(experts=8, top_k=2)),  # arXiv:2401.04088
    "qwen2.5-0.5b": _QWEN | dict(context=32_768, layers=24, hidden=896, heads=14, kv_heads=2, ffn_hidden=4864),
    "qwen2.5-1.5b": _QWEN | dict(context=32_768, layers=28, hidden=1536, heads=12, kv_heads=2, ffn_hidden=8960),
    "qwen2.5-3b": _QWEN | dict(context=32_768, layers=36, hidden=2048, heads=16, kv_heads=2, ffn_hidden=11_008),
    "qwen2.5-7b": _QWEN | dict(layers=28, hidden=3584, heads=28, kv_heads=4, ffn_hidden=18_944, tie_embeddings=False),
    "qwen2.5-14b": _QWEN | dict(layers=48, hidden=5120, heads=40, kv_heads=8, ffn_hidden=13_824, tie_embeddings=False,
                                norm_eps=1e-5),
    "qwen2.5-32b": _QWEN | dict(layers=64, hidden=5120, heads=40, kv_heads=8, ffn_hidden=27_648, tie_embeddings=False,
                                norm_eps=1e-5),
    "qwen2.5-72b": _QWEN | dict(layers=80, hidden=8192, heads=64, kv_heads=8, ffn_hidden=29_568, tie_embeddings=False,
                                norm_eps=1e-5),
}  # fmt: skip


def resolve(config: ModelConfig) -> ModelConfig:
    """The config with its preset filled in where a field was left at its default.

    A field that is given with the value of its default cannot be told from one that was not given. Resolving a resolved
    config changes nothing. Raises ConfigError for an unknown preset and for fields that do not go with it.
    """
    if config.preset is None:
        return config
    if config.preset not in PRESETS:
        raise ConfigError(f"model.preset={config.preset!r} is not known: use one of {', '.join(sorted(PRESETS))}")
    resolved = _filled(config, PRESETS[config.preset])
    resolved.check()
    return resolved


def resolve_model_of(config: Config) -> Config:
    """The config with its model resolved; ConfigError where the rest of the config does not go with that."""
    resolved = replace(config, model=resolve(config.model))
    resolved.check_widths()
    return resolved


def _filled(section: Any, preset: dict[str, Any]) -> Any:
    """The dataclass with the preset's values where it has its defaults; sections inside it likewise."""
    defaults = {f.name: f.default for f in fields(section) if f.default is not MISSING}
    changes = {}
    for name, value in preset.items():
        own = getattr(section, name)
        if is_dataclass(own):
            changes[name] = _filled(own, value)
        elif own == defaults[name]:
            changes[name] = value
    return replace(section, **changes)


def _norm_parameters(config: ModelConfig, width: int) -> int:
    return width * (2 if config.norm == "layernorm" and config.bias == "all" else 1)


def _attention_parameters(config: ModelConfig) -> int:
    queries, keys = config.heads * config.width_per_head, config.num_kv_heads * config.width_per_head
    biases = (queries + 2 * keys if config.bias != "none" else 0) + (config.hidden if config.bias == "all" else 0)
    return 2 * config.hidden * (queries + keys) + biases + (2 * config.width_per_head if config.qk_norm else 0)


def _ffn_parameters(config: ModelConfig, width: int) -> int:
    inner = 2 if config.gated else 1
    biases = inner * width + config.hidden if config.bias == "all" else 0
    return (inner + 1) * config.hidden * width + biases


def block_parameters(config: ModelConfig, active: bool = False) -> int:
    """Parameters of one transformer block; if active, those that one token passes through."""
    total = _attention_parameters(config) + 2 * _norm_parameters(config, config.hidden)
    moe = config.moe
    if moe.experts == 0:
        return total + _ffn_parameters(config, config.ffn_width)
    routed = moe.top_k if active else moe.experts
    shared = _ffn_parameters(config, moe.shared_experts * config.ffn_width)
    return total + routed * _ffn_parameters(config, config.ffn_width) + shared + moe.experts * config.hidden


def table_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Parameters of tables that are only looked up in: positions, and an input table that is not the output layer."""
    positions = config.context or 0 if config.positions == "learned" else 0
    return (positions + (0 if config.tie_embeddings else vocab_size)) * config.hidden


def parameter_count(config: ModelConfig, vocab_size: int, active: bool = False) -> int:
    """Parameters of the model, a tied embedding counted once; if active, those that one token passes through."""
    final = 0 if config.norm_position == "post" else _norm_parameters(config, config.hidden)
    blocks = config.layers * block_parameters(config, active)
    return blocks + vocab_size * config.hidden + table_parameters(config, vocab_size) + final
