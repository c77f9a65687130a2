"""Depth and width for a number of parameters, from the presets; and the vocabulary and context that go with a size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise
from typing import NamedTuple

from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError
from pretrainer.model.presets import PRESETS, block_parameters, parameter_count, resolve

LADDER = ("tiny", "quickstart", "125m", "1b", "llama2-7b", "llama2-13b", "llama2-70b", "llama3-405b")
"""Presets of one architecture, small to large; sizes between two have a shape between theirs."""
SMALLEST = "tiny"
NEAR = 0.05
"""A preset that is as near as this is taken as it is."""
ASPECT_SLACK = 1.3
"""How far width over depth may be from that between the presets; the loss hardly feels it (Kaplan et al. 2020,
figure 5)."""


class Size(NamedTuple):
    """What goes with models of up to so many parameters."""

    parameters: float
    vocab_size: int
    seq_len: int


# Vocabularies of the presets' models and of this package's configs: a table that is not looked up often enough is lost
# (Tao et al. 2024, arXiv:2407.13623).
SIZES = (
    Size(5e6, 2048, 256),
    Size(60e6, 4096, 512),
    Size(500e6, 32_768, 2048),
    Size(4e9, 65_536, 4096),
    Size(math.inf, 131_072, 8192),
)


def size_for(parameters: float) -> Size:
    """Vocabulary and context for a model of this size where nothing else decides them."""
    return next(size for size in SIZES if parameters <= size.parameters)


def smallest(vocab_size: int) -> int:
    """Parameters of the smallest preset."""
    return parameter_count(resolve(ModelConfig(preset=SMALLEST)), vocab_size)


def propose(parameters: float, vocab_size: int, style: ModelConfig | None = None) -> ModelConfig:
    """The preset of that size, or the presets' shape scaled to it; with `style` its architecture in that shape.

    `style` is resolved and dense. Raises ConfigError below the smallest preset.
    """
    if parameters < smallest(vocab_size) * (1 - NEAR):
        raise ConfigError(f"{parameters:,.0f} parameters are fewer than the {smallest(vocab_size):,} of {SMALLEST}")
    if style is None:
        near = min(LADDER, key=lambda name: abs(_off(_preset(name), vocab_size, parameters)))
        if abs(_off(_preset(near), vocab_size, parameters)) <= math.log(1 + NEAR):
            return ModelConfig(preset=near)
    return min(_shapes(parameters, vocab_size, style), key=lambda found: found[0])[1]


def _preset(name: str) -> ModelConfig:
    return resolve(ModelConfig(preset=name))


def _off(model: ModelConfig, vocab_size: int, parameters: float) -> float:
    """Logarithm of how many times too large a model is."""
    return math.log(parameter_count(model, vocab_size) / parameters)


def _shapes(parameters: float, vocab_size: int, style: ModelConfig | None) -> Iterator[tuple[float, ModelConfig]]:
    """(how far from what is wanted, model): for every width the depth that gives the parameters."""
    nearest, aspect = _between(parameters, vocab_size)
    like = nearest if style is None else style
    width = 16 if parameters < 5e6 else like.width_per_head
    # Tensor parallelism shares the heads of large models, and groups of queries share a key head.
    step = 8 if parameters >= 1e9 else 4 if like.num_kv_heads < like.heads else 1
    for heads in count(step, step):
        thin = _shaped(like, 1, heads, width)
        block = block_parameters(thin)
        left = parameters - (parameter_count(thin, vocab_size) - block)
        if left < block / 2:
            return
        shape = replace(thin, layers=max(1, round(left / block)))
        bent = abs(math.log(shape.hidden / shape.layers / aspect)) - math.log(ASPECT_SLACK)
        yield abs(_off(shape, vocab_size, parameters)) + max(0.0, bent), shape


def _shaped(like: ModelConfig, layers: int, heads: int, width_per_head: int) -> ModelConfig:
    """The architecture of another size; the feed-forward layer's share of the width stays about the same."""
    hidden = heads * width_per_head
    grouped = like.num_kv_heads < like.heads
    wide = None if like.ffn_hidden is None else max(1, round(like.ffn_hidden / like.hidden * hidden / 64)) * 64
    return replace(
        like,
        preset=None,
        layers=layers,
        hidden=hidden,
        heads=heads,
        head_width=None,
        kv_heads=math.gcd(heads, like.num_kv_heads) if grouped else None,
        ffn_hidden=wide,
    )


def _between(parameters: float, vocab_size: int) -> tuple[ModelConfig, float]:
    """The preset nearest in size, and width over depth on the line between the two presets around it."""
    ladder = [(_preset(name), parameter_count(_preset(name), vocab_size)) for name in LADDER]
    nearest = min(ladder, key=lambda step: abs(math.log(step[1] / parameters)))[0]
    clipped = min(max(parameters, ladder[0][1]), ladder[-1][1])
    (low, below), (high, above) = next((a, b) for a, b in pairwise(ladder) if clipped <= b[1])
    share = math.log(clipped / below) / math.log(above / below)
    first, second = low.hidden / low.layers, high.hidden / high.layers
    return nearest, math.exp(math.log(first) + share * math.log(second / first))


def preset_model(name: str) -> ModelConfig:
    """A dense preset by name, not yet resolved. Raises ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"--preset={name!r} is not known: use one of {', '.join(sorted(PRESETS))}")
    model = ModelConfig(preset=name)
    if resolve(model).moe.experts:
        raise ConfigError(f"--preset={name!r} is a mixture of experts, and the laws are of dense models: use another")
    return model
