"""The host asks the device for nothing while a step runs: a whole step on tensors that have no values.

    python -m pytest -q tests/train/test_no_host_read.py

A FakeTensor has a shape, a type and a device, and raises for everything that would have to know a value: item(),
tolist(), numpy(), bool(), nonzero(). On a GPU each of these makes the host wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrainer.config import ModelConfig, StabilityConfig, TrainConfig
from pretrainer.model import moe
from pretrainer.model.transformer import Transformer
from pretrainer.train.batch import to_tensor
from pretrainer.train.exact import BlockSum, exact_train_step
from pretrainer.train.optim import optimizer as optimizers
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.readback import HostCopy, StepResult
from pretrainer.train.spikes import Detector, Verdict
from pretrainer.train.step import MicroBatch, train_step
from pretrainer.train.telemetry import audit as audits
from pretrainer.train.telemetry.audit import Audit
from tests.model.fill import fill
from tests.train.samples import MODEL, SEQ_LEN, TRAIN, VOCAB, pieces, result_of
from tests.train.specs import block, worker_spec
from tests.train.test_architectures import experts

OPTIMIZERS = {
    "adamw": TRAIN,
    "bfloat16 state": replace(TRAIN, optimizer_state="bfloat16"),
    "muon": replace(TRAIN, optimizer="muon"),
}
MODELS = {"dense": MODEL, "bias": experts(balance="bias"), "slot_block": experts(balance="slot_block")}


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every tensor that is made has no values; the experts' products are those of the GPU, which need no number."""
    monkeypatch.setattr(moe, "grouped_linear", lambda x, weight, counts: x @ weight[0].T)
    with FakeTensorMode():
        yield


@pytest.fixture(params=["cpu", "cuda"])
def kind_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW is that of a device, wherever the parameters are."""
    kind = optimizers.adamw_for({request.param})
    monkeypatch.setattr(optimizers, "adamw_for", lambda devices: kind)


def micro_batches() -> list[MicroBatch]:
    ids = torch.zeros((2, SEQ_LEN + 1), dtype=torch.int64)
    return [MicroBatch(ids[:, :-1], ids[:, 1:], ids[:, 1:], ids[:, 1:])] * 2


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t.sum().item(),
    "tolist": lambda t: t.tolist(),
    "bool": lambda t: bool((t > 0).all()),
    "int": lambda t: int(t.sum()),
    "numpy": lambda t: t.numpy(),
    "nonzero": lambda t: t.nonzero(),
    "mask": lambda t: t[t > 0],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_would_be_found(no_values: None, read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(Exception, match=r"aten\.|numpy"):
        read(torch.ones(3))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("train", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.usefixtures("kind_for")
def test_a_step_reads_nothing(no_values: None, config: ModelConfig, train: TrainConfig) -> None:
    model = Transformer(config, VOCAB)
    optimizer = build_optimizer(model, train)
    scale, detector = LossScale("cpu", 8.0), Detector(StabilityConfig(on_spike="skip"), "cpu")
    result = train_step(model, optimizer, micro_batches(), 1, 10, 1e-2, 1.0, scale, detector)
    with pytest.raises(Exception, match="aten"):
        _ = result.loss  # later, when it is looked at


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_an_exact_step_reads_nothing(no_values: None, config: ModelConfig) -> None:
    model = Transformer(config, VOCAB)
    optimizer = build_optimizer(model, TRAIN)
    blocks = [micro_batches(), micro_batches()]
    detector = Detector(StabilityConfig(), "cpu")
    exact_train_step(model, optimizer, blocks, 10, 1e-2, 1.0, BlockSum(model, 2, 8 * SEQ_LEN), detector)


# ------------------------------------------------------------------------------------- what is decided on the device


@pytest.mark.parametrize("train", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.usefixtures("kind_for")
def test_a_step_that_is_not_finite_changes_no_bit_of_any_optimizer(train: TrainConfig, poison: float) -> None:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer = build_optimizer(model, train)
    assert train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-2, 1.0).applied
    with torch.no_grad():  # zeros with a sign are bits too
        model.blocks[0].ffn.up.weight[0] = -0.0
    before = bits(model, optimizer)
    hook = model.norm.register_forward_hook(lambda module, args, out: out * poison)
    assert not train_step(model, optimizer, pieces(2, 0), 0, 10, 1e-2, 1.0).applied
    hook.remove()
    assert bits(model, optimizer) == before
    assert train_step(model, optimizer, pieces(2, 0), 0, 10, 1e-2, 1.0).applied
    after = bits(model, optimizer)
    assert all(a != b for a, b in zip(before, after, strict=True) if len(a) > 4)
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


def bits(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[bytes]:
    states = [value for state in optimizer.state.values() for _name, value in sorted(state.items())]
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else t.numpy().tobytes()
            for t in (*model.parameters(), *states)]  # fmt: skip


@pytest.mark.usefixtures("kind_for")
def test_an_optimizer_is_told_for_one_step_alone() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer = build_optimizer(model, TRAIN)
    train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-2, 1.0)
    assert not hasattr(optimizer, "found_inf")


# ------------------------------------------------------------------------------------------------------ read later


class Event:
    """torch.cuda.Event of a GPU that is slow."""

    log: list[str] = []

    def record(self) -> None:
        self.log.append("recorded")

    def synchronize(self) -> None:
        self.log.append("waited")


class OnGpu(Tensor):
    is_cuda = True


def test_a_copy_is_waited_for_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "log", [])
    copy = HostCopy(torch.tensor([1.0, 2.0]).as_subclass(OnGpu))
    assert Event.log == ["recorded"]
    assert copy.read().tolist() == [1.0, 2.0] and Event.log == ["recorded", "waited"]


def test_a_result_has_the_numbers_it_was_given() -> None:
    chosen = torch.tensor([[1, 2], [3, 4]])
    result = result_of(1 / 3, 0.1, experts=chosen)
    assert (result.loss, result.grad_norm) == (1 / 3, torch.tensor(0.1).item())
    assert result.applied is True and result.expert_tokens == ((1, 2), (3, 4))
    assert result == result_of(1 / 3, 0.1, experts=chosen)
    assert result != result_of(1 / 3, 0.1, applied=False, experts=chosen)
    assert result.reason == "" and result_of(1.0, 1.0, reason="loss_spike").reason == "loss_spike"
    assert result_of(1.0, 1.0).expert_tokens == ()


def test_the_audit_looks_at_a_step_when_the_next_one_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    seen: list[int] = []

    class Slow(StepResult):
        def __init__(self, step: int) -> None:
            verdict = Verdict(torch.tensor(step != 1), torch.tensor(int(step == 1)), torch.full((2,), torch.inf))
            super().__init__(torch.tensor(1.0), torch.tensor(1.0), verdict)
            self.step = step

        @property
        def applied(self) -> bool:
            seen.append(self.step)
            return super().applied

    monkeypatch.setattr(audits.dist, "all_gather_object", lambda out, mine: out.__setitem__(slice(None), [list(mine)]))
    audit = Audit(worker_spec(tmp_path), rank=0, world=1, attempt=0)
    for step in range(3):
        audit.add(step, [(step, block(step))], [to_tensor(block(step))], Slow(step))
        assert set(seen) == set(range(step))
    audit._hash()
    assert [(entry[0], entry[4]) for entry in audit.mine] == [(0, None), (1, "not_finite"), (2, None)]
