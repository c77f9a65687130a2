"""What the loop keeps for the next worker group, and goes back to.

    python -m pytest -q tests/train/test_worker.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import torch

from pretrainer.config import StabilityConfig
from pretrainer.train.optim.scaling import first_scale
from pretrainer.train.spec import TrainState
from pretrainer.train.spikes import Detector
from pretrainer.train.worker import _keep, _loss_scale, _resume
from tests.train.samples import CPU
from tests.train.specs import worker_spec

WINDOW = {"losses": [3.0, 2.0], "grad_norms": [1.0, 0.5]}


def detector() -> Detector:
    return Detector(StabilityConfig(), CPU)


def through_json(state: TrainState) -> TrainState:
    return TrainState(**json.loads(json.dumps(asdict(state))))


def test_the_scale_goes_through_a_checkpoint_and_back() -> None:
    config = worker_spec().config
    config = replace(config, train=replace(config.train, precision="float16"))
    state = TrainState()
    scale = _loss_scale(config, state, CPU)
    assert scale is not None and scale.read() == (first_scale(config.train.global_batch_tokens), 0)
    for finite in (False, True, True):
        scale.update(torch.tensor(finite))
    _keep(state, scale, detector(), 0)
    again = _loss_scale(config, through_json(state), CPU)
    assert again is not None
    assert again.read() == scale.read() == (first_scale(config.train.global_batch_tokens) / 2, 2)
    scale.update(torch.tensor(False))
    _resume(state, scale, detector(), 0)
    assert scale.read() == again.read()


def test_the_window_goes_through_a_checkpoint_of_the_same_segment() -> None:
    before, state = detector(), TrainState()
    before.load(WINDOW)
    _keep(state, None, before, 2)
    for segment, expected in ((2, WINDOW), (3, {"losses": [], "grad_norms": []})):
        after = detector()
        after.load({"losses": [9.0], "grad_norms": [9.0]})
        _resume(through_json(state), None, after, segment)
        assert after.state() == expected


def test_other_types_have_no_scale_and_keep_none() -> None:
    state = TrainState()
    assert _loss_scale(worker_spec().config, state, CPU) is None
    _keep(state, None, detector(), 0)
    assert (state.loss_scale, state.good_steps) == (None, 0)
    assert TrainState(step=3, tokens=7) == TrainState(**{"step": 3, "tokens": 7}), "an older checkpoint has no scale"
