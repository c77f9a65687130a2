"""Self-attention with grouped heads, and the key-value cache of generation.

Shapes: B rows, S tokens, H hidden, N query heads, M key and value heads, D width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrainer.config import ModelConfig
from pretrainer.model.cast import Linear, together
from pretrainer.model.masks import Mask, attend
from pretrainer.model.norms import RMSNorm
from pretrainer.model.positions import apply_rotary


class KVCache:
    """Keys and values [B, M, S, D] of the tokens seen so far, one pair per block; for generation only."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        """Tokens held by every block."""
        return self.keys[0].shape[2] if self.keys else 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens of one block; returns all keys and values of it."""
        if layer in self.keys:
            key = torch.cat((self.keys[layer], key), dim=2)
            value = torch.cat((self.values[layer], value), dim=2)
        self.keys[layer], self.values[layer] = key, value
        return key, value


class Context(NamedTuple):
    """What a block is told about its tokens besides their states."""

    rotary: tuple[Tensor, Tensor] | None  # cos and sin [B, 1, S, D]
    mask: Mask
    cache: KVCache | None = None


class Attention(nn.Module):
    """[B, S, H] to [B, S, H]; grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) where M < N.

    QK-norm: RMSNorm over each head's width, as in Qwen3 (arXiv:2505.09388), after Dehghani et al. 2023.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_width = layer, config.width_per_head
        queries, keys = config.heads * self.head_width, config.num_kv_heads * self.head_width
        has_bias = config.bias != "none"
        self.q = Linear(config.hidden, queries, bias=has_bias)
        self.k = Linear(config.hidden, keys, bias=has_bias)
        self.v = Linear(config.hidden, keys, bias=has_bias)
        self.o = Linear(queries, config.hidden, bias=config.bias == "all")
        self.q_norm = RMSNorm(self.head_width, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_width, eps=config.norm_eps) if config.qk_norm else None

    def _split(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        x = x.view(*x.shape[:2], -1, self.head_width)  # [B, S, N or M, D]
        # Normed in this layout: behind the transpose a norm would make the output of attention one that must be copied.
        return (x if norm is None else norm(x)).transpose(1, 2)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = together((self.q, self.k, self.v), x)
        q, k = self._split(q, self.q_norm), self._split(k, self.k_norm)
        v = self._split(v, None)  # [B, M, S, D]
        if context.rotary is not None:
            q, k = apply_rotary(q, *context.rotary), apply_rotary(k, *context.rotary)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm may have made them float32
        if context.cache is not None:
            k, v = context.cache.append(self.layer, k, v)
        return self.o(attend(q, k, v, context.mask).transpose(1, 2).flatten(2))
