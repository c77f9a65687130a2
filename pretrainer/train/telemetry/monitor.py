"""A look at the training itself: loss by source at every step; now and then norms, activations, noise. Torch alone.

The gradient noise scale (McCandlish et al. 2018, arXiv:1812.06162, appendix A) is tr(S) / |G|^2, with G the true
gradient and S the covariance of a token's own. Two batch sizes tell them apart: E |g_B|^2 = |G|^2 + tr(S) / B. The big
one is the step's global batch, the small ones are single slot blocks, whose gradients a close look computes once more,
each alone and over all ranks. A slot block is the same at every number of workers, and so is what is measured. The
ratio is the batch size in tokens up to which twice the batch nearly halves the steps that are needed; both parts are
averaged over several looks before they are divided, as the paper does.
"""

from __future__ import annotations

import logging
import math
import re
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrainer.config import MonitorConfig
from pretrainer.model.transformer import Transformer
from pretrainer.train.feed import Prepared
from pretrainer.train.optim.adamw import local
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.sharding.experts import take_expert_tokens
from pretrainer.train.step import (
    IGNORE,
    MicroBatch,
    accumulate_runs,
    gradient_norm,
    sum_over_ranks,
    token_group,
)

log = logging.getLogger(__name__)

AVERAGED_LOOKS = 20
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_of(name: str) -> str:
    """Which layer a parameter belongs to: block00, block01 …, or the first part of its name."""
    found = _BLOCK.match(name)
    return f"block{int(found[1]):02}" if found else name.split(".")[0]


def layer_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer -> L2 norm of its tensors over all ranks' shards; every rank calls it."""
    layers: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        layers.setdefault(layer_of(name), []).append(tensor)
    norms = {layer: torch.nn.utils.get_total_norm(several) for layer, several in layers.items()}
    return {layer: norm.full_tensor() if isinstance(norm, DTensor) else norm for layer, norm in norms.items()}


def _like(parameter: Tensor, mine: Tensor) -> Tensor:
    """This rank's elements as a tensor that is laid out as the parameter is."""
    if not isinstance(parameter, DTensor):
        return mine
    return DTensor.from_local(
        mine, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


@dataclass
class Noise:
    """Sums for the noise scale; one of each look, newest last."""

    signal: deque[float] = field(default_factory=lambda: deque(maxlen=AVERAGED_LOOKS))  # |G|^2
    spread: deque[float] = field(default_factory=lambda: deque(maxlen=AVERAGED_LOOKS))  # tr(S), for one token

    def look(self, probes: Sequence[tuple[float, float]], grad_norm: float, targets: float) -> None:
        """One look: (squared norm, targets) of single slot blocks, norm and targets of the global batch.

        A slot block of n targets is to have |G|^2 + tr(S) / n, so the harmonic mean of n is the small batch.
        """
        told = [(norm, count) for norm, count in probes if count > 0]
        if told:
            small = sum(norm for norm, _count in told) / len(told)
            self.add(small, len(told) / sum(1 / count for _norm, count in told), grad_norm**2, targets)

    def add(self, small: float, small_tokens: float, big: float, big_tokens: float) -> None:
        """Squared norms of the mean gradient over so many tokens, small and big; what is not finite says nothing."""
        if not 0 < small_tokens < big_tokens or not math.isfinite(small + big):
            return
        self.signal.append((big_tokens * big - small_tokens * small) / (big_tokens - small_tokens))
        self.spread.append((small - big) / (1 / small_tokens - 1 / big_tokens))

    @property
    def scale_tokens(self) -> float | None:
        """tr(S) / |G|^2; None while the averages say nothing (the noise of few looks can be above the signal)."""
        signal, spread = sum(self.signal), sum(self.spread)
        return spread / signal if self.signal and signal > 0 and spread > 0 else None


class Monitor:
    """Observes steps (step.Observer). Every rank has one and calls the same methods at the same steps."""

    def __init__(
        self,
        config: MonitorConfig,
        model: nn.Module,
        sources: int,
        source_of: Callable[[int], int],
        device: torch.device,
    ) -> None:
        """source_of: number of a slot block in the run -> number of its source."""
        self.config, self.model, self.source_of = config, model, source_of
        self.sums = torch.zeros(2, sources, dtype=torch.float64, device=device)  # nats, targets
        self.seen: dict[str, dict[str, Tensor]] | None = None  # of the close look that is going on
        self.before: dict[str, Tensor] = {}
        self.probes: Tensor | None = None
        self.since_s, self.spent_s = time.perf_counter(), 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Everything that a monitor does is inside, so that it knows what it costs."""
        began_s = time.perf_counter()
        yield
        self.spent_s += time.perf_counter() - began_s

    def share(self) -> float:
        """Of the time since the last call, what the monitor took on the host; a look waits for the device."""
        now_s, spent_s = time.perf_counter(), self.spent_s
        whole_s, self.since_s, self.spent_s = now_s - self.since_s, now_s, 0.0
        return spent_s / max(1e-9, whole_s)

    # ------------------------------------------------------------------------------------------------- every step

    def passed(self, batch: MicroBatch, nll: Tensor) -> None:
        with self.counted():
            source = self.source_of(batch.slot_block)
            self.sums[0, source] += nll
            self.sums[1, source] += (batch.targets != IGNORE).sum()

    def gradient(self, model: nn.Module) -> None:
        if self.seen is not None:
            with self.counted():
                given = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
                self.seen["gradient"] = layer_norms(given)

    def source_losses(self) -> list[float | None]:
        """By source, nats per target since the last call; None without targets. Every rank calls it, and it waits."""
        with self.counted():
            total = sum_over_ranks(self.sums.clone(), token_group(self.model)).tolist()
            self.sums.zero_()
        return [nats / targets if targets else None for nats, targets in zip(*total, strict=True)]

    # ------------------------------------------------------------------------------------------------- a close look

    def is_due(self, step: int) -> bool:
        """Whether this step is looked at closely: the last of every monitor.every_steps."""
        return self.config.every_steps > 0 and (step + 1) % self.config.every_steps == 0

    def begin(self, step: int, per_step: int, prepared: Sequence[Prepared], loss_scale: LossScale | None) -> None:
        """Before the step is trained; prepared is what this rank has of it."""
        self.seen, first = {}, step * per_step
        with self.counted():
            if self.config.noise_slot_blocks:
                self._probe(range(first, first + min(self.config.noise_slot_blocks, per_step)), prepared, loss_scale)
            self.before = {name: local(p).detach().to("cpu", copy=True) for name, p in self.model.named_parameters()}

    def end(self) -> dict[str, Any]:
        """After it: parameters/<layer>, update/<layer>, gradient/<layer>, activations/<layer>/rms and /max as numbers,
        and `probes`: (squared norm, targets) of the slot blocks that were computed alone. It waits for the device."""
        with self.counted():
            return self._end()

    def _end(self) -> dict[str, Any]:
        assert self.seen is not None
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        moved = {n: _like(p, local(p) - self.before[n].to(p.device)) for n, p in parameters.items()}
        found = {**self.seen, "parameters": layer_norms(parameters), "update": layer_norms(moved)}
        values = {f"{what}/{layer}": float(norm) for what, norms in found.items() for layer, norm in norms.items()}
        probes = [] if self.probes is None else self.probes.tolist()
        self.seen, self.before, self.probes = None, {}, None
        return {"values": values, "probes": probes}

    def _probe(self, numbers: range, prepared: Sequence[Prepared], loss_scale: LossScale | None) -> None:
        """The gradient of each of these slot blocks alone; a rank that has not got it runs dummies."""
        mine = {one.micro_batches[0].slot_block: one for one in prepared}
        activations = Activations(self.model, self.sums.device)
        probes = []
        for number in numbers:
            one, live = mine.get(number, prepared[-1]), number in mine
            with activations.watched(live):
                norm, count = self._alone(one, live, loss_scale)
            probes.append(torch.stack([norm.double() ** 2 / count**2, count]))
        self.probes = torch.stack(probes)
        assert self.seen is not None
        self.seen |= activations.reduced()

    def _alone(self, one: Prepared, live: bool, loss_scale: LossScale | None) -> tuple[Tensor, Tensor]:
        """(norm of a slot block's summed gradient, its targets), over all ranks; leaves no trace in the model."""
        model, scale = self.model, None if loss_scale is None else loss_scale.scale
        accumulate_runs(model, [(batch, live) for batch in one.micro_batches], 1.0, scale)
        take_expert_tokens(model)
        norm = gradient_norm(model.parameters())
        norm = norm if scale is None else norm / scale
        if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):  # a replica, or alone
            norm = sum_over_ranks(norm.double() ** 2).sqrt()
        model.zero_grad(set_to_none=True)
        targets = torch.stack([(batch.targets != IGNORE).sum() for batch in one.micro_batches]).sum() * live
        return norm, sum_over_ranks(targets.double(), token_group(model))


def memory_use(device: torch.device) -> dict[str, float]:
    """Peak bytes of this process on the host; on a GPU those since the last call, and its utilisation (0 to 1) where
    NVML says it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type != "cuda":
        return {"host_peak_bytes": peak}
    used = float(torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return {"host_peak_bytes": peak, "device_peak_bytes": used, **_utilization(device)}


def _utilization(device: torch.device) -> dict[str, float]:
    try:
        return {"device_utilization": torch.cuda.utilization(device) / 100}
    except Exception as error:  # pynvml has errors of its own, and a number for a chart must not end a run
        log.debug("the GPU's utilisation is not known: %r", error)
        return {}


class Activations:
    """Root mean square and largest magnitude of what each block gives, over passes and ranks."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model if isinstance(model, Transformer) else None
        blocks = 0 if self.model is None else len(self.model.blocks)
        self.sums = torch.zeros(2, blocks, dtype=torch.float64, device=device)  # squares, elements
        self.largest = torch.zeros(blocks, dtype=torch.float64, device=device)

    @contextmanager
    def watched(self, live: bool) -> Iterator[None]:
        """Count the passes inside, unless they are dummies."""
        if self.model is not None and live:
            self.model.look = self._add
        try:
            yield
        finally:
            if self.model is not None:
                self.model.look = None

    @torch.no_grad()
    def _add(self, layer: int, x: Tensor) -> None:
        x = x.float()
        self.sums[0, layer] += (x**2).sum(dtype=torch.float64)
        self.sums[1, layer] += x.numel()
        self.largest[layer] = torch.maximum(self.largest[layer], x.abs().amax().double())

    def reduced(self) -> dict[str, dict[str, Tensor]]:
        """Every rank calls it."""
        if self.model is None:
            return {}
        group = token_group(self.model)
        squares, counts = sum_over_ranks(self.sums, group)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.largest, op=dist.ReduceOp.MAX, group=group)
        names = [f"block{layer:02}" for layer in range(len(self.largest))]
        rms = (squares / counts.clamp(min=1)).sqrt()
        return {
            "activation_rms": dict(zip(names, rms, strict=True)),
            "activation_max": dict(zip(names, self.largest, strict=True)),
        }
