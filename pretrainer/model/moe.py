"""Mixture of experts in place of a feed-forward layer (Shazeer et al. 2017, arXiv:1701.06538), dropless.

Every token reaches all experts that it chose: there is no capacity, so a token's output depends on no other token, and
no value on the size of the micro-batch. What keeps experts evenly used is in balance.py.

Shapes: T tokens, H hidden, E experts, k chosen ones, F width of an expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrainer.config import ModelConfig, MoeConfig
from pretrainer.model.cast import like
from pretrainer.model.ffn import ACTIVATIONS, FeedForward


class Routing(NamedTuple):
    """What a block's router did with the tokens of a forward pass."""

    logits: Tensor  # [B, S, E] float32
    chosen: Tensor  # [B, S, k] int64


def _here(weight: Tensor) -> Tensor:
    """This rank's part of a weight that tensor parallelism has made a DTensor."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def router_scores(logits: Tensor, moe: MoeConfig) -> Tensor:
    """Positive scores of all experts from logits [..., E]."""
    return logits.softmax(-1) if moe.score == "softmax" else logits.sigmoid()


def choices(chosen: Tensor, experts: int) -> Tensor:
    """Bool [..., E], true where an expert is among the chosen [..., k]."""
    empty = torch.zeros((*chosen.shape[:-1], experts), dtype=torch.bool, device=chosen.device)
    return empty.scatter(-1, chosen, True)


class Router(nn.Module):
    """Chooses k experts per token and weighs them; always in float32, where close scores stay apart."""

    expert_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moe = config.moe
        self.weight = nn.Parameter(torch.empty(config.moe.experts, config.hidden))
        # A buffer: it follows the counts of experts, not a gradient, and FSDP must not cast it.
        self.register_buffer("expert_bias", torch.zeros(config.moe.experts) if config.moe.balance == "bias" else None)

    def forward(self, x: Tensor) -> tuple[Routing, Tensor]:
        """(routing, weights [..., k] float32 of the chosen experts) of x [..., H]."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), like(_here(self.weight), x).float())
        scores = router_scores(logits, self.moe)
        # The bias moves the choice and never the weights (Wang et al. 2024, arXiv:2408.15664).
        preference = scores if self.expert_bias is None else scores + self.expert_bias
        chosen = preference.detach().topk(self.moe.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.moe.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return Routing(logits, chosen), weights


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """[T, out] from x [T, in], whose rows belong to the experts in turn, counts [E] each, and weight [E, out, in].

    On CUDA one grouped kernel, which needs no number on the host and takes bfloat16 alone; elsewhere one product per
    expert. A weight that tensor parallelism has split counts with this rank's part.
    """
    weight = like(_here(weight), x)
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x, weight = (t.to(torch.get_autocast_dtype("cuda")) for t in (x, weight))
    if x.is_cuda and x.dtype == torch.bfloat16:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    parts = x.split(counts.tolist())
    return torch.cat([F.linear(part, own) for part, own in zip(parts, weight.unbind(), strict=True)])


class Experts(nn.Module):
    """E feed-forward layers without biases, each matrix of all of them as one tensor."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width = config.moe.experts, config.ffn_width
        self.activation = ACTIVATIONS[config.ffn]
        self.gate = nn.Parameter(torch.empty(experts, width, config.hidden)) if config.gated else None
        self.up = nn.Parameter(torch.empty(experts, width, config.hidden))
        self.down = nn.Parameter(torch.empty(experts, config.hidden, width))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """[T, H] to [T, H]: the first counts[0] rows through the first expert, and so on."""
        up = grouped_linear(x, self.up, counts)
        gate = None if self.gate is None else grouped_linear(x, self.gate, counts)
        inner = self.activation(up) if gate is None else self.activation(gate) * up
        return grouped_linear(inner, self.down, counts)


class MixtureOfExperts(nn.Module):
    """Weighted sum of each token's chosen experts, plus the shared ones; [B, S, H] to ([B, S, H], routing)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moe = config.moe
        self.router = Router(config)
        self.experts = Experts(config)
        shared = config.moe.shared_experts
        self.shared = FeedForward(config, shared * config.ffn_width) if shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        routing, weights = self.router(x)
        out = self._routed(x.flatten(0, 1), routing.chosen.flatten(0, 1), weights.flatten(0, 1)).view_as(x)
        return (out if self.shared is None else out + self.shared(x)), routing

    def _routed(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        top_k, width = self.moe.top_k, x.shape[-1]
        order = chosen.flatten().argsort(stable=True)  # [T k], by expert
        counts = choices(chosen, self.moe.experts).sum(0)
        # Both permutations name every row once, so their backward passes add nothing in an order that could vary.
        copies = x[:, None].expand(-1, top_k, -1).reshape(-1, width)[order]
        out = self.experts(copies, counts)[order.argsort()].unflatten(0, (-1, top_k))  # [T, k, H]
        return (out * weights[..., None].to(out.dtype)).sum(1).to(x.dtype)
