"""A step that is run again gives what it gave, unless something is wrong.

    python -m pytest -q tests/train/stability/test_replay.py
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrainer.config import Config, StabilityConfig
from pretrainer.model.transformer import init_weights
from pretrainer.schema import Batch
from pretrainer.storage import Store
from pretrainer.train.checkpoints.checkpoint import save_sharded
from pretrainer.train.exact import make_deterministic
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.schedule import learning_rate
from pretrainer.train.readback import StepResult
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spec import TrainState
from pretrainer.train.stability.healing import Healer
from pretrainer.train.stability.policies import Heal
from pretrainer.train.stability.replay import Compared, alone, close, on_one_worker, replay, tolerances
from pretrainer.train.stepper import Stepper, prepare
from pretrainer.train.telemetry.auditlog import Line
from tests.train.samples import CPU, MODEL, result_of
from tests.train.specs import BLOCKS_PER_STEP, block, worker_spec

SAVED, END, VOCAB = 2, 6, 256


def config(**train: Any) -> Config:
    base = worker_spec().config
    return replace(base, model=MODEL, train=replace(base.train, learning_rate=1e-2, warmup_steps=1, **train))


def blocks(step: int) -> list[tuple[int, Batch]]:
    return [(n, block(n)) for n in range(step * BLOCKS_PER_STEP, (step + 1) * BLOCKS_PER_STEP)]


def train(config: Config, folder: Path, left_out: int = -1) -> list[StepResult]:
    """The results of a run that saved a checkpoint, and whose step `left_out` was not applied."""
    if config.train.exact:
        make_deterministic(1)  # as a worker: what a kernel adds up depends on its threads
    model = build_model(config.model, VOCAB, config.train, CPU)
    init_weights(model, 1)
    optimizer = build_optimizer(model, config.train)
    stepper, results = Stepper(config, model, optimizer, None, None), []
    for step in range(END):
        if step == SAVED:
            save_sharded(model, optimizer, asdict(TrainState(step=step)), folder)
        prepared = [prepare(config, None, CPU, None, step, *one) for one in blocks(step)]
        rate = learning_rate(config.train, step, config.total_steps)
        if step == left_out:
            results.append(StepResult.left_out(9.0, 9.0, "loss_spike"))
        else:
            results.append(stepper.run(prepared, len(prepared), sum(p.targets for p in prepared), rate, 1.0))
    return results


def again(config: Config, folder: Path, blocks_of: Any = blocks, heals: tuple[Heal, ...] = ()) -> list[Any]:
    healer = Healer(StabilityConfig(), Store(str(folder)), 0, -1, heals, END)
    return list(replay(config, VOCAB, None, folder, blocks_of, healer, END - 1, CPU))


@pytest.mark.parametrize("exact", [False, True])
def test_a_step_comes_out_again_to_the_bit(exact: bool, tmp_path: Path) -> None:
    with alone(CPU):
        results = train(config(exact=exact), tmp_path)
        elsewhere = [torch.empty(size) for size in range(1, 5000, 17)]  # so that tensors come to lie at other addresses
        del elsewhere[::2]
        found = again(config(exact=exact), tmp_path)
    torch.use_deterministic_algorithms(False)
    assert found == [(step, results[step]) for step in range(SAVED, END)]
    assert not dist.is_initialized()


def test_one_changed_token_does_not(tmp_path: Path) -> None:
    def changed(step: int) -> list[tuple[int, Batch]]:
        found = blocks(step)
        if step == 3:
            number, one = found[4]
            tokens = one.tokens.copy()
            tokens[0, 2] = tokens[0, 2] + 1
            found[4] = number, replace(one, tokens=tokens)
        return found

    with alone(CPU):
        results = train(config(), tmp_path)
        found = again(config(), tmp_path, changed)
    limits = tolerances(config(), CPU)
    same = [Compared(line(step, results[step]), result, limits).is_same for step, result in found]
    assert same[0] and not same[1]


def test_what_was_left_out_stays_out_but_the_last_step_is_run(tmp_path: Path) -> None:
    heal = Heal(0, 4, "loss_spike", "skip", 0, 9.0, 9.0, 4.0, math.inf, 4, 5, seen=((9.0, 9.0),))
    with alone(CPU):
        results = train(config(), tmp_path, left_out=4)
        found = again(config(), tmp_path, heals=(heal,))
        assert found == [(step, results[step]) for step in range(SAVED, END)]
        last = replace(heal, step=5, first_step=5, end_step=6)
        assert again(config(), tmp_path, heals=(last,))[-1][1].loss < 9.0


def line(step: int, result: StepResult) -> Line:
    loss, norm = (value if math.isfinite(value) else None for value in (result.loss, result.grad_norm))
    return Line(step, 0, "", "", 0, 0, 2, 0, True, {}, "", loss, norm)


def test_rounding_is_no_difference_and_more_is() -> None:
    limits = tolerances(config(), CPU)
    logged = line(0, result_of(3.0, 1.0))
    assert Compared(logged, result_of(3.0 * (1 + 0.9e-4), 1.0009), limits).is_same
    assert not Compared(logged, result_of(3.0 * (1 + 1.2e-4), 1.0), limits).is_same
    assert not Compared(logged, result_of(3.0, 1.002), limits).is_same
    assert tolerances(config(exact=True), CPU) == (0.0, 0.0)
    assert tolerances(config(precision="bfloat16"), CPU) > limits


@pytest.mark.parametrize(
    ("logged", "found", "same"),
    [(None, math.nan, True), (None, math.inf, True), (None, 3.0, False), (3.0, math.nan, False), (0.0, 0.0, True)],
)
def test_what_was_not_finite_must_be_so_again(logged: float | None, found: float, same: bool) -> None:
    assert close(logged, found, 1e-4) is same


def test_a_run_that_was_split_is_replayed_whole() -> None:
    split = config(num_workers=4, tensor_parallel=2, shard_workers=2)
    one = on_one_worker(split).train
    assert (one.num_workers, one.tensor_parallel, one.shard_workers) == (1, 1, None)
