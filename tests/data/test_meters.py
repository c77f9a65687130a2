"""What Prometheus hears of curation.

python -m pytest -q tests/data/test_meters.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrainer.data import meters as module
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.meters import COUNTERS, GAUGES, MeteredInOrderDedup, run_name
from pretrainer.storage import Store
from tests.data.harness import curated, document, make_plan, no_held_out

TEXTS = [document(n) for n in (0, 1, 2, 1, 3, 4, 0, 5, 6, 7, 8, 9)]  # two repeat an earlier one


class Meter:
    """Ray's Counter and Gauge, as far as they are used here."""

    all: dict[str, Meter] = {}

    def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]) -> None:
        self.value, self.tags, self.keys = 0.0, {}, tag_keys
        Meter.all[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.keys)
        self.tags = tags

    def inc(self, value: float) -> None:
        assert value > 0  # Ray refuses others
        self.value += value

    def set(self, value: float) -> None:
        self.value = value


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Meter]:
    monkeypatch.setattr(Meter, "all", {})
    monkeypatch.setattr(module, "Counter", Meter)
    monkeypatch.setattr(module, "Gauge", Meter)
    return Meter.all


def test_documents_and_the_index_are_counted(tmp_path: Path, meters: dict[str, Meter]) -> None:
    plan = make_plan(tmp_path / "first", TEXTS)
    dedup = MeteredInOrderDedup(plan, no_held_out(plan))
    curated(plan, range(plan.units), dedup=dedup)
    values = {name: meters[f"pretrainer_{name}"].value for name in (*COUNTERS, *GAUGES)}
    assert values == {
        "documents_read_total": 12,
        "documents_kept_total": 10,
        "dedup_index_documents": 10,
        "dedup_index_bytes": dedup.index.memory_bytes(),
    }
    assert all(meter.tags == {"run": "first", "source": "synthetic"} for meter in meters.values())


def test_what_is_read_back_is_not_counted_again(tmp_path: Path, meters: dict[str, Meter]) -> None:
    plan = make_plan(tmp_path / "first", TEXTS)
    curated(plan, range(plan.units))
    again = MeteredInOrderDedup(plan, no_held_out(plan))
    curated(plan, range(plan.units), committed=plan.units, dedup=again)
    assert meters["pretrainer_documents_read_total"].value == 0


def test_it_decides_as_the_stage_without_meters_does(tmp_path: Path, meters: dict[str, Meter]) -> None:
    rows: dict[Any, Any] = {}
    for kind in (InOrderDedup, MeteredInOrderDedup):
        plan = make_plan(tmp_path / kind.__name__, TEXTS)
        rows[kind] = curated(plan, range(plan.units), dedup=kind(plan, no_held_out(plan)))
    assert rows[InOrderDedup] == rows[MeteredInOrderDedup]


@pytest.mark.parametrize("storage", ["/home/me/runs", "s3://bucket/runs", "s3://bucket/a/b?region=eu-west-1"])
def test_a_run_is_named_by_its_folder(storage: str) -> None:
    assert run_name(Store(storage).child("first").child("data").uri) == "first"
