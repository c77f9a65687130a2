"""One optimizer step of every architecture against float64 arithmetic; experts at several micro-batch and world sizes.

    python -m pytest -q tests/train/test_architectures.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.generate import release_gathered
from pretrainer.model.transformer import Transformer
from pretrainer.train.batch import micro_batches, to_tensor, valid_targets
from pretrainer.train.checkpoints.checkpoint import load_sharded, save_sharded
from pretrainer.train.exact import BlockSum, exact_train_step, weights_digest
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding import parallel
from pretrainer.train.sharding.experts import expert_load
from pretrainer.train.step import IGNORE, MicroBatch, StepResult, accumulate_gradients, train_step
from tests.model.architectures import ARCHITECTURES, experts
from tests.model.fill import fill
from tests.model.reference import reference_auxiliary_sum, reference_nll_sum
from tests.train.ranks import run_ranks
from tests.train.samples import SEQUENCES, VOCAB, build, full_weights, pieces, run_steps, slot_block

TRAIN = TrainConfig(steps=4, eps=1e-2)  # large enough that AdamW does not magnify the rounding of small gradients
BALANCES = ["none", "sequence", "slot_block", "bias"]


def plain(config: ModelConfig) -> tuple[Transformer, torch.optim.Optimizer]:
    model = fill(Transformer(config, VOCAB))
    return model, build_optimizer(model, TRAIN)


def split(number: int, sequences: int) -> list[MicroBatch]:
    block = slot_block(number, sequences=4)
    return micro_batches(
        to_tensor(block), block, sequences=sequences, document_mask=True, run_seed=7, step=0, slot_block=number
    )


def rows(batch: MicroBatch) -> list[tuple]:
    ids = torch.zeros_like(batch.inputs) if batch.document_ids is None else batch.document_ids
    targets = [[None if t == IGNORE else t for t in row] for row in batch.targets.tolist()]
    return list(zip(batch.inputs.tolist(), targets, batch.positions.tolist(), ids.tolist(), strict=True))


def reference_loss(params: dict, config: ModelConfig, blocks: list[list[MicroBatch]]) -> tuple[Any, ...]:
    """(nll, nll + auxiliary losses, targets, choices) summed over slot blocks, each of one or more micro-batches."""
    nll, auxiliary, targets, counts = torch.zeros((), dtype=torch.float64), 0.0, 0, 0
    for block in blocks:
        whole = [row for batch in block for row in rows(batch)]
        total, count = reference_nll_sum(params, config, whole)
        nll, targets = nll + total, targets + count
        if config.moe.experts:
            for group in [[row] for row in whole] if config.moe.balance == "sequence" else [whole]:
                more, chosen = reference_auxiliary_sum(params, config, group)
                auxiliary, counts = auxiliary + more, counts + chosen
    return nll, nll + auxiliary, targets, counts


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_step_agrees_with_float64_arithmetic(config: ModelConfig) -> None:
    model, optimizer = plain(config)
    batches = pieces(1, 0)  # one slot block in two micro-batches
    params: dict = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    buffers = {n: b.double() for n, b in model.named_buffers()}
    nll, loss, targets, counts = reference_loss(params | buffers, config, [batches])
    (loss / targets).backward()
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in params.values()))

    result = train_step(model, optimizer, batches, 1, targets, 1e-2, 0.5 * norm)

    assert result.applied
    assert result.loss == pytest.approx(nll.item() / targets, abs=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)
    if config.moe.experts:
        assert result.expert_tokens == tuple(map(tuple, counts.tolist()))
    for group in optimizer.param_groups:
        for name, parameter in model.named_parameters():
            if not any(parameter is p for p in group["params"]):
                continue
            before, gradient = params[name].detach(), 0.5 * params[name].grad
            expected = before * (1 - 1e-2 * group["weight_decay"]) - 1e-2 * gradient / (gradient.abs() + TRAIN.eps)
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=2e-5, msg=name)
    for name, after in model.named_buffers():
        layer = int(name.split(".")[1])
        moved = config.moe.bias_rate * torch.sign(counts[layer].double().mean() - counts[layer])
        torch.testing.assert_close(after.double(), buffers[name] + moved, rtol=0, atol=1e-7)


@pytest.mark.parametrize("balance", BALANCES)
def test_experts_do_not_depend_on_the_micro_batch_size(balance: str) -> None:
    # Two slot blocks of four sequences, one with a row of padding.
    config = experts(balance=balance, shared_experts=1)
    targets, outcomes = sum(valid_targets(slot_block(n, sequences=4)) for n in (1, 3)), []
    for sequences in (4, 2, 1):
        model, optimizer = plain(config)
        batches = [batch for n in (1, 3) for batch in split(n, sequences)]
        result = train_step(model, optimizer, batches, 4 // sequences, targets, 1e-2, 1.0)
        outcomes.append((result, {n: t.detach().clone() for n, t in model.state_dict().items()}))
    for result, weights in outcomes[1:]:
        assert result.loss == pytest.approx(outcomes[0][0].loss, abs=1e-6)
        assert result.grad_norm == pytest.approx(outcomes[0][0].grad_norm, rel=1e-5)
        assert result.expert_tokens == outcomes[0][0].expert_tokens
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, outcomes[0][1][name], rtol=0, atol=2e-5, msg=name)


def gradients(config: ModelConfig, calls: list[list[MicroBatch]]) -> list[torch.Tensor]:
    model, _ = plain(config)
    for batches in calls:
        accumulate_gradients(model, batches, 0, 100.0)
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("sequences", [4, 2])
def test_every_slot_block_is_balanced_alone(sequences: int) -> None:
    one, other = split(1, sequences), split(2, sequences)
    config = experts(balance="slot_block")
    together, apart = gradients(config, [[*one, *other]]), gradients(config, [one, other])
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_balance_loss_is_in_the_gradient_and_not_in_the_loss() -> None:
    results = {}
    for balance in ("none", "sequence", "slot_block"):
        model, optimizer = plain(experts(balance=balance, z_loss_weight=0.0))
        results[balance] = train_step(model, optimizer, pieces(1, 0), 0, 20, 1e-2, 1.0)
    assert results["none"].loss == results["sequence"].loss == results["slot_block"].loss
    norms = [result.grad_norm for result in results.values()]
    assert len({round(norm, 4) for norm in norms}) == 3


def test_a_step_that_is_not_applied_moves_no_bias_and_counts_afresh() -> None:
    model, optimizer = plain(experts(balance="bias"))
    before = {n: b.clone() for n, b in model.named_buffers()}
    hook = model.norm.register_forward_hook(lambda module, args, out: out * float("nan"))
    assert not train_step(model, optimizer, pieces(1, 0), 0, 20, 1e-2, 1.0).applied
    hook.remove()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    result = train_step(model, optimizer, pieces(1, 0), 0, 20, 1e-2, 1.0)
    targets = valid_targets(slot_block(1))
    assert [sum(block) for block in result.expert_tokens] == [2 * targets] * 2
    assert not all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_the_load_of_experts_is_over_the_mean() -> None:
    assert expert_load([(8, 0, 4), (4, 4, 4)]) == {
        "experts/block00/busiest": 2.0, "experts/block00/idlest": 0.0,
        "experts/block01/busiest": 1.0, "experts/block01/idlest": 1.0,
    }  # fmt: skip
    assert expert_load([(0, 0)]) == {"experts/block00/busiest": 0.0, "experts/block00/idlest": 0.0}
    assert expert_load(()) == {}


def exact_steps(config: ModelConfig, ranks: int) -> tuple[str, list[StepResult]]:
    """Two exact steps of four slot blocks, dealt to so many ranks that this process plays one after the other."""
    model, optimizer = plain(config)
    total, results = BlockSum(model, 4, 4 * SEQUENCES * 12), []
    for step in range(2):
        order = [n for rank in range(ranks) for n in range(4 * step, 4 * step + 4) if n % ranks == rank]
        targets = sum(valid_targets(slot_block(n)) for n in order)
        results.append(
            exact_train_step(model, optimizer, [pieces(n, step) for n in order], targets, 1e-2, 1.0, total)
        )
    return weights_digest(model), results


@pytest.mark.parametrize("balance", ["slot_block", "bias"])
def test_exact_steps_of_experts_are_equal_to_the_bit_in_any_order_of_slot_blocks(balance: str) -> None:
    config = experts(balance=balance)
    one, three = exact_steps(config, 1), exact_steps(config, 3)
    assert one == three
    assert one[1][0].applied and one[1][0].expert_tokens != one[1][1].expert_tokens


def test_the_digest_of_weights_covers_the_bias_on_experts() -> None:
    model, _ = plain(experts(balance="bias"))
    before = weights_digest(model)
    model.blocks[1].ffn.router.expert_bias[2] += 1e-3
    assert weights_digest(model) != before


ON_RANKS = {balance: replace(experts(balance=balance), dropout=0.1) for balance in ("slot_block", "bias")}
ON_RANKS["gpt2"] = ARCHITECTURES["gpt2"]


def test_the_router_decides_in_float32_whatever_the_precision() -> None:
    config, batch = experts(shared_experts=1), pieces(1, 0)[0]
    model = fill(parallel.Replica(config, VOCAB))
    exactly = model(batch.inputs, batch.positions, batch.document_ids)
    model.precision = torch.bfloat16
    rounded = model(batch.inputs, batch.positions, batch.document_ids)
    assert rounded.dtype == torch.bfloat16 and all(r.logits.dtype == torch.float32 for r in model.routing)
    assert not torch.equal(rounded.float(), exactly)
    torch.testing.assert_close(rounded.float(), exactly, rtol=0, atol=0.1)
    states: list[torch.Tensor] = []
    hook = model.blocks[0].ffn.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model(batch.inputs, batch.positions, batch.document_ids)
    hook.remove()
    expected = states[0].float() @ model.blocks[0].ffn.router.weight.T
    torch.testing.assert_close(model.routing[0].logits, expected, rtol=0, atol=1e-6)


def train(rank: int, world: int) -> dict[str, Any]:
    """Two steps of each model on this rank, sharded where there are several: all but the first as large models are."""
    out: dict[str, Any] = {}
    one = pieces(1, 0)[0]
    for name, config in ON_RANKS.items():
        if world > 1 and name != "slot_block":
            parallel.RESHARD_FROM_PARAMETERS = 0
        model, optimizer = plain(config) if world == 1 else build(config, TRAIN)
        results = run_steps(model, optimizer, rank, world, 0, 2)
        model.eval()
        states = model.hidden(one.inputs, one.positions, one.document_ids).detach().numpy()
        release_gathered(model)
        weights = {n: p.detach().numpy() for n, p in model.named_parameters()} if world == 1 else full_weights(model)
        weights |= {n: b.clone().numpy() for n, b in model.named_buffers()}
        out[name] = ([r.loss for r in results], [r.expert_tokens for r in results], weights | {"states": states})
    return out


@pytest.fixture(scope="module")
def three_ranks() -> dict[str, Any]:
    return run_ranks(3, train)[0]


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Any]:
    return train(0, 1)


@pytest.mark.parametrize("name", ON_RANKS)
def test_three_ranks_train_what_one_trains(one_rank: dict[str, Any], three_ranks: dict[str, Any], name: str) -> None:
    one, three = one_rank[name], three_ranks[name]
    assert three[0] == pytest.approx(one[0], rel=0, abs=1e-5)
    assert three[1] == one[1]
    for key, value in one[2].items():
        np.testing.assert_allclose(three[2][key], value, rtol=0, atol=1e-4, err_msg=key)


def test_a_checkpoint_holds_the_bias_on_experts(tmp_path: Any) -> None:
    model, optimizer = plain(experts(balance="bias"))
    train_step(model, optimizer, pieces(1, 0), 0, 20, 1e-2, 1.0)
    save_sharded(model, optimizer, {"step": 1}, tmp_path / "checkpoint")
    fresh = Transformer(model.config, VOCAB)
    load_sharded(fresh, build_optimizer(fresh, TRAIN), tmp_path / "checkpoint")
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, fresh.state_dict()[n]) for n, t in model.state_dict().items())
