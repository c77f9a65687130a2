"""The chunked loss inside FSDP2 and in exact mode's replica: gradients and weights of the whole loss on one process.

    python -m pytest -q tests/train/test_chunked_step.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrainer.model.loss import chunk_tokens
from pretrainer.model.transformer import Transformer
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.scoring.evaluate import evaluate
from pretrainer.train.sharding.parallel import Replica, build_model, loss_settings
from pretrainer.train.step import accumulate_gradients
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import CPU, MODEL, TRAIN, VOCAB, build, full_weights, pieces, run_steps

WHOLE = replace(TRAIN, z_loss=0.01)
CHUNKED = replace(WHOLE, loss_chunk_tokens=5)
MODELS = {"untied": MODEL, "tied": replace(MODEL, tie_embeddings=True)}
BATCHES = [piece for number in range(4) for piece in pieces(number, 0)]
HELD_OUT = [piece for number in range(100, 103) for piece in pieces(number, 0)]


def gradients(model: torch.nn.Module, rank: int, world: int) -> dict[str, np.ndarray]:
    """Of four slot blocks dealt over the ranks, with a dummy on each."""
    accumulate_gradients(model, BATCHES[rank::world], 1, 10.0)
    grads = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    return {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).numpy().copy() for n, g in grads.items()}


def sharded(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for name, config in MODELS.items():
        for label, train in (("float32", CHUNKED), ("bfloat16", replace(CHUNKED, precision="bfloat16"))):
            model, optimizer = build(config, train)
            assert chunk_tokens(model.loss_settings, VOCAB, "cpu") < BATCHES[0].targets.numel()
            first = gradients(model, rank, world)
            losses = [result.loss for result in run_steps(model, optimizer, rank, world, 0, 2)]
            found[f"{name} {label}"] = first, losses, full_weights(model), evaluate(model, HELD_OUT, 1, rank, world)
    return found


@pytest.fixture(scope="module")
def at_two() -> dict[str, Any]:
    return run_ranks(2, sharded)[0]


def plain(name: str) -> tuple[Transformer, Any]:
    """(whole loss on one plain model, its optimizer)"""
    model = fill(Transformer(MODELS[name], VOCAB))
    model.loss_settings = loss_settings(WHOLE)
    assert chunk_tokens(model.loss_settings, VOCAB, "cpu") >= BATCHES[0].targets.numel()
    return model, build_optimizer(model, WHOLE)


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_in_chunks_are_one_process_whole(at_two: dict[str, Any], name: str) -> None:
    model, optimizer = plain(name)
    first, losses, weights, held_out = at_two[f"{name} float32"]
    for parameter, expected in gradients(model, 0, 1).items():
        np.testing.assert_allclose(first[parameter], expected, rtol=1e-4, atol=1e-5, err_msg=parameter)
    assert losses == pytest.approx([result.loss for result in run_steps(model, optimizer, 0, 1, 0, 2)], abs=1e-5)
    for parameter, value in model.named_parameters():
        np.testing.assert_allclose(weights[parameter], value.detach().numpy(), rtol=0, atol=1e-4, err_msg=parameter)
    assert held_out.loss == pytest.approx(evaluate(model, HELD_OUT, 1).loss, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_in_chunks_is_near(at_two: dict[str, Any], name: str) -> None:
    model, _ = plain(name)
    first, losses, _weights, _held_out = at_two[f"{name} bfloat16"]
    for parameter, expected in gradients(model, 0, 1).items():
        assert np.linalg.norm(first[parameter] - expected) < 0.03 * np.linalg.norm(expected), parameter
    assert losses == pytest.approx(at_two[f"{name} float32"][1], rel=0.01)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replica_in_chunks_has_the_whole_losss_gradients(precision: str) -> None:
    found = []
    for train in (CHUNKED, WHOLE):
        model = fill(build_model(MODEL, VOCAB, replace(train, precision=precision, exact=True), CPU))
        assert isinstance(model, Replica) and all(p.dtype == torch.float32 for p in model.parameters())
        found.append(gradients(model, 0, 1))
    for parameter, expected in found[1].items():
        error = np.linalg.norm(found[0][parameter] - expected)
        assert error < (1e-5 if precision == "float32" else 0.02) * np.linalg.norm(expected), parameter
