"""Model sizes as data, and the arithmetic on them."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any

from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError

# name -> the fields of ModelConfig that differ from its defaults
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(layers=2, hidden=64, heads=4),  # for tests: trains in seconds on one core
    "quickstart": dict(layers=4, hidden=128, heads=4),  # learns Python on two cores in minutes
    "125m": dict(layers=12, hidden=768, heads=12, ffn_hidden=2048),  # GPT-2 small (Radford et al. 2019) as a Llama
    "1b": dict(layers=16, hidden=2048, heads=32, kv_heads=8, ffn_hidden=8192, rope_theta=500_000.0),  # Llama 3.2 1B
    "llama2-7b": dict(layers=32, hidden=4096, heads=32, ffn_hidden=11_008, tie_embeddings=False),  # arXiv:2307.09288
    "llama3-8b": dict(layers=32, hidden=4096, heads=32, kv_heads=8, ffn_hidden=14_336, rope_theta=500_000.0,
                      tie_embeddings=False),  # arXiv:2407.21783
}


def resolve(config: ModelConfig) -> ModelConfig:
    """The config with its preset filled in where a field was left at its default.

    A field that is given with the value of its default cannot be told from one that was not given. Resolving a resolved
    config changes nothing. Raises ConfigError for an unknown preset.
    """
    if config.preset is None:
        return config
    if config.preset not in PRESETS:
        raise ConfigError(f"model.preset={config.preset!r} is not known: use one of {', '.join(sorted(PRESETS))}")
    defaults = {f.name: f.default for f in fields(ModelConfig) if f.default is not MISSING}
    preset = PRESETS[config.preset]
    return replace(config, **{name: value for name, value in preset.items() if getattr(config, name) == defaults[name]})


def block_parameters(config: ModelConfig) -> int:
    """Parameters of one transformer block."""
    head_width = config.hidden // config.heads
    attention = 2 * config.hidden * config.hidden + 2 * config.hidden * config.num_kv_heads * head_width
    return attention + 3 * config.hidden * config.ffn_width + 2 * config.hidden


def parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """Parameters of the model; a tied embedding counts once."""
    tables = 1 if config.tie_embeddings else 2
    return config.layers * block_parameters(config) + tables * vocab_size * config.hidden + config.hidden
