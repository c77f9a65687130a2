"""Normal mode at several world sizes: the same losses from one checkpoint, but for the rounding of float sums.

    python -m pytest -q tests/train/test_world_sizes.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.checkpoints.checkpoint import load_sharded, save_sharded
from pretrainer.train.optim.optimizer import build_optimizer
from tests.train.ranks import run_ranks
from tests.train.samples import BLOCKS_PER_STEP, MODEL, TRAIN, VOCAB, build, full_weights, run_steps

STEPS = 20


def train(rank: int, world: int, folder: str) -> tuple[list[float], dict[str, np.ndarray]]:
    model, optimizer = build()
    load_sharded(model, optimizer, folder)
    results = run_steps(model, optimizer, rank, world, 0, STEPS)
    assert all(result.applied for result in results)
    return [result.loss for result in results], full_weights(model)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Twenty steps of eight slot blocks on one and on three ranks, from one checkpoint of step 0."""
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    model = Transformer(MODEL, VOCAB)
    init_weights(model, 5)
    save_sharded(model, build_optimizer(model, TRAIN), {"step": 0}, Path(folder))
    return {world: run_ranks(world, train, str(folder))[0] for world in (1, 3)}


def test_loss_at_three_ranks_is_that_at_one(runs: dict[int, Any]) -> None:
    assert BLOCKS_PER_STEP == 8
    assert runs[3][0] == pytest.approx(runs[1][0], rel=0, abs=1e-5)
    assert runs[1][0][-1] < runs[1][0][0] - 0.01  # it learns, so the steps after the first one count


def test_float_sums_differ_in_bits_between_world_sizes(runs: dict[int, Any]) -> None:
    """What exact mode is for: see test_exact.py, where they do not."""
    one, three = runs[1][1], runs[3][1]
    assert any(not np.array_equal(one[name], three[name]) for name in one)
