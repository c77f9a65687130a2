"""Who sees whom: causal or not, sliding window, documents of a packed row, ALiBi; as the kernel of the device wants it.

SDPA takes a dense mask, or none at all for plain causal attention, where it runs its fastest kernels. On CUDA anything
else goes through FlexAttention (Dong et al. 2024, arXiv:2412.05496), which skips the tiles that nobody sees and never
builds a mask of S x S elements.

Shapes: B rows, Q queries (the last ones of S tokens), N query heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pretrainer.config import ModelConfig
from pretrainer.model.positions import alibi_slopes

Kernel = Literal["sdpa", "flex"]


@dataclass(frozen=True)
class Pattern:
    """What a block's attention looks like, whatever the rows hold."""

    causal: bool = True
    window: int | None = None
    slopes: tuple[float, ...] = ()  # of ALiBi, one per query head

    @staticmethod
    def of(config: ModelConfig, layer: int) -> Pattern:
        slopes = tuple(alibi_slopes(config.heads)) if config.positions == "alibi" else ()
        return Pattern(config.causal, config.window(layer), slopes)


@dataclass(frozen=True)
class DenseMask:
    """For scaled_dot_product_attention."""

    values: Tensor | None  # bool, true where seen, or float, added to the scores; [1 or B, 1 or N, Q, S]
    causal: bool = False  # with values None: the plain triangle


@dataclass(frozen=True)
class FlexMask:
    """For flex_attention."""

    blocks: BlockMask
    score_mod: Callable[..., Tensor] | None


Mask = DenseMask | FlexMask


def _distances(queries: int, length: int, device: torch.device) -> Tensor:
    keys = torch.arange(length, device=device)
    return keys[length - queries :, None] - keys  # [Q, S], positive where the key is earlier


@cache
def _slopes(slopes: tuple[float, ...], device: torch.device) -> Tensor:
    # Once, not once a forward pass: the host waits for a GPU whenever it sends it numbers.
    return torch.tensor(slopes, device=device)


def dense_mask(
    pattern: Pattern, queries: int, length: int, document_ids: Tensor | None, device: torch.device
) -> DenseMask:
    """The mask of the last `queries` of `length` tokens; document_ids [B, S] keep attention inside documents."""
    window = pattern.window if pattern.window is not None and pattern.window < length else None
    if document_ids is None and window is None and not pattern.slopes:
        # A single new token may see every cached one, so it needs no mask.
        return DenseMask(None, pattern.causal and queries > 1)
    distances = _distances(queries, length, device)
    seen = distances >= 0 if pattern.causal else torch.ones_like(distances, dtype=torch.bool)
    if window is not None:
        seen = seen & (distances.abs() < window)
    seen = seen[None, None]
    if document_ids is not None:
        seen = seen & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if not pattern.slopes:
        return DenseMask(seen)
    slopes = _slopes(pattern.slopes, device)[:, None, None]
    return DenseMask(torch.where(seen, -slopes * distances.abs(), float("-inf")))


def _flex_mods(
    pattern: Pattern, document_ids: Tensor | None, device: torch.device
) -> tuple[Callable[..., Tensor], Callable[..., Tensor] | None]:
    slopes = _slopes(pattern.slopes, device)

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        result = query >= key if pattern.causal else query == query
        if pattern.window is not None:
            result = result & ((query - key).abs() < pattern.window)
        if document_ids is not None:
            result = result & (document_ids[row, query] == document_ids[row, key])
        return result

    def biased(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes[head] * (query - key).abs()

    return seen, biased if pattern.slopes else None


@cache
def _for_device(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    # Uncompiled, FlexAttention builds the whole score matrix; on the CPU it is run so by the tests alone.
    return torch.compile(function, dynamic=False) if device_type == "cuda" else function


def flex_mask(pattern: Pattern, length: int, document_ids: Tensor | None, device: torch.device) -> FlexMask:
    """The same mask for whole rows of `length` tokens, as tiles that FlexAttention visits."""
    seen, score_mod = _flex_mods(pattern, document_ids, device)
    rows = None if document_ids is None else document_ids.shape[0]
    make = _for_device(create_block_mask, device.type)
    return FlexMask(make(seen, rows, None, length, length, device=device), score_mod)


def kernel_for(
    pattern: Pattern, queries: int, length: int, has_documents: bool, device: torch.device, head_width: int
) -> Kernel:
    """Flex on CUDA where the mask is more than the plain triangle and the kernel can (whole rows, heads of 16 up)."""
    plain = not has_documents and not pattern.slopes and (pattern.window is None or pattern.window >= length)
    return "flex" if device.type == "cuda" and not plain and queries == length and head_width >= 16 else "sdpa"


def make_mask(
    pattern: Pattern, queries: int, length: int, document_ids: Tensor | None, device: torch.device, head_width: int
) -> Mask:
    """The mask for the kernel that is fastest on the device."""
    kernel = kernel_for(pattern, queries, length, document_ids is not None, device, head_width)
    if kernel == "flex":
        return flex_mask(pattern, length, document_ids, device)
    return dense_mask(pattern, queries, length, document_ids, device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v: [B, N, Q, D] from q [B, N, Q, D] and k, v [B, M, S, D], where M divides N."""
    shared = k.shape[1] != q.shape[1]
    if isinstance(mask, FlexMask):
        run = _for_device(flex_attention, q.device.type)
        return run(q, k, v, score_mod=mask.score_mod, block_mask=mask.blocks, enable_gqa=shared)
    values = mask.values
    if values is not None and values.dtype != torch.bool:
        values = values.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=values, is_causal=mask.causal, enable_gqa=shared)
