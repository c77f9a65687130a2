"""The plan: from what is asked for to a model, a batch, a cluster, days and dollars.

Compute is C = 6 N D where laws are concerned. Time and cost count attention too (`flops_per_token`), and where compute
is given it pays for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError
from pretrainer.model.flops import flops_per_token
from pretrainer.model.memory_plan import MemoryPlan
from pretrainer.model.presets import block_parameters, parameter_count, resolve
from pretrainer.plan.batch import PLANNED_BY, warmup_steps
from pretrainer.plan.budget import Ask, compute_of, resolve_ask
from pretrainer.plan.cluster import Load, choose_run
from pretrainer.plan.hardware import Cost, Gpu, cost
from pretrainer.plan.laws import REFIT, Split
from pretrainer.plan.memory import Arrangement, memory_of
from pretrainer.plan.proposal import NEAR, SMALLEST, preset_model, propose, size_for, smallest
from pretrainer.plan.repeats import effective, effective_parameters
from pretrainer.plan.request import Impossible, Request
from pretrainer.plan.units import dollars, duration, short

ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    request: Request
    gpu: Gpu
    wanted: Split
    """What the ask and the law give, before there is a model."""
    model: ModelConfig
    """Not resolved: a preset stays one."""
    vocab_size: int
    run: Arrangement
    steps: int
    learning_rate: float

    @property
    def resolved(self) -> ModelConfig:
        return resolve(self.model)

    @property
    def parameters(self) -> int:
        return parameter_count(self.resolved, self.vocab_size)

    @property
    def tokens(self) -> int:
        return self.steps * self.run.batch_tokens

    @property
    def split(self) -> Split:
        return Split(self.parameters, self.tokens)

    @property
    def flops(self) -> float:
        """With attention."""
        return float(self.tokens * flops_per_token(self.resolved, self.vocab_size, self.run.seq_len))

    @property
    def cost(self) -> Cost:
        return cost(self.flops, self.gpu, self.run.gpus)

    @property
    def memory(self) -> MemoryPlan:
        return memory_of(self.resolved, self.vocab_size, self.run)

    @property
    def warmup_steps(self) -> int:
        return warmup_steps(self.steps)

    @property
    def passes(self) -> dict[str, float]:
        """How often the run goes through each source that is prepared."""
        return {one.source: one.share * self.tokens / one.tokens for one in self.request.base.available}

    @property
    def effective_tokens(self) -> float:
        """What the tokens are worth when sources are repeated, each for itself."""
        available = self.request.base.available
        return sum(effective(one.share * self.tokens, one.tokens) for one in available) if available else self.tokens

    @property
    def loss(self) -> float:
        """Predicted for the effective tokens, and the parameters that they are enough for."""
        unique = sum(one.tokens for one in self.request.base.available)
        enough = not 0 < unique < self.tokens
        parameters = self.parameters if enough else effective_parameters(REFIT, self.parameters, unique)
        return REFIT.loss(parameters, self.effective_tokens)

    @property
    def has_meaningful_loss(self) -> bool:
        """Far below the sizes that it was fitted to the law gives more than a model has that knows nothing."""
        return self.loss < math.log(self.vocab_size)

    @property
    def summary(self) -> str:
        return (
            f"{short(self.parameters)} parameters on {short(self.tokens)} tokens, {self.run.gpus:,} {self.gpu.name}, "
            f"{duration(self.cost.days)}, {dollars(self.cost.dollars)}"
        )


def make_plan(request: Request) -> Plan:
    """Raises ConfigError for what is impossible, with the nearest plan that is not."""
    try:
        return _plan(request)
    except Impossible as impossible:
        raise ConfigError(impossible.message + _nearest(impossible)) from None


def _nearest(impossible: Impossible) -> str:
    """A sentence about the first of the nearest requests that has a plan."""
    for request in impossible.nearest:
        try:
            plan = _plan(request)
        except Impossible:
            continue
        return f". Nearest possible plan: {plan.summary}, {plan.flops:.3g} FLOPs"
    return ""


def _plan(request: Request) -> Plan:
    gpu = find_gpu(request)
    sized = _sized(request, gpu)
    budget, per_token = compute_of(request.ask, gpu), sized.flops_per_token
    tokens = sized.wanted.tokens if budget is None or request.ask.tokens is not None else budget / per_token
    batch = PLANNED_BY(sized.parameters, tokens)
    load = Load(
        model=sized.resolved,
        vocab_size=sized.vocab_size,
        seq_len=sized.seq_len,
        batch_tokens=min(batch.tokens, tokens),
        flops=per_token * tokens,
    )
    run = choose_run(request, gpu, load)
    steps = tokens / run.batch_tokens
    return Plan(
        request=request,
        gpu=gpu,
        wanted=sized.wanted,
        model=sized.model,
        vocab_size=sized.vocab_size,
        run=run,
        steps=max(1, math.floor(steps) if request.ask.is_budget else math.ceil(steps)),
        learning_rate=float(f"{batch.learning_rate:.1e}"),  # a law is no more exact
    )


@dataclass(frozen=True, kw_only=True)
class _Sized:
    """A model for what is asked."""

    wanted: Split
    model: ModelConfig
    vocab_size: int
    seq_len: int

    @property
    def resolved(self) -> ModelConfig:
        return resolve(self.model)

    @property
    def parameters(self) -> int:
        return parameter_count(self.resolved, self.vocab_size)

    @property
    def flops_per_token(self) -> int:
        return flops_per_token(self.resolved, self.vocab_size, self.seq_len)


def _sized(request: Request, gpu: Gpu) -> _Sized:
    """Of the size at which the compute that is asked for pays for attention too, found in a few rounds.

    Where a larger model has longer sequences, the rounds may go to and fro: then it is the one whose tokens for each
    parameter are nearest to those asked for.
    """
    rounds = [_sized_for(request, gpu, 1.0)]
    for _ in range(ROUNDS if request.ask.is_budget else 0):
        rounds.append(_sized_for(request, gpu, 6 * rounds[-1].parameters / rounds[-1].flops_per_token))
    budget = compute_of(request.ask, gpu)
    if budget is None or request.ask.tokens is not None:
        return rounds[-1]

    def off(sized: _Sized) -> float:
        return abs(math.log(budget / sized.flops_per_token / sized.parameters / sized.wanted.ratio))

    return min(reversed(rounds), key=off)


def _sized_for(request: Request, gpu: Gpu, share: float) -> _Sized:
    """With this share of the compute for 6 N D."""
    ask = request.ask
    if ask.preset is None:
        wanted = resolve_ask(ask, gpu, share=share)
        vocab_size = _vocab_size(request, wanted.parameters)
        model = _proposal(request, wanted, vocab_size)
    else:
        model = preset_model(ask.preset)
        resolved = resolve(model)
        vocab_size = _vocab_size(request, resolved.layers * block_parameters(resolved))
        wanted = resolve_ask(ask, gpu, parameter_count(resolved, vocab_size), share)
    seq_len = _seq_len(request, resolve(model), wanted.parameters)
    return _Sized(wanted=wanted, model=model, vocab_size=vocab_size, seq_len=seq_len)


def find_gpu(request: Request) -> Gpu:
    """The GPU of the request, as fast as the request says. Raises Impossible."""
    prices = request.prices
    gpu = prices.find(request.gpu)
    if gpu is None:
        raise Impossible(
            f"--gpu={request.gpu!r} is not in the price table of {prices.date}: use one of {', '.join(prices.gpus)}, "
            "or give its line in a file with --prices",
            [replace(request, gpu=prices.nearest(request.gpu).name, tflops=None)],
        )
    if request.tflops is None:
        return gpu
    if request.tflops * 1e12 > gpu.peak_flops:
        raise Impossible(
            f"--tflops={request.tflops:g} is not possible: the peak of {gpu.name} is {gpu.peak_flops / 1e12:g} TFLOP/s",
            [replace(request, tflops=None)],
        )
    return replace(gpu, mfu=request.tflops * 1e12 / gpu.peak_flops)


def _vocab_size(request: Request, parameters: float) -> int:
    """Of the tokenizer that there is, of the config, or what goes with the size."""
    base = request.base
    return base.vocab_size or (size_for(parameters).vocab_size if base.is_example else base.config.tokenizer.vocab_size)


def _seq_len(request: Request, model: ModelConfig, parameters: float) -> int:
    """Of the config, or what goes with the size; no more than a table of positions has."""
    base = request.base
    wanted = size_for(parameters).seq_len if base.is_example else base.config.data.seq_len
    return min(wanted, model.context or wanted) if model.positions == "learned" else wanted


def _proposal(request: Request, wanted: Split, vocab_size: int) -> ModelConfig:
    """A model of that size. Raises Impossible below the smallest preset."""
    base, ask, least = request.base, request.ask, smallest(vocab_size)
    if wanted.parameters < least * (1 - NEAR):
        asks = [Ask(parameters=float(least), tokens=ask.tokens)] if ask.tokens else []
        asks.append(Ask(parameters=float(least), law=ask.law))
        raise Impossible(
            f"{wanted.flops:.3g} FLOPs make a model of {short(wanted.parameters)} parameters, and the smallest preset, "
            f"{SMALLEST}, has {short(least)} with a vocabulary of {vocab_size:,}",
            [replace(request, ask=other, gpus=None, days=None) for other in asks],
        )
    return propose(wanted.parameters, vocab_size, None if base.is_example else _style(base.config.model))


def _style(model: ModelConfig) -> ModelConfig:
    style = resolve(model)
    if style.moe.experts:
        raise ConfigError(
            f"model.moe.experts={style.moe.experts} cannot be planned for: the laws are of dense models, so use a "
            "dense config"
        )
    return style
