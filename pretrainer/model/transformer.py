"""Decoder-only transformer, for one device: sharding, mixed precision and checkpoints are applied elsewhere.

Llama's architecture (Touvron et al. 2023, arXiv:2302.13971): pre-norm RMSNorm (Zhang & Sennrich 2019), RoPE
(Su et al. 2021), SwiGLU (Shazeer 2020), grouped-query attention (Ainslie et al. 2023). Departures: embeddings may
be tied, dropout may be used, attention may be kept inside the documents of a packed row.

Shapes: B rows, S tokens, H hidden, N query heads, M key and value heads, D = H / N, F SwiGLU width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrainer.config import ModelConfig


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


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [B, 1, S, D] float32 of positions [B, S], in the "rotate half" layout of Hugging Face."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponents)  # [B, 1, S, D/2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, S, D] by its positions; computed in float32, returned in the type of x."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)


def attention_mask(document_ids: Tensor, causal: bool = True) -> Tensor:
    """Bool [B, 1, S, S] from document ids [B, S]: true where the key is in the same document and, causal, not later."""
    length = document_ids.shape[1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    if not causal:
        return same[:, None]
    return (same & torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril())[:, None]


class Attention(nn.Module):
    """Self-attention, causal or not, [B, S, H] to [B, S, H]; without biases."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.causal = layer, config.causal
        self.heads, self.kv_heads = config.heads, config.num_kv_heads
        self.head_width = config.hidden // config.heads
        self.q = nn.Linear(config.hidden, config.hidden, bias=False)
        self.k = nn.Linear(config.hidden, self.kv_heads * self.head_width, bias=False)
        self.v = nn.Linear(config.hidden, self.kv_heads * self.head_width, bias=False)
        self.o = nn.Linear(config.hidden, config.hidden, bias=False)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_width)).transpose(1, 2)  # [B, heads, S, D]

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        q = apply_rotary(self._split(self.q(x), self.heads), cos, sin)
        k = apply_rotary(self._split(self.k(x), self.kv_heads), cos, sin)
        v = self._split(self.v(x), self.kv_heads)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        # A single new token may see every cached one, so it needs no mask.
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal and mask is None and q.shape[2] > 1,
            enable_gqa=self.kv_heads != self.heads,
        )  # fmt: skip
        return self.o(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), [B, S, H] to [B, S, H]; without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden, config.ffn_width, bias=False)
        self.up = nn.Linear(config.hidden, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One pre-norm layer; the unit of sharding."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.ffn = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, mask, cache))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class Transformer(nn.Module):
    """Token ids to next-token logits. It has no buffers, so it can be built on the meta device and then emptied."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab_size, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden, vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """[V, H]: hidden states times its transpose are logits."""
        return self.embed.weight if self.head is None else self.head.weight

    def hidden(
        self, tokens: Tensor, positions: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states [B, S, H] behind the last norm; arguments as `forward`."""
        alone = document_ids is None and self.config.causal
        assert cache is None or (alone and (cache.length == 0 or tokens.shape[1] == 1))
        config = self.config
        cos, sin = rotary_tables(positions, config.hidden // config.heads, config.rope_theta)
        mask = None if document_ids is None else attention_mask(document_ids, config.causal)
        x = self.dropout(self.embed(tokens))  # [B, S, H]
        for block in self.blocks:
            x = block(x, cos, sin, mask, cache)
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        output: Callable[[Tensor, Tensor], Tensor] = F.linear,
    ) -> Tensor:
        """Logits [B, S, V] of tokens [B, S] int64 at positions [B, S] int64.

        With document_ids [B, S] attention stays inside a document. With a cache, only the tokens after the cached
        ones are given: first a prompt of any length, then one token at a time; documents are not masked then.
        output makes something else of (hidden states [B, S, H], output_weight [V, H]), such as a loss in chunks; under
        FSDP the weight is whole inside this call only.
        """
        return output(self.hidden(tokens, positions, document_ids, cache), self.output_weight)


def init_std(name: str, config: ModelConfig) -> float | None:
    """Standard deviation that the parameter of this name is drawn with, None for ones; the table is in init_weights."""
    if "norm" in name:
        return None
    if name.startswith("head."):
        return min(0.02, 0.5 / math.sqrt(config.hidden))
    if name.startswith("embed."):
        return min(0.02, 4.0 / config.hidden) if config.tie_embeddings else 0.02
    if name.endswith(("attention.o.weight", "ffn.down.weight")):
        return 0.0
    return 1.0 / math.sqrt(config.hidden)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"init/{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    std = init_std(name, config)
    return torch.ones(shape) if std is None else torch.randn(shape, generator=_generator(seed, name)) * std


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> None:
    """Fill every parameter, the only place where this happens.

    | parameter         | drawn from                         | why                                               |
    |-------------------|------------------------------------|---------------------------------------------------|
    | embed, untied     | N(0, 0.02)                         | GPT-2 (Radford et al. 2019)                       |
    | embed, tied       | N(0, min(0.02, 4 / H))             | a token's logit for itself is std * H: 4 at most, |
    |                   |                                    | which does not move the first loss                |
    | head              | N(0, min(0.02, 0.5 / sqrt(H)))     | small logits, so that the first loss is ln(V)     |
    | q, k, v, gate, up | N(0, 1 / sqrt(H))                  | outputs of unit variance behind a norm            |
    | attention.o       | 0                                  | every block begins as the identity: on the        |
    | ffn.down          | 0                                  | quickstart 0.23 bits per byte better than with    |
    |                   |                                    | GPT-2's N(0, 1 / sqrt(fan-in) / sqrt(2 layers)),  |
    |                   |                                    | which drowns the token's own small embedding      |
    | norms             | 1                                  |                                                   |

    The full tensor is drawn on the CPU with a generator keyed by SHA-256 of (seed, name), then copied in, so the values
    are the same on a plain tensor and on the shards of a DTensor at every world size.
    """
    for name, parameter in model.named_parameters():
        value = _initial_value(name, parameter.shape, model.config, seed)
        if isinstance(parameter, DTensor):
            # src_data_rank=None: every rank drew the same tensor, so it cuts its own shard and nothing is sent.
            value = value.to(parameter.device)
            shard = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(shard.to_local())
        else:
            parameter.copy_(value)
