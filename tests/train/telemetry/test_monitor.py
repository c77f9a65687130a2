"""Losses by source, norms by layer, activations and the gradient noise scale: the same at every number of workers.

    python -m pytest -q tests/train/telemetry/test_monitor.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrainer.config import MonitorConfig
from pretrainer.errors import ConfigError
from pretrainer.model.transformer import Transformer
from pretrainer.train.batch import max_blocks, owned_blocks, to_tensor, valid_targets
from pretrainer.train.feed import Prepared
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.sharding.experts import take_expert_tokens
from pretrainer.train.step import accumulate_gradients, train_step
from pretrainer.train.stepper import Stepper
from pretrainer.train.telemetry import monitor as module
from pretrainer.train.telemetry.monitor import Monitor, Noise, layer_norms, layer_of
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import (
    BLOCKS_PER_STEP,
    CPU,
    MODEL,
    SEQUENCES,
    TRAIN,
    VOCAB,
    build,
    full_weights,
    pieces,
    slot_block,
)
from tests.train.specs import worker_spec
from tests.train.test_architectures import experts
from tests.train.test_no_host_read import bits

PROBES = 3
CONFIG = MonitorConfig(every_steps=1, noise_slot_blocks=PROBES)
TARGETS = [valid_targets(slot_block(number)) for number in range(4 * BLOCKS_PER_STEP)]
NO_DROPOUT = replace(MODEL, dropout=0.0)


def prepared(numbers: Any, step: int, micro: int = 1) -> list[Prepared]:
    blocks = [slot_block(n) for n in numbers]
    return [
        Prepared(to_tensor(b), pieces(n, step, micro), valid_targets(b)) for n, b in zip(numbers, blocks, strict=True)
    ]


def source_of(number: int) -> int:
    return int(number % 4 == 3)


def looked_steps(rank: int, world: int, steps: int = 2, model_config: Any = MODEL, train: Any = TRAIN) -> Any:
    """What a rank's monitor says of each step, its losses by source at the end, and the weights then."""
    model, optimizer = build(model_config, train)
    monitor, looks = Monitor(CONFIG, model, 2, source_of, CPU), []
    for step in range(steps):
        mine = prepared(owned_blocks(step, BLOCKS_PER_STEP, rank, world), step)
        monitor.begin(step, BLOCKS_PER_STEP, mine, None)
        micro = [one for p in mine for one in p.micro_batches]
        dummies = max_blocks(step, BLOCKS_PER_STEP, world) * SEQUENCES - len(micro)
        targets = sum(TARGETS[step * BLOCKS_PER_STEP : (step + 1) * BLOCKS_PER_STEP])
        result = train_step(model, optimizer, micro, dummies, targets, 1e-2, 1.0, observer=monitor)
        looks.append({**monitor.end(), "grad_norm": result.grad_norm, "loss": result.loss})
    return looks, monitor.source_losses(), full_weights(model)


@pytest.fixture(scope="module")
def alone() -> Any:
    return run_ranks(1, looked_steps)[0]


@pytest.mark.parametrize("world", [2, 3])
def test_every_number_of_workers_sees_the_same(alone: Any, world: int) -> None:
    looks, losses, weights = alone
    for found in run_ranks(world, looked_steps):
        for mine, one in zip(found[0], looks, strict=True):
            assert mine["values"] == pytest.approx(one["values"], rel=2e-3, abs=1e-7)
            assert np.array(mine["probes"]) == pytest.approx(np.array(one["probes"]), rel=2e-3)
        assert found[1] == pytest.approx(losses, rel=1e-5)
        assert all(np.allclose(found[2][name], weights[name], atol=3e-5) for name in weights)


def test_a_look_changes_nothing(alone: Any) -> None:
    plain = run_ranks(1, _plain_steps)[0]
    assert [look["loss"] for look in alone[0]] == plain[0]
    assert all((alone[2][name] == plain[1][name]).all() for name in plain[1])


def _plain_steps(rank: int, world: int) -> Any:
    model, optimizer = build()
    losses = []
    for step in range(2):
        micro = [m for p in prepared(owned_blocks(step, BLOCKS_PER_STEP, rank, world), step) for m in p.micro_batches]
        targets = sum(TARGETS[step * BLOCKS_PER_STEP : (step + 1) * BLOCKS_PER_STEP])
        losses.append(train_step(model, optimizer, micro, 0, targets, 1e-2, 1.0).loss)
    return losses, full_weights(model)


def test_a_probe_is_the_gradient_of_its_slot_block_alone(alone: Any) -> None:
    model = fill(Transformer(MODEL, VOCAB))
    for number in range(PROBES):
        accumulate_gradients(model, pieces(number, 0, 1), 0, float(TARGETS[number]))
        squared = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])) ** 2
        assert alone[0][0]["probes"][number] == pytest.approx([squared, TARGETS[number]], rel=1e-5)
        model.zero_grad()


def test_norms_are_those_of_each_layer(alone: Any) -> None:
    values, model = alone[0][0]["values"], fill(Transformer(MODEL, VOCAB))
    optimizer, before = build_optimizer(model, TRAIN), {n: p.detach().clone() for n, p in model.named_parameters()}
    micro = [m for p in prepared(range(BLOCKS_PER_STEP), 0) for m in p.micro_batches]
    accumulate_gradients(model, micro, 0, float(sum(TARGETS[:BLOCKS_PER_STEP])))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    train_step(model, optimizer, micro, 0, sum(TARGETS[:BLOCKS_PER_STEP]), 1e-2, 1.0)
    after = {n: p.detach() for n, p in model.named_parameters()}
    for layer in ("block00", "block01", "embed", "head", "norm"):
        for what, tensors in (
            ("gradient", gradients), ("parameters", after), ("update", {n: after[n] - before[n] for n in after})
        ):  # fmt: skip
            mine = torch.cat([t.flatten() for n, t in tensors.items() if layer_of(n) == layer])
            assert values[f"{what}/{layer}"] == pytest.approx(float(mine.norm()), rel=1e-4), (what, layer)
    whole = math.sqrt(sum(v**2 for name, v in values.items() if name.startswith("gradient/")))
    assert whole == pytest.approx(alone[0][0]["grad_norm"], rel=1e-5)


def test_activations_are_those_of_the_probes(alone: Any) -> None:
    model, given = fill(Transformer(MODEL, VOCAB)), []
    model.blocks[1].register_forward_hook(lambda _module, _args, out: given.append(out[0].detach()))
    for number in range(PROBES):
        accumulate_gradients(model, pieces(number, 0, 1), 0, 1.0)
    x = torch.cat([one.flatten() for one in given]).double()
    values = alone[0][0]["values"]
    assert values["activation_rms/block01"] == pytest.approx(float((x**2).mean().sqrt()), rel=1e-5)
    assert values["activation_max/block01"] == pytest.approx(float(x.abs().max()), rel=1e-6)


def test_losses_by_source_add_up_to_the_loss(alone: Any) -> None:
    looks, losses, _weights = alone
    counts = [sum(TARGETS[n] for n in range(2 * BLOCKS_PER_STEP) if source_of(n) == source) for source in (0, 1)]
    by_step = [sum(TARGETS[s * BLOCKS_PER_STEP : (s + 1) * BLOCKS_PER_STEP]) for s in range(2)]
    nats = sum(loss * count for loss, count in zip(losses, counts, strict=True))
    assert nats == pytest.approx(sum(look["loss"] * n for look, n in zip(looks, by_step, strict=True)), rel=1e-6)
    assert losses[0] != losses[1]


def test_a_source_without_targets_has_no_loss_and_sums_begin_again() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    monitor = Monitor(CONFIG, model, 3, lambda _number: 1, CPU)
    accumulate_gradients(model, pieces(0, 0, 1), 0, 1.0, observer=monitor)
    assert [loss is None for loss in monitor.source_losses()] == [True, False, True]
    assert monitor.source_losses() == [None] * 3


def test_the_look_leaves_no_trace_in_model_optimizer_and_experts() -> None:
    model = fill(Transformer(experts(balance="bias"), VOCAB))
    optimizer = build_optimizer(model, TRAIN)
    monitor, before = Monitor(CONFIG, model, 1, lambda _number: 0, CPU), bits(model, optimizer)
    monitor.begin(0, BLOCKS_PER_STEP, prepared(range(BLOCKS_PER_STEP), 0), None)
    assert bits(model, optimizer) == before and all(p.grad is None for p in model.parameters())
    counts = take_expert_tokens(model)
    assert counts is not None and int(counts.sum()) == 0 and model.look is None
    assert monitor.sums.tolist() == [[0.0], [0.0]], "a probe is no training"


def test_a_loss_scale_is_taken_out_again() -> None:
    probes = []
    for scale in (None, LossScale("cpu", 1024.0)):
        model = fill(Transformer(MODEL, VOCAB))
        monitor = Monitor(CONFIG, model, 1, lambda _number: 0, CPU)
        monitor.begin(0, BLOCKS_PER_STEP, prepared(range(BLOCKS_PER_STEP), 0), scale)
        assert monitor.probes is not None
        probes.append(monitor.probes)
    assert torch.allclose(probes[0], probes[1], rtol=1e-5)


def test_looks_are_taken_when_they_are_due() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    due = [step for step in range(20) if Monitor(MonitorConfig(every_steps=5), model, 1, source_of, CPU).is_due(step)]
    assert due == [4, 9, 14, 19]
    assert not any(Monitor(MonitorConfig(every_steps=0), model, 1, source_of, CPU).is_due(step) for step in range(200))
    monitor = Monitor(MonitorConfig(noise_slot_blocks=0), model, 1, source_of, CPU)
    monitor.begin(0, BLOCKS_PER_STEP, [], None)
    assert monitor.end()["probes"] == []


@pytest.mark.parametrize("field", ["every_steps", "noise_slot_blocks"])
def test_less_than_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"monitor.{field}"):
        MonitorConfig(**{field: -1})


def test_layers_have_names_that_sort() -> None:
    names = [layer_of(n) for n in ("blocks.0.norm.weight", "blocks.12.ffn.up.weight", "embed.weight", "norm.weight")]
    assert names == ["block00", "block12", "embed", "norm"]
    norms = layer_norms({"blocks.1.a": torch.tensor([3.0]), "blocks.1.b": torch.tensor([4.0]), "head": torch.ones(4)})
    assert {name: float(norm) for name, norm in norms.items()} == {"block01": 5.0, "head": 2.0}


def _batch_loss(rank: int, world: int) -> Any:
    """The loss of step 1's batch as it is trained, and as `Stepper.loss` sees it before and after."""
    model, optimizer = build(NO_DROPOUT)
    spec = worker_spec()
    stepper = Stepper(spec.config, model, optimizer, None, None)
    mine = prepared(owned_blocks(1, BLOCKS_PER_STEP, rank, world), 1)
    most, targets = max_blocks(1, BLOCKS_PER_STEP, world), sum(TARGETS[BLOCKS_PER_STEP : 2 * BLOCKS_PER_STEP])
    before = stepper.loss(mine, most)
    trained = stepper.run(mine, most, targets, 1e-2, 1.0).loss
    return before, trained, stepper.loss(mine, most), full_weights(model)["embed.weight"].sum()


@pytest.mark.parametrize("world", [1, 3])
def test_the_loss_of_a_batch_with_the_weights_of_now(world: int) -> None:
    for before, trained, after, _weights in run_ranks(world, _batch_loss):
        assert before == pytest.approx(trained, rel=1e-6) and after < before - 0.01


# ------------------------------------------------------------------------------------------------------ noise scale


def test_the_estimate_finds_signal_and_spread_that_were_put_in() -> None:
    rng, size, small, big = np.random.default_rng(0), 50, 8, 64
    signal = rng.normal(0, 0.1, size)
    tokens = signal + rng.normal(0, 1.0, (20 * big, size))
    noise = Noise()
    for look in range(20):
        of_batch = tokens[look * big : (look + 1) * big]
        blocks = of_batch.reshape(big // small, small, size).mean(1)
        noise.add(float((blocks**2).sum(1).mean()), small, float((of_batch.mean(0) ** 2).sum()), big)
    assert np.mean(noise.spread) == pytest.approx(size, rel=0.05)
    assert noise.scale_tokens == pytest.approx(size / (signal**2).sum(), rel=0.6)


def test_what_says_nothing_is_left_out() -> None:
    noise = Noise()
    assert noise.scale_tokens is None
    for values in ((math.nan, 8, 1.0, 64), (1.0, 8, math.inf, 64), (1.0, 64, 1.0, 64), (1.0, 0, 1.0, 64)):
        noise.add(*values)
    assert noise.scale_tokens is None and not noise.signal
    noise.add(1.0, 8, 0.05, 64)  # noise alone: no signal is left
    assert noise.scale_tokens is None
    for _ in range(30):
        noise.add(2.0, 8, 1.0, 64)
    assert len(noise.signal) == 20 and noise.scale_tokens == pytest.approx(
        (1.0 / (1 / 8 - 1 / 64)) / ((64 - 16) / 56), rel=1e-9
    )


def _noise(rank: int, world: int) -> Any:
    """Of a model that stays as it is, over four global batches."""
    model, _optimizer = build(NO_DROPOUT)
    config, noise = MonitorConfig(noise_slot_blocks=BLOCKS_PER_STEP), Noise()
    monitor = Monitor(config, model, 1, lambda _number: 0, CPU)
    for step in range(4):
        mine = prepared(owned_blocks(step, BLOCKS_PER_STEP, rank, world), step)
        monitor.begin(step, BLOCKS_PER_STEP, mine, None)
        probes = monitor.end()["probes"]
        micro = [one for p in mine for one in p.micro_batches]
        targets = sum(TARGETS[step * BLOCKS_PER_STEP : (step + 1) * BLOCKS_PER_STEP])
        dummies = max_blocks(step, BLOCKS_PER_STEP, world) * SEQUENCES - len(micro)
        optimizer = build_optimizer(model, TRAIN)
        norm = train_step(model, optimizer, micro, dummies, targets, 0.0, 1.0).grad_norm
        noise.look(probes, norm, targets)
    return noise.scale_tokens, list(noise.signal), list(noise.spread)


def direct() -> tuple[float, float]:
    """(scale, its standard error by a jackknife) from all gradients at once, without the two batch sizes."""
    model, gradients, counts = fill(Transformer(NO_DROPOUT, VOCAB)), [], []
    for number in range(4 * BLOCKS_PER_STEP):
        if TARGETS[number]:
            accumulate_gradients(model, pieces(number, 0, 1), 0, float(TARGETS[number]))
            gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None]))
            counts.append(TARGETS[number])
            model.zero_grad()
    g, n = torch.stack(gradients), torch.tensor(counts, dtype=torch.float64)

    def scale(rows: torch.Tensor, tokens: torch.Tensor) -> float:
        mean = (rows * tokens[:, None]).sum(0) / tokens.sum()
        spread = float((tokens * ((rows - mean) ** 2).sum(1)).sum() / (len(rows) - 1))
        return spread / (float((mean**2).sum()) - spread / float(tokens.sum()))

    others = [[i for i in range(len(g)) if i != out] for out in range(len(g))]
    left = [scale(g[kept], n[kept]) for kept in others]
    error = math.sqrt((len(g) - 1) / len(g) * sum((x - np.mean(left)) ** 2 for x in left))
    return scale(g, n), error


def test_the_noise_scale_is_that_of_a_direct_estimate_and_the_same_at_three_workers() -> None:
    expected, error = direct()
    one, three = run_ranks(1, _noise)[0], run_ranks(3, _noise)[0]
    assert one[0] is not None and abs(one[0] - expected) <= 2 * error, (one[0], expected, error)
    assert three[0] == pytest.approx(one[0], rel=1e-3)
    assert three[1] == pytest.approx(one[1], rel=1e-3) and three[2] == pytest.approx(one[2], rel=1e-3)


def test_a_monitor_knows_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 112.0, 120.0, 121.0, 150.0, 200.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monitor = Monitor(MonitorConfig(), torch.nn.Linear(1, 1), 1, lambda _block: 0, CPU)
    for _ in range(2):  # 2 s from 110 on, 1 s from 120 on
        with monitor.counted():
            pass
    assert monitor.share() == pytest.approx(3.0 / 50.0)
    assert monitor.share() == 0.0
