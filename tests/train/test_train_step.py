"""One step against float64 arithmetic, and the same step on one process and on several."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.generate import generate, generate_in_lockstep
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.optim.optimizer import build_optimizer, decays
from pretrainer.train.scoring.evaluate import bits_per_byte, evaluate
from pretrainer.train.sharding.parallel import precision_for
from pretrainer.train.step import IGNORE, MicroBatch, dropout_seed, nll_sum, train_step
from tests.model.fill import fill
from tests.model.reference import reference_nll_sum
from tests.train.ranks import run_ranks
from tests.train.samples import (
    BLOCKS_PER_STEP,
    CPU,
    MODEL,
    TRAIN,
    VOCAB,
    build,
    full_weights,
    pieces,
    run_steps,
    slot_block,
)

PLAIN = replace(MODEL, dropout=0.0)
TIED = ModelConfig(layers=2, hidden=32, heads=4, ffn_hidden=48)


def plain(config=PLAIN, train=TRAIN):
    model = fill(Transformer(config, VOCAB))
    return model, build_optimizer(model, train)


def as_rows(batches):
    for batch in batches:
        ids = torch.zeros_like(batch.inputs) if batch.document_ids is None else batch.document_ids
        columns = (tensor.tolist() for tensor in (batch.inputs, batch.targets, batch.positions, ids))
        for tokens, targets, positions, documents in zip(*columns, strict=True):
            yield tokens, [None if t == IGNORE else t for t in targets], positions, documents


@pytest.mark.parametrize("config", [PLAIN, TIED], ids=["untied-gqa", "tied"])
@pytest.mark.parametrize("clip_norm", [0.05, 1e9])
def test_a_step_agrees_with_float64_arithmetic(config, clip_norm):
    model, optimizer = plain(config)
    batches = [piece for number in (0, 1) for piece in pieces(number, 0)]
    params = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    total, count = reference_nll_sum(params, config, list(as_rows(batches)))
    (total / count).backward()
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in params.values()))

    result = train_step(model, optimizer, batches, 1, count, 1e-2, clip_norm)

    assert result.applied
    assert result.loss == pytest.approx(total.item() / count, abs=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)
    for name, parameter in model.named_parameters():
        before, gradient = params[name].detach(), params[name].grad * min(1.0, clip_norm / norm)
        decay = 0.0 if "norm" in name or name.startswith("embed.") else TRAIN.weight_decay
        # the first AdamW update: both moments, corrected for bias, are the gradient and its square
        expected = before * (1 - 1e-2 * decay) - 1e-2 * gradient / (gradient.abs() + TRAIN.eps)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=2e-5, msg=name)


def test_loss_is_normalised_by_global_targets_and_zero_targets_do_not_divide():
    model, optimizer = plain()
    batches = pieces(1, 0)
    once = train_step(model, optimizer, batches, 0, 10, 1e-9, 1.0)
    twice = train_step(model, optimizer, batches, 0, 20, 1e-9, 1.0)
    assert once.loss == pytest.approx(2 * twice.loss, rel=1e-5)
    padded = replace(batches[0], targets=torch.full_like(batches[0].targets, IGNORE))
    empty = train_step(model, optimizer, [padded], 0, 0, 1e-2, 1.0)
    assert (empty.loss, empty.grad_norm, empty.applied) == (0.0, 0.0, True)


def test_a_dummy_micro_batch_adds_exactly_nothing():
    weights = []
    for dummies in (0, 3):
        model, optimizer = plain(replace(PLAIN, dropout=0.2))
        train_step(model, optimizer, pieces(1, 0), dummies, 10, 1e-2, 1.0)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_masked_loss_hides_nan():
    class Nan(torch.nn.Module):
        def forward(self, tokens, positions, document_ids=None):
            return torch.full((*tokens.shape, VOCAB), float("nan"))

    assert nll_sum(Nan(), pieces(1, 0)[0], live=False) == 0
    assert torch.isnan(nll_sum(Nan(), pieces(1, 0)[0]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_untouched(poison):
    model, optimizer = plain()
    train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-2, 1.0)
    hook = model.norm.register_forward_hook(lambda module, args, out: out * poison)
    before = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    result = train_step(model, optimizer, pieces(2, 0), 0, 10, 1e-2, 1.0)
    hook.remove()
    assert not result.applied
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))
    assert {int(s["step"]) for s in optimizer.state.values()} == {1}
    assert all(p.grad is None for p in model.parameters())
    assert train_step(model, optimizer, pieces(2, 0), 0, 10, 1e-2, 1.0).applied


def test_a_gradient_that_is_not_finite_is_found_behind_a_finite_loss():
    model, optimizer = plain()
    model.blocks[0].ffn.up.weight.register_hook(lambda g: g * float("inf"))
    before = model.embed.weight.detach().clone()
    result = train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-2, 1.0)
    assert math.isfinite(result.loss) and not result.applied
    assert torch.equal(before, model.embed.weight)


def test_dropout_seeds_name_the_data():
    seeds = {dropout_seed(r, s, b, m) for r in range(3) for s in range(3) for b in range(3) for m in range(3)}
    assert len(seeds) == 81
    assert dropout_seed(1, 2, 3, 4) == dropout_seed(1, 2, 3, 4) < 2**63


def test_decay_groups():
    model, optimizer = plain(PLAIN)
    decayed = {n for n, p in model.named_parameters() if decays(n, p)}
    assert {n.rsplit(".", 2)[-2] for n in decayed} == {"q", "k", "v", "o", "gate", "up", "down", "head"}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [TRAIN.weight_decay, 0.0]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert not decays("blocks.0.bias", torch.nn.Parameter(torch.zeros(3)))


def test_precision():
    assert precision_for(TRAIN, CPU) == torch.float32
    assert precision_for(TrainConfig(steps=1, precision="bfloat16"), CPU) == torch.bfloat16


# ---- several processes


def _train(rank, world, steps, precision):
    model, optimizer = build(train=replace(TRAIN, precision=precision))
    init_weights(model, 5)
    first_weights = full_weights(model)
    fill(model)
    results = run_steps(model, optimizer, rank, world, 0, steps)
    held_out = [piece for number in range(100, 103) for piece in pieces(number, 0, micro=2)]
    evaluation = evaluate(model, held_out, 1000, rank, world)
    # ranks draw the same tokens whatever their own generators hold
    text = generate_in_lockstep(model, [5, 6], 8, 1.0, None, seed=1)
    return first_weights, results, full_weights(model), evaluation, text


@pytest.fixture(scope="module")
def runs():
    return {world: run_ranks(world, _train, 3, "float32") for world in (1, 3)}


def test_the_blocks_do_not_divide_evenly_in_these_tests():
    assert BLOCKS_PER_STEP % 3 != 0


def test_initial_weights_are_equal_at_every_world_size(runs):
    model = Transformer(MODEL, VOCAB)
    init_weights(model, 5)
    for world in runs:
        for name, parameter in model.named_parameters():
            assert np.array_equal(runs[world][0][0][name], parameter.detach().numpy()), (world, name)


def test_losses_gradients_and_weights_do_not_depend_on_the_world_size(runs):
    one, three = runs[1][0], runs[3][0]
    for a, b in zip(one[1], three[1], strict=True):
        assert a.applied and b.applied
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    for name in one[2]:
        np.testing.assert_allclose(one[2][name], three[2][name], rtol=0, atol=1e-4, err_msg=name)


def test_a_plain_model_trains_like_a_sharded_one(runs):
    model, optimizer = plain(MODEL)
    results = run_steps(model, optimizer, 0, 1, 0, 3)
    for a, b in zip(results, runs[1][0][1], strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5)


def test_every_rank_reports_the_same(runs):
    first = runs[3][0]
    for other in runs[3][1:]:
        assert other[1] == first[1] and other[3] == first[3] and other[4] == first[4]


def test_evaluation_does_not_depend_on_the_world_size_and_is_the_mean_over_targets(runs):
    one, three = runs[1][0][3], runs[3][0][3]
    assert one.targets == three.targets
    assert one.loss == pytest.approx(three.loss, abs=1e-4)
    model, _ = plain()
    batches = [piece for number in (1, 2) for piece in pieces(number, 0)]
    params = {n: p.detach().double() for n, p in model.named_parameters()}
    total, count = reference_nll_sum(params, PLAIN, list(as_rows(batches)))
    result = evaluate(model, batches, 321)
    assert result.targets == count
    assert result.loss == pytest.approx(total.item() / count, abs=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(float(total) / (math.log(2) * 321), rel=1e-5)


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)


def test_evaluation_is_without_dropout_and_leaves_training_on():
    model, _ = plain(MODEL)
    batches = pieces(1, 0)
    assert evaluate(model, batches, 1).loss == evaluate(model, batches, 1).loss
    assert model.training


def test_the_lockstep_text_is_that_of_the_whole_model(runs):
    model, _ = plain(MODEL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(runs[1][0][2][name]))
    assert generate(model, [5, 6], 8, 1.0, None, seed=1) == runs[1][0][4]


def test_bfloat16_trains_close_to_float32(runs):
    half = run_ranks(2, _train, 2, "bfloat16")[0][1]
    for a, b in zip(runs[1][0][1][:2], half, strict=True):
        assert b.applied and b.loss == pytest.approx(a.loss, rel=0.01)
        assert b.loss != a.loss


def _poisoned(rank, world):
    model, optimizer = build(PLAIN)
    before = full_weights(model)
    if rank == 1:  # one rank's data alone makes a bad loss
        model.norm.register_forward_hook(lambda module, args, out: out * float("nan"))
    result = run_steps(model, optimizer, rank, world, 0, 1)[0]
    after = full_weights(model)
    return result.applied, all(np.array_equal(before[n], after[n]) for n in before)


def test_nan_on_one_rank_stops_the_update_on_all():
    assert run_ranks(2, _poisoned) == [(False, True)] * 2


def test_slot_blocks_of_these_tests_hold_documents_and_padding():
    assert any(len(slot_block(n).starts) > 2 for n in range(8))
    assert (slot_block(0).tokens[-1] == 0).all()
    assert isinstance(pieces(0, 0)[0], MicroBatch)
