"""Exact mode: the same bits at every world size, through a resize and a step that is not finite.

    python -m pytest -q tests/train/test_exact.py
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError, ReplicaError
from pretrainer.model.flops import check_exact_memory, exact_memory_estimate_bytes
from pretrainer.model.loss import Loss
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.batch import owned_blocks, valid_targets
from pretrainer.train.checkpoints.checkpoint import load_sharded, save_sharded
from pretrainer.train.exact import BlockSum, agreed_digest, exact_train_step, make_deterministic, weights_digest
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.scoring.evaluate import evaluate
from pretrainer.train.sharding.parallel import Replica, build_model, build_sharded
from pretrainer.train.step import MicroBatch, accumulate_gradients, all_reduce_sum, train_step
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import CPU, MODEL, SEQ_LEN, SEQUENCES, TRAIN, VOCAB, pieces, slot_block

EXACT = replace(TRAIN, exact=True, precision="float32")
CLIP_NORM = 0.5
BLOCKS, STEPS, RESIZE_AT, POISONED_STEP, POISONED_BLOCK = 7, 12, 6, 3, 5  # 2, 3 and 4 do not divide 7
SHORT_STEPS = 2


def tokens_of(blocks: int) -> int:
    return blocks * SEQUENCES * SEQ_LEN


# ------------------------------------------------------------------------------------------------- the order-free sum


class Vector(torch.nn.Module):
    """A parameter to hang gradients on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(width))


def block_sum(losses: list[float], gradients: list[list[float]], tokens: int, targets: int = 1) -> tuple[float, Any]:
    """(loss, gradient) that BlockSum makes of these slot blocks."""
    model = Vector(len(gradients[0]))
    total = BlockSum(model, len(gradients), tokens)
    for loss, gradient in zip(losses, gradients, strict=True):
        model.values.grad = torch.tensor(gradient)
        total.add(torch.tensor(loss, dtype=torch.float64))
        assert model.values.grad is None
    mean = total.take(targets).item()
    return mean, model.values.grad


# float32 numbers so far apart that a float64 sum of them has an order too, and the smallest are rounded away
floats = st.builds(math.ldexp, st.integers(-(2**24), 2**24), st.integers(-60, -14))


@settings(deadline=None, max_examples=50)
@given(st.lists(floats, min_size=2, max_size=9), st.randoms(use_true_random=False), st.integers(1, 50))
def test_sum_has_no_order_and_is_rounded_once_per_block(terms: list[float], random: Any, targets: int) -> None:
    shuffled = random.sample(terms, len(terms))
    loss, gradient = block_sum(terms, [[term] for term in terms], tokens=64, targets=targets)
    other_loss, other_gradient = block_sum(shuffled, [[term] for term in shuffled], tokens=64, targets=targets)
    assert loss.hex() == other_loss.hex() and torch.equal(gradient, other_gradient)
    resolution = Fraction(1, 2**46)  # 62 - 10 bits for the mean over 2**6 tokens
    mean = float(sum(round(Fraction(term) / resolution) for term in terms)) / (2.0**46 * targets)
    assert loss == mean and gradient.item() == torch.tensor(mean, dtype=torch.float64).float().item()


def test_float_sum_would_have_an_order() -> None:
    """What the test above would not see in numbers that float32 adds exactly."""
    terms = torch.tensor([1e3, 1e-4, -1e3, 1e-4])
    one, other = (sum(terms[list(order)].tolist(), torch.zeros(())) for order in ((0, 1, 2, 3), (0, 2, 1, 3)))
    assert one != other
    assert block_sum([0.0] * 4, [[t] for t in terms.tolist()], 64)[1].item() == pytest.approx(2e-4, rel=1e-6)


def test_no_sum_of_blocks_at_the_limit_overflows_and_one_beyond_it_is_not_a_number() -> None:
    for blocks in (1, 3, 64):
        tokens = blocks * 16
        limit = BlockSum(Vector(1), blocks, tokens)
        most = math.floor(limit.limit) / limit.scale * (1 - 2**-23)  # float32 below the limit
        assert most >= 2**10 * 16 * (1 - 2**-20)  # a mean of 2**10 over the 16 tokens of a block
        for sign in (1, -1):
            loss, gradient = block_sum([sign * most] * blocks, [[sign * most]] * blocks, tokens)
            assert [loss, gradient.item()] == pytest.approx([sign * most * blocks] * 2)
            beyond = [[sign * most]] * (blocks - 1) + [[sign * most * 1.01]]
            loss, gradient = block_sum([0.0] * blocks, beyond, tokens)
            assert loss == 0 and gradient.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_nan_in_loss_and_gradient_apart(bad: float) -> None:
    loss, gradient = block_sum([1.0, bad, 2.0], [[1.0, 2.0]] * 3, 64)
    assert math.isnan(loss) and torch.equal(gradient, torch.tensor([3.0, 6.0]))
    loss, gradient = block_sum([1.0, 3.0], [[1.0, 2.0], [1.0, bad]], 64)
    assert loss == 4.0 and gradient.isnan().all()


# ------------------------------------------------------------------------------------------------------------- digest


def test_digest_is_of_names_types_shapes_and_bytes_in_the_order_of_names() -> None:
    model = torch.nn.ModuleDict({"b": torch.nn.Linear(2, 3, bias=False), "a": torch.nn.LayerNorm(2, bias=False)})
    values = [model["a"].weight.detach().numpy(), model["b"].weight.detach().numpy()]
    text = b"a.weight float32 2\n" + values[0].tobytes() + b"b.weight float32 3x2\n" + values[1].tobytes()
    assert weights_digest(model) == hashlib.sha256(text).hexdigest()


def test_one_bit_changes_the_digest() -> None:
    model = torch.nn.Linear(2, 2)
    before = weights_digest(model)
    with torch.no_grad():
        model.weight[1, 1] = torch.nextafter(model.weight[1, 1], torch.tensor(9.0))
    assert weights_digest(model) != before


# --------------------------------------------------------------------------------------------------- one step, one rank


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Exact mode's settings for this process, undone afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    make_deterministic(1)
    yield
    torch.use_deterministic_algorithms(strict)
    torch.set_num_threads(threads)


def plain() -> tuple[Transformer, torch.optim.Optimizer]:
    model = fill(Transformer(MODEL, VOCAB))
    return model, build_optimizer(model, TRAIN)


def test_exact_step_is_the_normal_step_but_for_rounding(one_thread: None) -> None:
    blocks = [pieces(number, 0) for number in range(5)]
    targets = sum(valid_targets(slot_block(number)) for number in range(5))
    (one, optimizer), (other, other_optimizer) = plain(), plain()
    total = BlockSum(one, 5, tokens_of(5))
    exact = exact_train_step(one, optimizer, blocks, targets, 1e-2, CLIP_NORM, total)
    flat = [micro for block in blocks for micro in block]
    normal = train_step(other, other_optimizer, flat, 0, targets, 1e-2, CLIP_NORM)
    assert exact.applied and exact.loss == pytest.approx(normal.loss, rel=1e-6)
    assert exact.grad_norm == pytest.approx(normal.grad_norm, rel=1e-5) and exact.grad_norm > CLIP_NORM
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_order_of_slot_blocks_changes_a_float_sum_and_not_the_exact_one(one_thread: None) -> None:
    """Else the equality of these weights at every W would prove nothing about the sum."""
    blocks = [pieces(number, 0) for number in range(8)]
    digests = set()
    for order in (blocks, blocks[::-1], blocks[3:] + blocks[:3]):
        model, optimizer = plain()
        exact_train_step(model, optimizer, order, 100, 1e-2, CLIP_NORM, BlockSum(model, 8, tokens_of(8)))
        digests.add(weights_digest(model))
    assert len(digests) == 1
    gradients = set()
    for order in (blocks, blocks[::-1]):
        model, _ = plain()
        accumulate_gradients(model, [micro for block in order for micro in block], 0, 1.0)
        gradients.add(b"".join(p.grad.numpy().tobytes() for p in model.parameters()))
    assert len(gradients) == 2


def test_padding_alone_is_a_step_of_zero_loss_and_zero_gradient(one_thread: None) -> None:
    model, optimizer = plain()
    padded = [[replace(micro, targets=torch.full_like(micro.targets, -100)) for micro in pieces(1, 0)]]
    result = exact_train_step(model, optimizer, padded, 0, 1e-2, CLIP_NORM, BlockSum(model, 1, tokens_of(1)))
    assert (result.loss, result.grad_norm, result.applied) == (0.0, 0.0, True)


def test_gradient_beyond_the_range_leaves_weights_and_optimizer_untouched(one_thread: None) -> None:
    model, optimizer = plain()
    before = weights_digest(model)
    hook = model.blocks[0].ffn.up.weight.register_hook(lambda gradient: gradient * 1e30)
    total = BlockSum(model, 1, tokens_of(1))
    result = exact_train_step(model, optimizer, [pieces(1, 0)], 10, 1e-2, CLIP_NORM, total)
    assert math.isfinite(result.loss) and not result.applied and weights_digest(model) == before
    assert {int(state["step"]) for state in optimizer.state.values()} == {0}
    hook.remove()
    assert exact_train_step(model, optimizer, [pieces(1, 0)], 10, 1e-2, CLIP_NORM, total).applied


# -------------------------------------------------------------------------------------------------- memory of a replica


def test_replica_that_does_not_fit_is_refused_with_its_size() -> None:
    needs = exact_memory_estimate_bytes(MODEL, VOCAB, "float32")
    check_exact_memory(MODEL, VOCAB, False, needs, "this GPU")
    with pytest.raises(ConfigError, match=r"about 0\.00 GiB each .* this GPU has 0\.00 GiB: .*train\.exact=false"):
        check_exact_memory(MODEL, VOCAB, False, needs - 1, "this GPU")


def test_estimate_counts_what_a_replica_holds() -> None:
    model = Replica(MODEL, VOCAB)
    optimizer = build_optimizer(model, TRAIN)
    parameters = sum(p.numel() for p in model.parameters())
    moments = sum(s[name].numel() for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    held = 4 * parameters + 4 * parameters + 4 * moments + 8 * BlockSum(model, 1, 1).total.numel()
    estimate = exact_memory_estimate_bytes(MODEL, VOCAB, "float32")
    assert held <= estimate <= held + 16 * max(p.numel() for p in model.parameters()) + 100
    assert exact_memory_estimate_bytes(MODEL, VOCAB, "bfloat16") == estimate + 2 * parameters


# --------------------------------------------------------------------------------------------------- several processes


def build(train: TrainConfig = EXACT) -> tuple[Transformer, torch.optim.Optimizer]:
    model = build_model(MODEL, VOCAB, train, CPU)
    assert isinstance(model, Replica)
    init_weights(model, 5)
    return model, build_optimizer(model, train)


def poison(model: torch.nn.Module, step: int, blocks: int) -> Any:
    """One slot block's loss is NaN, on the rank that holds it."""
    inputs = pieces(step * blocks + POISONED_BLOCK, step)[1].inputs

    def hook(_module: Any, args: Any, out: Loss) -> Loss:
        return Loss(*(part * math.nan for part in out)) if torch.equal(args[0], inputs) else out

    return model.register_forward_hook(hook)


def trace(
    model: torch.nn.Module, optimizer: Any, rank: int, world: int, first: int, last: int, blocks: int
) -> list[tuple[str, str, bool, str]]:
    """Per step (loss, gradient norm, applied, weights), all to the bit."""
    total = BlockSum(model, blocks, tokens_of(blocks))
    lines = []
    for step in range(first, last):
        own = owned_blocks(step, blocks, rank, world)
        (targets,) = all_reduce_sum([sum(valid_targets(slot_block(number)) for number in own)], CPU)
        hook = poison(model, step, blocks) if (step, blocks) == (POISONED_STEP, BLOCKS) else None
        by_block = [pieces(number, step) for number in own]
        result = exact_train_step(model, optimizer, by_block, int(targets), 1e-2, CLIP_NORM, total)
        if hook is not None:
            hook.remove()
        lines.append((result.loss.hex(), result.grad_norm.hex(), result.applied, agreed_digest(model)))
    return lines


class Scores(torch.nn.Module):
    """Logits by the token: 15 for token 0 and 1e12 for token 1, both on the score of target 0."""

    def forward(self, tokens: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return torch.tensor([15.0, 1e12])[tokens][..., None] * torch.nn.functional.one_hot(torch.tensor(0), VOCAB)


def held_out(model: torch.nn.Module, rank: int, world: int) -> list[str]:
    """Validation losses to the bit: of the model, and of one loss of 1e12 before eight that vanish beside it singly."""
    batches = [piece for number in range(100, 104) for piece in pieces(number, 0)]
    tokens = [torch.tensor([[int(index == 0)]]) for index in range(9)]
    unlike = [MicroBatch(token, token, torch.zeros_like(token), None) for token in tokens]
    results = [evaluate(model, batches, 1000, rank, world), evaluate(Scores(), unlike, 1000, rank, world)]
    return [result.loss.hex() for result in results]


def short_runs(rank: int, world: int) -> dict[Any, list]:
    runs: dict[Any, list] = {n: trace(*build(), rank, world, 0, SHORT_STEPS, n) for n in (4, 5, 6, 8)}
    half = replace(EXACT, precision="bfloat16")
    runs["bfloat16"] = trace(*build(half), rank, world, 0, SHORT_STEPS, BLOCKS)
    return runs


def whole_run(rank: int, world: int) -> tuple[Any, ...]:
    make_deterministic(1)
    model, optimizer = build()
    lines = trace(model, optimizer, rank, world, 0, STEPS, BLOCKS)
    return lines, held_out(model, rank, world), short_runs(rank, world)


def first_half(rank: int, world: int, folder: str) -> tuple[Any, ...]:
    make_deterministic(1)
    model, optimizer = build()
    lines = trace(model, optimizer, rank, world, 0, RESIZE_AT, BLOCKS)
    save_sharded(model, optimizer, {"step": RESIZE_AT}, f"{folder}/rank{rank}")
    return lines, held_out(model, rank, world), short_runs(rank, world)


def second_half(rank: int, world: int, folder: str) -> tuple[Any, ...]:
    """Resume at another size, by way of a normal, sharded run's checkpoint."""
    make_deterministic(1)
    merged = Path(folder, "merged")
    sharded = build_sharded(MODEL, VOCAB, TRAIN, CPU)
    sharded_optimizer = build_optimizer(sharded, TRAIN)
    load_sharded(sharded, sharded_optimizer, merged)
    save_sharded(sharded, sharded_optimizer, {"step": RESIZE_AT}, f"{folder}/again{rank}")
    torch.distributed.barrier()
    if rank == 0:
        merge(folder, "again")
    torch.distributed.barrier()
    model, optimizer = build()
    init_weights(model, 99)
    assert load_sharded(model, optimizer, Path(folder, "again")) == {"step": RESIZE_AT}
    lines = trace(model, optimizer, rank, world, RESIZE_AT, STEPS, BLOCKS)
    result = lines, held_out(model, rank, world), short_runs(rank, world)
    with torch.no_grad():
        model.norm.weight[0] += 1e-6 * rank
    with pytest.raises(ReplicaError, match=r"ranks \[1\] differ from those of rank 0"):
        agreed_digest(model)
    return result


def merge(folder: str, name: str) -> None:
    """The union of the ranks' folders, as the upload makes it."""
    parts = sorted(Path(folder).glob(f"{name}?"))
    Path(folder, "merged" if name == "rank" else name).mkdir()
    for part in parts:
        for file in part.iterdir():
            file.rename(Path(folder, "merged" if name == "rank" else name, file.name))


@pytest.fixture(scope="module")
def alone() -> tuple[Any, ...]:
    """The run on one rank, without a process group."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    result = whole_run(0, 1)
    torch.use_deterministic_algorithms(strict)
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="module")
def three() -> list[tuple[Any, ...]]:
    return run_ranks(3, whole_run)


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list]:
    """Four ranks, then two of them from the checkpoint on."""
    folder = str(tmp_path_factory.mktemp("exact"))
    before = run_ranks(4, first_half, folder)
    merge(folder, "rank")
    return before, run_ranks(2, second_half, folder)


def test_the_run_has_what_could_make_a_difference(alone: tuple[Any, ...]) -> None:
    lines = alone[0]
    assert all(BLOCKS % world for world in (2, 3, 4)) and MODEL.dropout > 0 and len(pieces(0, 0)) > 1
    assert any(micro.document_ids is not None for number in range(BLOCKS) for micro in pieces(number, 0))
    norms = [float.fromhex(norm) for _loss, norm, _applied, _digest in lines]
    assert sum(norm > CLIP_NORM for norm in norms) > STEPS / 2
    assert len({digest for *_numbers, digest in lines}) == STEPS - 1


def test_step_that_is_not_finite_is_skipped(alone: tuple[Any, ...]) -> None:
    lines = alone[0]
    assert [applied for _loss, _norm, applied, _digest in lines] == [step != POISONED_STEP for step in range(STEPS)]
    assert lines[POISONED_STEP][0] == "nan" and lines[POISONED_STEP][3] == lines[POISONED_STEP - 1][3]


def test_weights_losses_and_norms_are_the_same_bits_at_three_ranks(alone: tuple[Any, ...], three: list) -> None:
    for rank in three:
        assert rank[0] == alone[0]


def test_four_ranks_then_two_from_a_checkpoint_give_the_same_bits(alone: tuple[Any, ...], resized: Any) -> None:
    before, after = resized
    assert all(rank[0] == alone[0][:RESIZE_AT] for rank in before)
    assert all(rank[0] == alone[0][RESIZE_AT:] for rank in after)


@pytest.mark.parametrize("blocks", [*(pytest.param(n, marks=pytest.mark.slow) for n in (4, 6, 8)), 5, "bfloat16"])
def test_other_batch_sizes_and_bfloat16(alone: tuple[Any, ...], three: list, resized: Any, blocks: Any) -> None:
    for rank in [*three, *resized[0], *resized[1]]:
        assert rank[2][blocks] == alone[2][blocks]


def test_validation_is_the_same_bits(alone: tuple[Any, ...], three: list, resized: Any) -> None:
    for rank in [*three, *resized[1]]:
        assert rank[1] == alone[1]


def test_bfloat16_is_another_run(alone: tuple[Any, ...]) -> None:
    assert alone[2]["bfloat16"] != alone[0][:SHORT_STEPS]
    assert float.fromhex(alone[2]["bfloat16"][0][0]) == pytest.approx(float.fromhex(alone[0][0][0]), rel=0.01)
