"""Forgetting: held-out loss on the replay sources against step 0, over restarts of the driver.

    python -m pytest -q tests/test_forgetting.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.driver.forgetting import Forgetting, general_loss, words
from pretrainer.config import InitConfig
from pretrainer.data.held_out import HeldOut
from pretrainer.storage import Store
from pretrainer.tracking import EVENT_METRICS
from tests.test_preflight import config

HELD = {
    "old": HeldOut(3, 4000, 1000, 2.0, 3.0),
    "older": HeldOut(3, 1000, 500, 2.0, 3.0),
    "new": HeldOut(3, 9000, 3000, 2.0, 3.0),
}
CONFIG = replace(config(), init=InitConfig(uri="parent", replay=("old", "older")))


def validation(step: int, **losses: float) -> dict[str, Any]:
    sources = {n: {"loss": loss, "bits_per_byte": loss / 2, "targets": HELD[n].tokens} for n, loss in losses.items()}
    return {"kind": "validation", "step": step, "sources": sources}


FIRST = validation(0, old=2.0, older=1.0, new=4.0)
LATER = validation(5, old=2.3, older=1.6, new=3.0)


def test_general_loss_is_weighted_by_tokens_and_bits_by_bytes() -> None:
    sources = {name: FIRST["sources"][name] for name in ("old", "older")}
    assert general_loss(sources, HELD) == pytest.approx({"loss": 2500 / 1500, "bits_per_byte": 4500 / 5000})


def test_it_is_the_rise_on_the_replay_sources_alone(tmp_path: Path) -> None:
    forgetting = Forgetting(CONFIG, Store(str(tmp_path)), HELD)
    assert forgetting.notice(FIRST) == [] and forgetting.notice({"kind": "steps"}) == []
    (event,) = forgetting.notice(LATER)
    assert event["kind"] == "forgetting" and event["sources"] == ["old", "older"]
    assert event["loss"] == pytest.approx((0.3 * 1000 + 0.6 * 500) / 1500)
    assert event["bits_per_byte"] == pytest.approx((0.15 * 4000 + 0.3 * 1000) / 5000)
    assert "+0.4000 nats per token, +0.1800 bits per byte on held-out text of old, older" in words(event)
    assert "(loss 1.6667 at step 0, 2.0667 now)" in words(event)
    assert EVENT_METRICS["forgetting"](event) == [
        ("forgetting/loss", event["loss"], 5),
        ("forgetting/bits_per_byte", event["bits_per_byte"], 5),
    ]


def test_a_driver_that_starts_later_knows_step_0_and_says_nothing_twice(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = Forgetting(CONFIG, store, HELD)
    first.notice(FIRST)
    first.notice(LATER)
    second = Forgetting(CONFIG, store, HELD)
    assert second.report == first.report and second.report is not None
    assert second.notice(LATER) == [] and second.notice(FIRST) == []
    (event,) = second.notice(validation(8, old=2.0, older=1.0, new=2.0))
    assert event["loss"] == pytest.approx(0.0) and second.report["step"] == 8


def test_nothing_is_said_where_nothing_can_be_forgotten(tmp_path: Path) -> None:
    for init in (InitConfig(), InitConfig(uri="folder")):
        forgetting = Forgetting(replace(CONFIG, init=init), Store(str(tmp_path)), HELD)
        assert forgetting.notice(FIRST) == [] == forgetting.notice(LATER) and forgetting.report is None
    late = Forgetting(CONFIG, Store(str(tmp_path)), HELD)
    assert late.notice(LATER) == [] and late.report is None  # there was no step 0 to compare with
