"""Evenly used experts: auxiliary losses and the bias on the router's choice, and who was sent where.

Everything here is summed over valid tokens and divided once per step by the global number of valid targets, like the
loss itself. A term over a group of tokens (a sequence, or a whole slot block) weighs as many tokens as are valid in
it; groups are never cut by a micro-batch or a rank, so no value depends on either.

Shapes: L blocks, b rows of a micro-batch, S tokens, E experts, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretrainer.config import MoeConfig
from pretrainer.model.moe import Router, Routing, choices, router_scores
from pretrainer.model.ring import Ring


class GroupCounts(NamedTuple):
    """How often the valid tokens of a group chose each expert."""

    chosen: Tensor  # [L, E] int64
    tokens: Tensor  # int64 scalar, valid tokens of the group


def expert_counts(routings: Sequence[Routing], valid: Tensor) -> Tensor:
    """[L, E] int64: how often the tokens that are true in valid [b, S] chose each expert."""
    return torch.stack([_valid_choices(r, valid).sum((0, 1)) for r in routings])


def _valid_choices(routing: Routing, valid: Tensor) -> Tensor:
    """Bool [b, S, E], true where a valid token chose the expert."""
    return choices(routing.chosen, routing.logits.shape[-1]) & valid[..., None]


def _balance_sum(routing: Routing, valid: Tensor, moe: MoeConfig, chosen: Tensor, tokens: Tensor) -> Tensor:
    """Sum over groups of n E sum_e f_e P_e; chosen [1 or b, E] and tokens [1 or b] are of the group of each row.

    f_e = chosen / (k n) is the share of an expert, P_e the mean of its normalised score: 1 when all are used alike
    (Fedus et al. 2021, arXiv:2101.03961, eq. 4). n P_e is the sum of scores, so the factor n is in it already. f has
    no gradient.
    """
    scores = router_scores(routing.logits, moe)
    share = torch.where(valid[..., None], scores / scores.sum(-1, keepdim=True), 0.0).sum(1)  # [b, E]
    used = chosen / (moe.top_k * tokens.clamp(min=1))[:, None]
    return moe.experts * (used * share).sum()


def auxiliary_sum(
    routings: Sequence[Routing], valid: Tensor, moe: MoeConfig, slot_block: GroupCounts | None = None,
    ring: Ring | None = None,
) -> Tensor:  # fmt: skip
    """What balance and z-loss add to the summed loss of a micro-batch; float32 scalar, summed over the blocks.

    valid [b, S] is true where a token carries loss. With balance=slot_block, `slot_block` has the counts over all
    micro-batches of the slot block; without it the micro-batch is the whole one. With a ring, tokens are this rank's
    part of the rows, and the result is its part of the sum. balance=sequence is the sequence-wise
    loss of DeepSeek-V3 (arXiv:2412.19437, eq. 17). z-loss: Zoph et al. 2022, arXiv:2202.08906, eq. 5.
    """
    total = torch.zeros((), device=valid.device)
    for layer, routing in enumerate(routings):
        if moe.balance in ("sequence", "slot_block"):
            if moe.balance == "sequence":
                chosen, tokens = _valid_choices(routing, valid).sum(1), valid.sum(1)
            elif slot_block is None:
                chosen, tokens = _valid_choices(routing, valid).sum((0, 1))[None], valid.sum()[None]
            else:
                chosen, tokens = slot_block.chosen[layer][None], slot_block.tokens[None]
            if ring is not None and (slot_block is None or moe.balance == "sequence"):
                chosen, tokens = ring.sum(chosen), ring.sum(tokens)
            total = total + moe.balance_weight * _balance_sum(routing, valid, moe, chosen, tokens)
        squared = routing.logits.logsumexp(-1).square()
        total = total + moe.z_loss_weight * torch.where(valid, squared, 0.0).sum()
    return total


def moved_bias(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    """The bias [E] after a step in which the experts were chosen counts [E] times by all tokens of all ranks.

    Up by the rate where an expert was used less than the mean, down where more (Wang et al. 2024, arXiv:2408.15664,
    algorithm 1).
    """
    # E count against their sum: whole numbers, so that "as the mean" is exact at every E.
    return bias + rate * torch.sign(counts.sum() - counts.numel() * counts)


@torch.no_grad()
def move_expert_biases(routers: Sequence[Router], counts: Tensor, applied: Tensor) -> None:
    """Move the bias of every block's router after a step, in place; counts [L, E], see `moved_bias`.

    applied: bool scalar, false where the step was not applied and the biases stay; the host does not ask for it.
    """
    for router, used in zip(routers, counts, strict=True):
        assert router.expert_bias is not None
        moved = moved_bias(router.expert_bias, used, router.moe.bias_rate)
        router.expert_bias.copy_(torch.where(applied, moved, router.expert_bias))
