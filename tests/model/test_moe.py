"""Experts: routing, dropless computation, balance by loss and by bias."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretrainer.config import MoeConfig
from pretrainer.model.balance import GroupCounts, auxiliary_sum, expert_counts, move_expert_biases, moved_bias
from pretrainer.model.moe import MixtureOfExperts, Routing, grouped_linear
from tests.model.architectures import experts
from tests.model.fill import fill

MOE = MoeConfig(experts=3, top_k=2, balance_weight=1.0, z_loss_weight=0.0)


def routing(rows=2, length=5, seed=0, size=3):
    logits = torch.randn(rows, length, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return Routing(logits, logits.detach().topk(2).indices)


def layer(**options):
    return fill(MixtureOfExperts(experts(**options)))


def test_one_product_per_expert_is_the_grouped_kernel():
    x, weight = torch.randn(9, 8, requires_grad=True), torch.randn(4, 16, 8, requires_grad=True)
    counts, weights = torch.tensor([2, 0, 6, 1]), torch.randn(9, 16)
    results = []
    for out in (
        grouped_linear(x, weight, counts),
        F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32)),
    ):
        results.append((out.detach(), *torch.autograd.grad((out * weights).sum(), (x, weight))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not results[0][2][1].any() and results[0][2][2].any()  # nobody chose the second expert


def test_a_token_meets_the_same_experts_whatever_is_beside_it():
    moe, x = layer(), torch.randn(2, 6, 16)
    whole, of_whole = moe(x)
    for row in range(2):
        alone, of_alone = moe(x[row : row + 1, 3:])
        torch.testing.assert_close(alone[0], whole[row, 3:], rtol=0, atol=1e-6)
        assert torch.equal(of_alone.chosen[0], of_whole.chosen[row, 3:])


def test_all_tokens_may_choose_one_expert():
    moe = layer(top_k=1)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2, 0] = 100.0
    x = torch.randn(1, 32, 16)
    x[..., 0] = 1.0
    out, of = moe(x)
    assert (of.chosen == 2).all() and out.abs().amax(-1).gt(0).all()


def test_the_bias_moves_the_choice_and_not_the_weights():
    moe, x = layer(balance="bias", normalise=False, top_k=4), torch.randn(1, 6, 16)
    before, _ = moe(x)
    moe.router.expert_bias.copy_(torch.tensor([3.0, 0.0, -2.0, 1.0]))
    after, of = moe(x)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)  # all four are chosen, in another order
    assert (of.chosen == torch.tensor([0, 3, 1, 2])).all()


def test_balanced_experts_have_loss_one_per_token_and_a_lone_one_more():
    logits = torch.zeros(1, 6, 3)
    even = Routing(logits, torch.tensor([[0, 1], [1, 2], [2, 0]] * 2)[None])
    valid = torch.ones(1, 6, dtype=torch.bool)
    assert auxiliary_sum([even], valid, MOE).item() == pytest.approx(6.0)
    logits = torch.tensor([50.0, 0.0, 0.0]).expand(1, 6, 3)
    lone = Routing(logits, torch.zeros(1, 6, 1, dtype=torch.int64))
    assert auxiliary_sum([lone], valid, replace(MOE, top_k=1)).item() == pytest.approx(3 * 6.0)


@pytest.mark.parametrize("balance", ["none", "sequence", "slot_block", "bias"])
def test_tokens_that_carry_no_loss_add_nothing(balance):
    moe, valid = replace(MOE, balance=balance, z_loss_weight=0.1), torch.ones(2, 5, dtype=torch.bool)
    valid[0, 2:], valid[1] = False, False
    one = routing()
    loss = auxiliary_sum([one, one], valid, moe)
    loss.backward()
    assert one.logits.grad[0, :2].any() and not one.logits.grad[0, 2:].any() and not one.logits.grad[1].any()
    alone = Routing(one.logits[:1, :2].detach(), one.chosen[:1, :2])
    torch.testing.assert_close(auxiliary_sum([alone, alone], valid[:1, :2], moe), loss.detach())
    assert auxiliary_sum([one], torch.zeros_like(valid), moe) == 0
    poisoned = Routing(one.logits.detach().masked_fill(~valid[..., None], float("nan")), one.chosen)
    assert torch.equal(auxiliary_sum([poisoned, poisoned], valid, moe), loss.detach())


def test_a_slot_block_in_parts_has_the_loss_and_gradient_of_the_whole():
    valid = torch.arange(20).view(4, 5) % 3 > 0
    gradients, losses = [], []
    for size in (4, 2, 1):
        whole, loss = routing(rows=4), 0.0
        counts = GroupCounts(expert_counts([whole], valid), valid.sum())
        for first in range(0, 4, size):
            cut = slice(first, first + size)
            loss = loss + auxiliary_sum([Routing(whole.logits[cut], whole.chosen[cut])], valid[cut], MOE, counts)
        loss.backward()
        losses.append(loss.item())
        gradients.append(whole.logits.grad)
    assert losses[1:] == pytest.approx([losses[0]] * 2)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=1e-6)
    assert auxiliary_sum([routing(rows=4)], valid, MOE).item() == pytest.approx(losses[0])
    sequence = auxiliary_sum([routing(rows=4)], valid, replace(MOE, balance="sequence")).item()
    assert sequence != pytest.approx(losses[0], rel=1e-3)  # it is another loss


def test_biases_move_towards_even_use_by_whole_numbers():
    bias = moved_bias(torch.tensor([0.5, 0.0, -0.5]), torch.tensor([10, 7, 4]), 0.25)
    assert bias.tolist() == [0.25, 0.0, -0.25]
    assert moved_bias(torch.zeros(3), torch.tensor([2, 2, 3]), 1.0).tolist() == [1.0, 1.0, -1.0]
    routers = [layer(balance="bias").router for _ in range(2)]
    before = [router.expert_bias.clone() for router in routers]
    move_expert_biases(routers, torch.tensor([[4, 0, 1, 1], [0, 4, 1, 1]]), torch.tensor(True))
    moved = [(r.expert_bias - b).sign().tolist() for r, b in zip(routers, before, strict=True)]
    assert moved == [[-1, 1, 1, 1], [1, -1, 1, 1]]


def test_the_bias_evens_out_skewed_experts():
    moe = fill(MixtureOfExperts(experts(balance="bias", bias_rate=0.02)))
    x = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    valid = torch.ones(1, 256, dtype=torch.bool)
    spread = []
    for _ in range(60):
        with torch.no_grad():
            counts = expert_counts([moe(x)[1]], valid)
        spread.append(counts.max().item() - counts.min().item())
        move_expert_biases([moe.router], counts, torch.tensor(True))
    assert spread[-1] < 0.25 * spread[0] and spread[0] > 50
