"""What the loop keeps for the next worker group.

    python -m pytest -q tests/train/test_worker.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import torch

from pretrainer.train.scaling import first_scale
from pretrainer.train.spec import TrainState
from pretrainer.train.worker import _keep_scale, _loss_scale
from tests.train.samples import CPU
from tests.train.specs import worker_spec


def test_the_scale_goes_through_a_checkpoint() -> None:
    config = worker_spec().config
    config = replace(config, train=replace(config.train, precision="float16"))
    state = TrainState()
    scale = _loss_scale(config, state, CPU)
    assert scale is not None and scale.read() == (first_scale(config.train.global_batch_tokens), 0)
    for applied in (False, True, True):
        scale.update(torch.tensor(applied))
    _keep_scale(state, scale)
    again = _loss_scale(config, TrainState(**json.loads(json.dumps(asdict(state)))), CPU)
    assert again is not None
    assert again.read() == scale.read() == (first_scale(config.train.global_batch_tokens) / 2, 2)


def test_other_types_have_no_scale_and_keep_none() -> None:
    state = TrainState()
    assert _loss_scale(worker_spec().config, state, CPU) is None
    _keep_scale(state, None)
    assert (state.loss_scale, state.good_steps) == (None, 0)
    assert TrainState(step=3, tokens=7) == TrainState(**{"step": 3, "tokens": 7}), "an older checkpoint has no scale"
