"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with decay groups."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW

from pretrainer.config import TrainConfig


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to norms, biases and embeddings (a tied output layer is one)."""
    return parameter.ndim >= 2 and not name.startswith("embed.")


def build_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW with its state in place, so that a checkpoint of step 0 is complete. Call it after sharding.

    The learning rate is set at every step by the schedule. Fused kernels are used where every parameter's device has
    them.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for _, p in named)
    optimizer = AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)
    init_state(optimizer)
    return optimizer


@torch.no_grad()
def init_state(optimizer: AdamW) -> None:
    """Zero moments and step counters: what AdamW would make lazily at its first update."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
