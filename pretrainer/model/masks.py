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
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pretrainer.config import ModelConfig
from pretrainer.model.compiled import for_device
from pretrainer.model.positions import alibi_slopes
from pretrainer.model.ring import Ring, RingMask, dense_round, merge

Kernel = Literal["sdpa", "flex"]
FLEX_HEAD_WIDTH = 16  # the narrowest head that FlexAttention takes on CUDA


@dataclass(frozen=True)
class Pattern:
    """What a block's attention looks like, whatever the rows hold."""

    causal: bool = True
    window: int | None = None
    slopes: tuple[float, ...] = ()  # of ALiBi, one per query head

    @staticmethod
    def of(config: ModelConfig, layer: int, heads: slice = slice(None)) -> Pattern:
        """heads: those that there are on this rank."""
        slopes = tuple(alibi_slopes(config.heads)[heads]) if config.positions == "alibi" else ()
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


Mask = DenseMask | FlexMask | RingMask


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
    keys = torch.arange(length, device=device)
    return DenseMask(_dense_values(pattern, keys[length - queries :], keys, document_ids))


def _dense_values(pattern: Pattern, queries: Tensor, keys: Tensor, document_ids: Tensor | None) -> Tensor:
    """The mask of queries and keys that stand at places [Q] and [S] of their rows; document_ids are of whole rows."""
    distances = queries[:, None] - keys  # [Q, S], positive where the key is earlier
    seen = distances >= 0 if pattern.causal else torch.ones_like(distances, dtype=torch.bool)
    if pattern.window is not None:
        seen = seen & (distances.abs() < pattern.window)
    seen = seen[None, None]
    if document_ids is not None:
        seen = seen & (document_ids[:, None, queries, None] == document_ids[:, None, None, keys])
    if not pattern.slopes:
        return seen
    slopes = _slopes(pattern.slopes, queries.device)[:, None, None]
    return torch.where(seen, -slopes * distances.abs(), float("-inf"))


def _flex_mods(
    pattern: Pattern, document_ids: Tensor | None, device: torch.device, places: tuple[Tensor, Tensor] | None = None
) -> tuple[Callable[..., Tensor], Callable[..., Tensor] | None]:
    slopes = _slopes(pattern.slopes, device)

    def placed(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return (query, key) if places is None else (places[0][query], places[1][key])

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = placed(query, key)
        result = query >= key if pattern.causal else query == query
        if pattern.window is not None:
            result = result & ((query - key).abs() < pattern.window)
        if document_ids is not None:
            result = result & (document_ids[row, query] == document_ids[row, key])
        return result

    def biased(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = placed(query, key)
        return score - slopes[head] * (query - key).abs()

    return seen, biased if pattern.slopes else None


def flex_mask(
    pattern: Pattern, length: int, document_ids: Tensor | None, device: torch.device,
    places: tuple[Tensor, Tensor] | None = None,
) -> FlexMask:  # fmt: skip
    """The same mask for whole rows of `length` tokens, as tiles that FlexAttention visits.

    With places [length] of queries and of keys, document_ids are of the rows that these places are in.
    """
    seen, score_mod = _flex_mods(pattern, document_ids, device, places)
    rows = None if document_ids is None else document_ids.shape[0]
    make = for_device(create_block_mask, device.type)
    return FlexMask(make(seen, rows, None, length, length, device=device), score_mod)


def ring_mask(
    pattern: Pattern, ring: Ring, tokens: int, document_ids: Tensor | None, device: torch.device, head_width: int
) -> RingMask:
    """The mask of a rank that holds `tokens` of each row; document_ids are of whole rows."""
    length = tokens * ring.size
    queries = ring.places(length, ring.rank, device)
    rounds: list[DenseMask | FlexMask] = []
    for back in range(ring.size):
        keys = ring.places(length, (ring.rank - back) % ring.size, device)
        if device.type == "cuda" and head_width >= FLEX_HEAD_WIDTH:
            rounds.append(flex_mask(pattern, tokens, document_ids, device, (queries, keys)))
        else:
            rounds.append(DenseMask(_dense_values(pattern, queries, keys, document_ids)))
    return RingMask(ring, rounds)


def kernel_for(
    pattern: Pattern, queries: int, length: int, has_documents: bool, device: torch.device, head_width: int
) -> Kernel:
    """Flex on CUDA where the mask is more than the plain triangle and the kernel can (whole rows, heads of 16 up)."""
    plain = not has_documents and not pattern.slopes and (pattern.window is None or pattern.window >= length)
    can = device.type == "cuda" and queries == length and head_width >= FLEX_HEAD_WIDTH
    return "flex" if can and not plain else "sdpa"


def make_mask(
    pattern: Pattern, queries: int, length: int, document_ids: Tensor | None, device: torch.device, head_width: int,
    ring: Ring | None = None,
) -> Mask:  # fmt: skip
    """The mask for the kernel that is fastest on the device."""
    if ring is not None:
        return ring_mask(pattern, ring, queries, document_ids, device, head_width)
    kernel = kernel_for(pattern, queries, length, document_ids is not None, device, head_width)
    if kernel == "flex":
        return flex_mask(pattern, length, document_ids, device)
    return dense_mask(pattern, queries, length, document_ids, device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask) v: [B, N, Q, D] from q [B, N, Q, D] and k, v [B, M, S, D], where M divides N."""
    if isinstance(mask, RingMask):
        return _attend_in_rounds(q, k, v, mask)
    shared = k.shape[1] != q.shape[1]
    if isinstance(mask, FlexMask):
        run = for_device(flex_attention, q.device.type)
        return run(q, k, v, score_mod=mask.score_mod, block_mask=mask.blocks, enable_gqa=shared)
    values = mask.values
    if values is not None and values.dtype != torch.bool:
        values = values.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=values, is_causal=mask.causal, enable_gqa=shared)


def _attend_in_rounds(q: Tensor, k: Tensor, v: Tensor, mask: RingMask) -> Tensor:
    held, result = torch.stack((k, v)), None
    for index, one in enumerate(mask.rounds):
        passed = mask.ring.pass_on(held) if index + 1 < len(mask.rounds) else held
        found = _attend_round(q, held[0], held[1], one)
        result, held = found if result is None else merge(*result, *found), passed
    assert result is not None
    return result[0].to(q.dtype)


def _attend_round(q: Tensor, k: Tensor, v: Tensor, mask: DenseMask | FlexMask) -> tuple[Tensor, Tensor]:
    if isinstance(mask, DenseMask):
        assert mask.values is not None
        return dense_round(q, k, v, mask.values)
    run, shared = for_device(flex_attention, q.device.type), k.shape[1] != q.shape[1]
    out, lse = run(
        q, k, v, score_mod=mask.score_mod, block_mask=mask.blocks, enable_gqa=shared, return_lse=True
    )
    return out.float(), lse
