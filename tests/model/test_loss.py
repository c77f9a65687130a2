"""The chunked loss against float64 arithmetic and against the whole one; what it allocates; what it never touches.

    python -m pytest -q tests/model/test_loss.py
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrainer.config import ModelConfig
from pretrainer.model import loss as loss_module
from pretrainer.model.loss import (
    CHUNK_BYTES,
    IGNORE,
    LossSettings,
    chunk_length,
    chunk_tokens,
    chunked_loss,
    whole_loss,
)
from pretrainer.model.transformer import Transformer
from tests.model.fill import fill

Tensors = tuple[Tensor, ...]
TOKENS, WIDTH, VOCAB = 50, 24, 70
SCALE = 0.37  # of the objective: train_step divides by the targets


def sample(dtype: torch.dtype = torch.float32, tokens: int = TOKENS, vocab: int = VOCAB) -> Tensors:
    """(hidden, weight, targets) whose logits are large enough to have sharp and flat rows."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    targets[::7] = IGNORE
    return hidden, weight, targets


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> Tensors:
    """(objective, nll, gradients of hidden and weight) in float64, from the formulas."""
    h, w = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = h[targets != IGNORE] @ w.T
    z = logits.exp().sum(-1)
    nll = (z.log() - logits[torch.arange(len(logits)), targets[targets != IGNORE]]).sum()
    objective = nll + z_loss * (z.log() ** 2).sum()
    return (objective.detach(), nll.detach(), *torch.autograd.grad(objective * SCALE, (h, w)))


@pytest.fixture(params=["operation by operation", "fused"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of what stands between the products of a chunk; the fused one is eager on the CPU."""
    monkeypatch.setattr(loss_module, "is_fused", lambda hidden: request.param == "fused")
    return request.param


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 1000])
def test_loss_and_gradients_agree_with_float64_arithmetic(form: str, chunk: int, z_loss: float) -> None:
    hidden, weight, targets = sample()
    loss = chunked_loss(hidden, weight, targets, True, LossSettings(chunk, z_loss))
    (loss.objective * SCALE).backward()
    got = loss.objective.detach(), loss.nll, hidden.grad, weight.grad
    assert loss.objective.dtype == torch.float32 and not loss.nll.requires_grad
    for value, expected in zip(got, reference(hidden, weight, targets, z_loss), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_the_whole_loss_is_the_same_function(z_loss: float) -> None:
    hidden, weight, targets = sample()
    loss = whole_loss((hidden @ weight.T)[None], targets[None], True, z_loss)
    objective, nll, *gradients = reference(hidden, weight, targets, z_loss)
    got = torch.autograd.grad(loss.objective * SCALE, (hidden, weight))
    for value, expected in zip((loss.objective.detach(), loss.nll, *got), (objective, nll, *gradients), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-5)


def test_a_second_backward_is_refused() -> None:
    """The gradients of the first one were scaled in place."""
    hidden, weight, targets = sample()
    loss = chunked_loss(hidden, weight, targets, True, LossSettings(7))
    loss.objective.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="backward runs once"):
        loss.objective.backward()


def test_bfloat16_products_leave_softmax_and_sums_in_float32(form: str) -> None:
    """Sums kept in bfloat16 over 250 chunks would be off by percents."""
    hidden, weight, targets = sample(torch.bfloat16, 2000)
    loss = chunked_loss(hidden, weight, targets, True, LossSettings(8))
    (loss.objective * SCALE).backward()
    _objective, nll, by_hidden, by_weight = reference(hidden, weight, targets, 0.0)
    assert hidden.grad is not None and weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert loss.nll.item() == pytest.approx(nll.item(), rel=1e-3)
    for value, expected in ((hidden.grad, by_hidden), (weight.grad, by_weight)):
        assert (value.double() - expected).norm() < 0.01 * expected.norm()


def test_chunks_give_the_same_bits_again() -> None:
    found = []
    for _ in range(2):
        hidden, weight, targets = sample()
        loss = chunked_loss(hidden, weight, targets, True, LossSettings(7))
        loss.objective.backward()
        found.append((loss.nll, hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_where_no_target_is_goes_nowhere(form: str, bad: float) -> None:
    hidden, weight, targets = sample()
    clean = chunked_loss(hidden, weight, targets, True, LossSettings(7, 0.1))
    expected = torch.autograd.grad(clean.objective, (hidden, weight))
    spoilt = torch.where((targets == IGNORE)[:, None], bad, hidden.detach()).requires_grad_()
    loss = chunked_loss(spoilt, weight, targets, True, LossSettings(7, 0.1))
    got = torch.autograd.grad(loss.objective, (spoilt, weight))
    assert torch.equal(loss.objective, clean.objective) and torch.equal(loss.nll, clean.nll)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not got[0][targets == IGNORE].any()


def test_a_dummy_of_nan_gives_zero_and_a_zero_gradient(form: str) -> None:
    hidden, weight, targets = sample()
    spoilt = torch.full_like(hidden, math.nan).requires_grad_()
    loss = chunked_loss(spoilt, weight, targets, False, LossSettings(7, 0.1))
    got = torch.autograd.grad(loss.objective, (spoilt, weight))
    assert loss.objective == 0 and loss.nll == 0 and not any(g.any() for g in got)
    assert chunked_loss(spoilt, weight, targets, True, LossSettings(7)).nll.isnan()  # a live one is seen


def test_no_target_at_all_is_zero(form: str) -> None:
    hidden, weight, targets = sample()
    loss = chunked_loss(hidden, weight, torch.full_like(targets, IGNORE), True, LossSettings(7, 0.1))
    got = torch.autograd.grad(loss.objective, (hidden, weight))
    assert loss.objective == 0 and not any(g.any() for g in got)


# --------------------------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gave, forward and backward."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.nbytes = max(self.nbytes, leaf.numel() * leaf.element_size())
        return out


MODEL = ModelConfig(layers=1, hidden=16, heads=2, ffn_hidden=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_is_ever_larger_than_the_logits_of_a_chunk(dtype: torch.dtype, training: bool) -> None:
    tokens, vocab, chunk = 1024, 2000, 64
    model = Transformer(MODEL, vocab).to(dtype)
    ids = torch.arange(tokens).reshape(16, 64)
    arguments = ids, ids % 64
    chunked = partial(chunked_loss, targets=ids, live=True, settings=LossSettings(chunk, 1e-4))
    with Largest() as largest, torch.set_grad_enabled(training):
        loss = model(*arguments, output=chunked)
        if training:
            loss.objective.backward()
    assert largest.nbytes == 4 * chunk * vocab  # float32
    with Largest() as whole, torch.set_grad_enabled(training):
        loss = whole_loss(model(*arguments), ids, True, 1e-4)
        if training:
            loss.objective.backward()
    assert whole.nbytes == 4 * tokens * vocab


def test_chunks_are_for_logits_beyond_the_limit() -> None:
    assert chunk_tokens(LossSettings(), 131_072, "cpu") == 512 and CHUNK_BYTES["cpu"] == 4 * 512 * 131_072
    assert chunk_tokens(LossSettings(), 131_072, "cuda") == 2048
    assert chunk_tokens(LossSettings(), 2**40, "cuda") == 1
    assert chunk_tokens(LossSettings(64), 2**40, "cpu") == 64


@pytest.mark.parametrize(("tokens", "most", "length"), [
    (8192, 2093, 2048), (32768, 5336, 4096), (8192, 8192, 8192), (100, 1000, 100), (50, 49, 25), (50, 7, 7),
    (50, 1, 1), (1, 1, 1), (0, 5, 1),
])  # fmt: skip
def test_chunks_are_equal_where_they_can_be(tokens: int, most: int, length: int) -> None:
    assert chunk_length(tokens, most) == length <= most


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_has_the_gradients_of_its_logits(tied: bool) -> None:
    config = ModelConfig(layers=1, hidden=16, heads=2, ffn_hidden=32, tie_embeddings=tied)
    model = fill(Transformer(config, VOCAB))
    ids = torch.randint(0, VOCAB, (3, 10), generator=torch.Generator().manual_seed(1))
    targets = torch.where(ids % 5 == 0, IGNORE, ids.roll(-1, 1))
    arguments = ids, torch.arange(10).expand(3, -1), (ids.cumsum(1) > 200).long()
    found = []
    chunked = partial(chunked_loss, targets=targets, live=True, settings=LossSettings(7))
    for loss in (model(*arguments, output=chunked), whole_loss(model(*arguments), targets)):
        found.append((loss.objective.detach(), *torch.autograd.grad(loss.objective, list(model.parameters()))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
