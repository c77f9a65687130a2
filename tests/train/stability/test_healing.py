"""What is decided about a spike, that it is written before it is acted on, and that a crash changes nothing.

    python -m pytest -q tests/train/stability/test_healing.py
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrainer.config import StabilityConfig
from pretrainer.errors import ConfigError, UnstableError
from pretrainer.model.transformer import Transformer
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import CHECKPOINTS, SNAPSHOT
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.readback import StepResult
from pretrainer.train.spec import TrainState
from pretrainer.train.stability.healing import Healer, logged_until, pending_restart, read_heals
from pretrainer.train.stability.kept_blocks import KeptBlocks
from pretrainer.train.stability.policies import POLICIES, Heal, Situation
from pretrainer.train.telemetry.audit import object_name
from tests.model.fill import fill
from tests.train.commits import LocalCommits, make_saving
from tests.train.ranks import run_ranks
from tests.train.samples import MODEL, TRAIN, VOCAB, build, full_weights, result_of, run_steps
from tests.train.specs import block
from tests.train.test_no_host_read import bits

CONFIG = StabilityConfig(window_steps=16, min_steps=8, max_heals=3)
SPIKE, USUAL, BAD = (result_of(9.0, 1.0, reason="loss_spike"), result_of(3.0, 1.0), result_of(math.nan, 1.0, False,
                     "not_finite"))  # fmt: skip


def spike(step: int, policy: str = "report", **fields: Any) -> Heal:
    return Heal(0, step, "loss_spike", policy, 0, 9.0, 1.0, 4.0, math.inf, **fields)


def decide(policy: str, step: int, heals: tuple[Heal, ...] = (), saved: int = 0, **at: Any) -> Heal:
    checkpoints, weights = at.get("checkpoints", (0, 10, 20)), at.get("weights", "")
    situation = Situation(CONFIG, heals, saved, step + 2, checkpoints, weights)
    return POLICIES[policy](spike(step, policy), situation)


# ------------------------------------------------------------------------------------------------------------- policies


def test_report_and_stop_change_no_step() -> None:
    assert decide("report", 25) == spike(25)
    assert decide("stop", 25) == spike(25, "stop")


def test_skip_leaves_the_step_out_and_stops_when_that_does_not_help() -> None:
    heals: tuple[Heal, ...] = ()
    for step in (25, 26, 27):
        found = decide("skip", step, heals)
        assert (found.policy, found.first_step, found.end_step) == ("skip", step, step + 1)
        heals += (found,)
    assert decide("skip", 28, heals).policy == "stop"
    assert decide("skip", 29, heals).policy == "skip", "step 28 was applied"


def test_rollback_leaves_out_the_step_then_what_is_behind_it_and_then_what_is_before() -> None:
    heals: tuple[Heal, ...] = ()
    for step, weights, first in ((25, "sound", 25), (26, "sound", 25), (28, "broken", 24)):
        found = decide("rollback", step, heals, saved=20, weights=weights)
        assert (found.policy, found.first_step, found.end_step, found.to_step) == ("rollback", first, step + 1, 20)
        assert found.weights == weights
        heals += (found,)
    assert decide("rollback", 29, heals, saved=20).policy == "stop"
    behind = decide("rollback", 31, heals, saved=30)
    assert (behind.first_step, behind.to_step) == (31, 30), "a new checkpoint was reached: a new story"
    twice = (decide("rollback", 21, saved=20, weights="broken"),) * 2
    late = decide("rollback", 22, twice, saved=20, weights="broken")
    assert late.first_step == 20, "nothing before the checkpoint is left out"
    first = decide("rollback", 50, saved=20, weights="broken")
    third = decide("rollback", 54, (first, first), saved=20, weights="broken")
    assert (first.first_step, third.first_step, third.end_step) == (49, 43, 55)


@pytest.mark.parametrize(("policy", "factor"), [("cut_lr", "lr_factor"), ("tighten_clip", "clip_factor")])
def test_a_cut_holds_from_the_next_step_on_and_is_made_once(policy: str, factor: str) -> None:
    cut = decide(policy, 25)
    assert (cut.policy, cut.from_step, getattr(cut, factor), cut.end_step) == (policy, 27, 0.5, 0)
    assert decide(policy, 26, (cut,)).policy == "report" and decide(policy, 34, (cut,)).policy == "report"
    assert decide(policy, 35, (cut,)).policy == policy


def test_restart_goes_back_a_checkpoint_further_with_a_lower_rate() -> None:
    found = decide("restart", 25)
    assert (found.policy, found.to_step, found.from_step, found.lr_factor) == ("restart", 10, 10, 0.5) and found.anew
    assert decide("restart", 5, checkpoints=(0,)).to_step == 0
    assert decide("restart", 5, checkpoints=()).policy == "stop"
    assert decide("restart", 25, (found,) * 3).policy == "stop"


def test_every_policy_of_the_config_is_there() -> None:
    names = StabilityConfig.__dataclass_fields__["on_spike"]
    assert names.type == "Policy"
    for policy in POLICIES:
        StabilityConfig(on_spike=policy)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"stability.on_nonfinite='report'"):
        StabilityConfig(on_nonfinite="report")


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_steps", 3), ("window_steps", 31), ("max_heals", 0), ("loss_sigmas", -1.0), ("grad_norm_sigmas", -1.0),
     ("lr_factor", 0.0), ("lr_factor", 1.0), ("clip_factor", 0.0), ("clip_factor", 1.0)],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"stability.{field}"):
        StabilityConfig(**{field: value})


def test_a_decision_says_what_showed_and_what_is_done() -> None:
    assert decide("rollback", 25, saved=20).message == "step 25: loss 9 is above 4"
    assert decide("rollback", 25, saved=20).action == "training goes back to step 20, steps 25 to 25 are left out"
    assert "multiplied by 0.5 from step 27" in decide("cut_lr", 25).action
    assert decide("stop", 25).action == "the run stops" and "nothing" in decide("report", 25).action


# ------------------------------------------------------------------------------------------------------------ decisions


def healer(run: Path, policy: str = "rollback", step: int = 0, attempt: int = 0) -> Healer:
    config = replace(CONFIG, on_spike=policy)  # type: ignore[arg-type]
    return Healer.open(config, Store(str(run)), 0, attempt, step)


def committed(run: Path, *steps: int) -> None:
    listed = [{"checkpoint_dir_name": f"step-{step:09d}-a000000", "metrics": {"step": step}} for step in steps]
    Store(str(run)).write(SNAPSHOT, json.dumps({"checkpoint_results": listed,
                                                "latest_checkpoint_result": listed[-1]}).encode())  # fmt: skip


def test_a_decision_is_in_storage_when_it_is_returned_and_obeyed_by_the_next_group(tmp_path: Path) -> None:
    first = healer(tmp_path)
    for step in range(20, 25):
        assert first.look(step, result_of(3.0 + step, 1.0), 20, step + 1) is None
    heal = first.look(25, SPIKE, 20, 27)
    assert heal is not None and read_heals(Store(str(tmp_path))) == [heal] and heal.seen == ((9.0, 1.0),)
    for one in (first, healer(tmp_path, step=20, attempt=1)):
        left_out = one.left_out(25)
        assert left_out is not None
        assert (left_out.applied, left_out.reason, left_out.loss) == (False, "loss_spike", 9.0)
        assert one.left_out(24) is None and one.left_out(26) is None
        assert one.look(25, SPIKE, 20, 27) is None, "not decided twice"
    assert first.look(26, SPIKE, 20, 28).number == 1  # type: ignore[union-attr]


def test_an_earlier_batch_says_whether_the_weights_are_broken(tmp_path: Path) -> None:
    cases = (3.9, "sound", 25), (4.1, "broken", 24), (math.nan, "broken", 24)
    for number, (loss, weights, first) in enumerate(cases):
        one, asked = healer(tmp_path / str(number)), list[int]()
        for step in range(18, 25):
            one.look(step, USUAL, 20, step + 2)
        spiked = result_of(9.0, 1.0, reason="loss_spike", loss_bound=4.0)
        heal = one.look(25, spiked, 20, 27, lambda step, loss=loss, asked=asked: asked.append(step) or loss)
        assert heal is not None and (heal.weights, heal.first_step, asked) == (weights, first, [24])
        again = one.look(26, spiked, 20, 28, lambda step, asked=asked: asked.append(step) or 9.0)
        assert again is not None and again.weights == "broken" and asked[1] < first, "no step that is left out is asked"
    lonely = healer(tmp_path / "lonely").look(20, spiked, 20, 22, lambda _step: math.nan)
    assert lonely is not None and lonely.weights == "", "the first step behind a checkpoint has nothing before it"


def test_a_crash_before_it_is_written_leaves_nothing_and_the_next_group_decides_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = healer(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "create", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            first.look(25, SPIKE, 20, 27)
    assert first.heals == [] and read_heals(Store(str(tmp_path))) == []
    again = healer(tmp_path, step=20, attempt=1).look(25, SPIKE, 20, 27)
    assert again is not None and (again.first_step, again.end_step, again.to_step) == (25, 26, 20)


def test_what_the_audit_log_has_is_not_decided_again(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    run.write(f"audit/{object_name(20, 29, 0)}", b"")
    assert [logged_until(run, step) for step in (10, 20, 25, 29, 30)] == [10, 30, 30, 30, 30]
    one = healer(tmp_path, "skip", step=20, attempt=1)
    assert not one.vetoes(29) and one.vetoes(30)
    assert one.look(29, SPIKE, 20, 31) is None and one.look(30, SPIKE, 20, 32) is not None


def test_only_a_policy_that_skips_vetoes(tmp_path: Path) -> None:
    assert [policy for policy in POLICIES if healer(tmp_path, policy).vetoes(5)] == ["skip"]
    one = healer(tmp_path, "skip")
    one.look(5, SPIKE, 0, 7)
    assert not one.vetoes(5) and one.vetoes(6)


def test_what_is_not_finite_has_its_own_policy_and_an_overflow_none(tmp_path: Path) -> None:
    one = healer(tmp_path)
    assert one.look(3, result_of(math.inf, 1.0, False, "overflow"), 0, 5) is None
    found = one.look(4, BAD, 0, 6)
    assert found is not None and found.policy == "skip" and found.reason == "not_finite"
    assert "NaN" not in Path(tmp_path, "healing/000000.json").read_text()
    again = read_heals(Store(str(tmp_path)))[0]
    assert math.isnan(again.loss) and math.isnan(again.seen[0][0]) and again.loss_bound == math.inf
    left_out = one.left_out(4)
    assert left_out is not None and math.isnan(left_out.loss) and left_out.reason == "not_finite"


def test_a_stop_is_raised_after_it_is_written_and_judged_again_under_another_policy(tmp_path: Path) -> None:
    with pytest.raises(UnstableError, match=r"step 25: loss 9 is above .* checkpoint of step 20 .*--step 25"):
        healer(tmp_path, "stop").look(25, SPIKE, 20, 27)
    assert [heal.policy for heal in read_heals(Store(str(tmp_path)))] == ["stop"]
    with pytest.raises(UnstableError):
        healer(tmp_path, "stop", 20, 1).look(25, SPIKE, 20, 27)
    assert healer(tmp_path, "skip", 20, 2).look(25, SPIKE, 20, 27).policy == "skip"  # type: ignore[union-attr]


def test_factors_multiply_from_their_steps_on(tmp_path: Path) -> None:
    one = healer(tmp_path, "cut_lr")
    one.look(10, SPIKE, 0, 12)
    one.look(30, SPIKE, 0, 32)
    tight = healer(tmp_path, "tighten_clip")
    tight.look(40, SPIKE, 0, 42)
    assert [tight.lr_factor(step) for step in (11, 12, 31, 32, 99)] == [1, 0.5, 0.5, 0.25, 0.25]
    assert [tight.clip_factor(step) for step in (41, 42)] == [1, 0.5]


def test_a_restart_is_pending_until_a_group_has_begun_there(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    committed(tmp_path, 0, 10, 20)

    def begin(attempt: int, step: int) -> None:
        run.create(f"audit/attempts/{attempt:06d}.json", json.dumps({"step": step}).encode())

    begin(0, 0)
    assert pending_restart(run) is None
    heal = healer(tmp_path, "restart").look(25, SPIKE, 20, 27)
    assert heal is not None and heal.to_step == 10 and pending_restart(run) == heal
    begin(1, 20)  # the workers were killed before the driver knew
    assert pending_restart(run) == heal and healer(tmp_path, "restart", 20, 1).restart == heal
    begin(2, 10)
    assert pending_restart(run) is None and healer(tmp_path, "restart", 10, 2).restart is None
    assert healer(tmp_path, "restart", 10, 2).lr_factor(10) == 0.5


def _look(rank: int, world: int, run: str) -> Any:
    one = Healer.open(replace(CONFIG, on_spike="rollback"), Store(run), rank, 0, 20)
    heal = one.look(25, SPIKE, 20, 27)
    return heal, one.heals, Healer.open(CONFIG, Store(run), rank, 1, 20).heals


def test_all_ranks_have_the_same_decision_and_one_writes_it(tmp_path: Path) -> None:
    answers = run_ranks(2, _look, str(tmp_path))
    assert answers[0] == answers[1] and [p.name for p in (tmp_path / "healing").iterdir()] == ["000000.json"]
    heal, known, again = answers[0]
    assert known == again == [heal]


# ------------------------------------------------------------------------------------------------------ the way back


class Stream:
    """A source that cannot be asked for a step twice."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def take(self, step: int) -> Any:
        assert step not in self.asked
        self.asked.append(step)
        return [(step, block(step))], 1.0

    def missing(self, step: int, mine: Any) -> int:
        return 7


def test_blocks_since_the_checkpoint_are_asked_of_the_stream_once() -> None:
    stream = Stream()
    blocks = KeptBlocks(stream, True)
    first = [blocks.take(step) for step in range(5)]
    assert [wait for _mine, wait in first] == [1.0] * 5 and blocks.missing(0, []) == 7
    blocks.forget(3)
    assert [blocks.take(step) for step in (3, 4)] == [(mine, 0.0) for mine, _wait in first[3:]]
    assert blocks.take(5)[1] == 1.0 and stream.asked == [0, 1, 2, 3, 4, 5] and sorted(blocks.kept) == [3, 4, 5]
    other = KeptBlocks(Stream(), False)
    other.take(0)
    assert other.kept == {}, "nothing is kept for a policy that never goes back"


def _back_and_on(rank: int, world: int, run: str, asynchronous: bool) -> Any:
    model, optimizer = build()
    commits = LocalCommits(run, rank, world)
    saving = make_saving(commits, model, optimizer, False, "rollback", async_checkpoints=asynchronous)
    state = TrainState(fingerprint="f")
    run_steps(model, optimizer, rank, world, 0, 2)
    state.step = 2
    saving.save(state)
    saving.wait()
    saved = full_weights(model)
    straight = [r.loss for r in run_steps(model, optimizer, rank, world, 2, 4)]
    after = full_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    back = saving.restore()
    restored = full_weights(model)
    again = [r.loss for r in run_steps(model, optimizer, rank, world, 2, 4)]
    same = all((a == b).all() for a, b in zip(saved.values(), restored.values(), strict=True))
    equal = all((a == b).all() for a, b in zip(after.values(), full_weights(model).values(), strict=True))
    return asdict(back)["step"], same, straight == again, equal, {int(s["step"]) for s in optimizer.state.values()}


@pytest.mark.parametrize(("world", "asynchronous"), [(1, True), (2, True), (2, False)])
def test_going_back_in_memory_is_going_back_to_the_bit(world: int, asynchronous: bool, tmp_path: Path) -> None:
    assert run_ranks(world, _back_and_on, str(tmp_path), asynchronous) == [(2, True, True, True, {4})] * world


def test_what_was_loaded_is_kept_until_the_first_checkpoint(tmp_path: Path) -> None:
    model = fill(Transformer(MODEL, VOCAB))
    saving = make_saving(LocalCommits(tmp_path), model, build_optimizer(model, TRAIN), audited=False)
    saving.keep(TrainState(step=7))
    before = bits(model, saving.optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert saving.restore().step == 7 and bits(model, saving.optimizer) == before
    assert not (tmp_path / CHECKPOINTS).exists()


def test_a_result_that_was_left_out_is_told_as_it_was() -> None:
    found = StepResult.left_out(9.0, 2.0, "grad_norm_spike")
    assert (found.loss, found.grad_norm, found.applied, found.reason) == (9.0, 2.0, False, "grad_norm_spike")
    assert found.expert_tokens == ()
