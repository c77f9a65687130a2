"""Optimizers by name. To add one, write a function (model, config) -> optimizer and list it in OPTIMIZERS.

An optimizer's state holds `step` and moments of the parameter's shape for every parameter from the start, so that a
checkpoint of step 0 is complete; the learning rate of all groups is set at every step by the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.train.optim.adamw import adamw_update
from pretrainer.train.optim.fused import FusedAdamW
from pretrainer.train.optim.muon import muon_update

# rule -> (moments that it keeps, how it updates one parameter)
Update = Callable[[Tensor, Tensor, dict[str, Tensor], dict[str, Any], Tensor | None], None]
RULES: dict[str, tuple[tuple[str, ...], Update]] = {
    "adamw": (("exp_avg", "exp_avg_sq"), adamw_update),
    "muon": (("momentum_buffer",), muon_update),
}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to norms, biases and embeddings (a tied output layer is one)."""
    return parameter.ndim >= 2 and not name.startswith("embed")


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon applies: to matrices inside the blocks, and to the matrices of experts [E, m, n]."""
    return parameter.ndim >= 2 and name.startswith("blocks.")


class RuleOptimizer(Optimizer):
    """Each parameter group names its `rule`; moments have the type `state_dtype`. Call it after sharding.

    As with torch's fused optimizers a float scalar `found_inf` may be set before a step: where it is not 0, the step
    changes nothing.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], state_dtype: torch.dtype, **defaults: Any) -> None:
        super().__init__([group for group in groups if group["params"]], defaults)
        self.state_dtype = state_dtype
        for group in self.param_groups:
            moments, _update = RULES[group["rule"]]
            for parameter in group["params"]:
                state: dict[str, Any] = {name: torch.zeros_like(parameter, dtype=state_dtype) for name in moments}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **state}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure is not supported
        """Update every parameter that has a gradient."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        skip = None if found_inf is None else found_inf != 0
        for group in self.param_groups:
            _moments, update = RULES[group["rule"]]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], group, skip)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which casts moments to the type of their parameter; they get theirs back, without a loss."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state |= {name: value.to(self.state_dtype) for name, value in state.items() if name != "step"}


def build_adamw(model: nn.Module, config: TrainConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with decay groups.

    float32 moments: torch's own.
    """
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = dict(lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)
    if config.optimizer_state == "bfloat16":
        return RuleOptimizer(groups, torch.bfloat16, rule="adamw", **settings)
    kind, fused = adamw_for({parameter.device.type for _, parameter in named})
    optimizer = kind(groups, fused=fused, **settings)
    init_state(optimizer)
    return optimizer


def adamw_for(devices: set[str]) -> tuple[type[AdamW], bool]:
    """torch's AdamW, and whether every device has its fused kernels; on the CPU without what the host spends around
    them (fused.py), which a GPU does not wait for."""
    return (FusedAdamW if devices == {"cpu"} else AdamW), devices <= {"cpu", "cuda"}


def build_muon(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Muon for hidden matrices, AdamW for embeddings, output layer, norms and biases, as one optimizer."""
    named = list(model.named_parameters())
    rest = [(n, p) for n, p in named if not is_hidden_matrix(n, p)]
    adamw: dict[str, Any] = dict(rule="adamw", betas=(config.beta1, config.beta2), eps=config.eps)
    groups = [
        {
            "params": [p for n, p in named if is_hidden_matrix(n, p)],
            "weight_decay": config.weight_decay,
            "rule": "muon",
            "momentum": config.muon_momentum,
        },
        {"params": [p for n, p in rest if decays(n, p)], "weight_decay": config.weight_decay, **adamw},
        {"params": [p for n, p in rest if not decays(n, p)], "weight_decay": 0.0, **adamw},
    ]
    return RuleOptimizer(groups, getattr(torch, config.optimizer_state), lr=config.learning_rate)


OPTIMIZERS: dict[str, Callable[[nn.Module, TrainConfig], Optimizer]] = {"adamw": build_adamw, "muon": build_muon}


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer of the config, its state complete; call it after sharding. Raises ConfigError for its name."""
    check_optimizer(config)
    return OPTIMIZERS[config.optimizer](model, config)


def check_optimizer(config: TrainConfig) -> None:
    """Raise ConfigError for an unknown train.optimizer."""
    if config.optimizer not in OPTIMIZERS:
        known = ", ".join(sorted(OPTIMIZERS))
        raise ConfigError(f"train.optimizer={config.optimizer!r} is not known: use one of {known}")


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
