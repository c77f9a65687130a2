"""A step of a mixture of experts, torch alone: auxiliary losses, tokens per expert, and the bias on their choice.

Every function takes any model and does nothing for a dense one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrainer.model.balance import GroupCounts, auxiliary_sum, expert_counts, move_expert_biases
from pretrainer.model.moe import Router
from pretrainer.model.ring import Ring
from pretrainer.model.transformer import Transformer


def _mixture(model: nn.Module) -> Transformer | None:
    return model if isinstance(model, Transformer) and model.config.moe.experts else None


def needs_slot_block_counts(model: nn.Module) -> bool:
    """Whether the loss of a micro-batch depends on the experts that its whole slot block chose."""
    mixture = _mixture(model)
    return mixture is not None and mixture.config.moe.balance == "slot_block"


def routed_counts(model: nn.Module, valid: Tensor, ring: Ring | None = None) -> GroupCounts:
    """What the forward pass that just ran adds to the counts of its slot block; valid [b, S] as in balance.py."""
    mixture = _mixture(model)
    assert mixture is not None
    counts = GroupCounts(expert_counts(mixture.routing, valid), valid.sum())
    return counts if ring is None else GroupCounts(*map(ring.sum, counts))


def auxiliary_loss(
    model: nn.Module, valid: Tensor, slot_block: GroupCounts | None, ring: Ring | None = None
) -> Tensor | None:
    """What the forward pass that just ran adds to the summed loss, None for a dense model.

    It also counts the pass's tokens per expert. A dummy gives a valid [b, S] that is false everywhere and adds 0.
    """
    mixture = _mixture(model)
    if mixture is None:
        return None
    counts = expert_counts(mixture.routing, valid)
    mixture.expert_tokens = counts if mixture.expert_tokens is None else mixture.expert_tokens + counts
    loss = auxiliary_sum(mixture.routing, valid, mixture.config.moe, slot_block, ring)
    mixture.routing = []  # it holds the graph of the pass
    return loss


def take_expert_tokens(model: nn.Module) -> Tensor | None:
    """[L, E] int64 on the device: how often this step's valid tokens of all ranks chose each expert, then from zero.

    Every rank calls it once per step; None for a dense model.
    """
    mixture = _mixture(model)
    if mixture is None:
        return None
    counts, mixture.expert_tokens = mixture.expert_tokens, None
    if counts is None:  # a rank without a slot block
        shape = (mixture.config.layers, mixture.config.moe.experts)
        counts = torch.zeros(shape, dtype=torch.int64, device=mixture.embed.weight.device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts, group=getattr(model, "token_group", None))
    return counts


def expert_load(expert_tokens: Sequence[Sequence[int]]) -> dict[str, float]:
    """Metrics of a step's tokens per expert: for each block its busiest and its idlest expert, over the mean (1: even).

    Two numbers per block, however many experts there are.
    """
    metrics: dict[str, float] = {}
    for layer, counts in enumerate(expert_tokens):
        mean = max(1, sum(counts)) / len(counts)
        metrics |= {
            f"experts/block{layer:02}/busiest": max(counts) / mean,
            f"experts/block{layer:02}/idlest": min(counts) / mean,
        }
    return metrics


def balance_experts(model: nn.Module, counts: Tensor | None, applied: Tensor) -> None:
    """With an update: move the bias on each router's choice, where the config asks for it and `applied` is true."""
    mixture = _mixture(model)
    if mixture is not None and counts is not None and mixture.config.moe.balance == "bias":
        move_expert_biases([module for module in mixture.modules() if isinstance(module, Router)], counts, applied)
