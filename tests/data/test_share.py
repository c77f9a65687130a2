"""A run on the prepared tokens of another: the same stream under its own batch, and nothing else may differ.

    python -m pytest -q tests/data/test_share.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrainer.config import Config, RunConfig, TrainConfig
from pretrainer.data import prologue
from pretrainer.data.identity import record_parts
from pretrainer.data.prologue import accept, data_folder, refuse_changes, share, thaw
from pretrainer.errors import ConfigError, SourceError, UserError
from pretrainer.schema import DOCUMENTS, to_ipc
from pretrainer.storage import Store
from tests.data.harness import curated, document, make_plan


@pytest.fixture
def first(tmp_path: Path) -> Config:
    """A run folder as a first start leaves it, but for its ledger."""
    draft = make_plan(tmp_path / "first", [document(n) for n in range(60)])
    config = Config(run=RunConfig(name="first", storage=str(tmp_path)), data=draft.config,
                    train=TrainConfig(steps=8, global_batch_tokens=128))  # fmt: skip
    data = Store(draft.data_uri)
    data.write("sizes.json", b"[1.0]")
    data.write("held_out/summary.json", b"{}")
    data.write("held_out/synthetic.documents.arrow", to_ipc(DOCUMENTS.empty_table()))
    record_parts({"synthetic": {"curation": {"code": 1}}}, data)
    record_parts(prologue._live_parts(config, thaw(config, data), data), data)
    return config


def second(first: Config, **train: int) -> Config:
    return replace(first, run=replace(first.run, name="second", data_from="first"), train=replace(first.train, **train))


def folders(config: Config) -> tuple[Store, Store]:
    """(where the tokens are, the run's own data folder)"""
    run = Store(config.run.storage).child(config.run.name)
    return data_folder(config, run), run.child("data")


def test_where_the_tokens_are(first: Config, tmp_path: Path) -> None:
    assert data_folder(first, Store(str(tmp_path / "first"))).uri == Store(str(tmp_path / "first/data")).uri
    assert folders(second(first))[0].uri == Store(str(tmp_path / "first/data")).uri
    elsewhere = replace(first, run=replace(first.run, data_from=str(tmp_path / "x/y")))
    assert data_folder(elsewhere, Store(str(tmp_path / "z"))).uri == Store(str(tmp_path / "x/y/data")).uri


def test_another_batch_reads_the_ledger_and_windows_of_the_first(first: Config) -> None:
    data, own = folders(second(first))
    (plan,) = thaw(first, data).plans
    curated(plan, range(3))
    found = share(second(first, global_batch_tokens=64, steps=16), data, own)
    (shared,) = found.plans
    assert shared.ledger.committed_units() == 3 and shared.windows.root.uri == plan.windows.root.uri
    assert found.fingerprint != share(second(first), data, own).fingerprint  # a batch is part of the order
    assert found.segments[-1].end_step == 16 and found.changes == ()


def test_a_run_that_differs_in_nothing_has_the_fingerprint_of_the_first(first: Config) -> None:
    data, own = folders(second(first))
    assert share(second(first), data, own).fingerprint == thaw(first, data).fingerprint


def test_its_own_folder_holds_its_own_fingerprint_and_nothing_of_the_first_is_touched(first: Config) -> None:
    config = second(first, global_batch_tokens=64)
    data, own = folders(config)
    before = data.read("fingerprint.json")
    found = share(config, data, own)
    accept(found, own)
    assert data.read("fingerprint.json") == before and [entry.path for entry in own.list()] == ["fingerprint.json"]
    assert thaw(config, data, own).fingerprint == found.fingerprint != thaw(config, data).fingerprint
    refuse_changes(config, found, data, own)
    other = share(second(first, global_batch_tokens=256, steps=4), data, own)
    assert other.changes == ("order.slot_blocks_per_step",)
    with pytest.raises(ConfigError, match="order.slot_blocks_per_step"):
        refuse_changes(second(first, global_batch_tokens=256, steps=4), other, data, own)


@pytest.mark.parametrize("field", ["pack_window_tokens", "order_seed", "seq_len"])
def test_another_config_of_the_data_is_refused_by_name(first: Config, field: str) -> None:
    config = second(first)
    config = replace(config, data=replace(config.data, **{field: {"seq_len": 8}.get(field, 2200)}))
    with pytest.raises(ConfigError, match=f"data_from='first'.*synthetic.*{field}"):
        share(config, *folders(config))


def test_a_changed_input_is_refused(first: Config, tmp_path: Path) -> None:
    path = tmp_path / "first/corpus/00000.jsonl"
    path.write_text(path.read_text() + json.dumps({"text": "more"}) + "\n")
    with pytest.raises(SourceError, match="00000.jsonl"):
        share(second(first), *folders(second(first)))


def test_a_run_that_is_not_there_is_told(first: Config) -> None:
    config = replace(first, run=replace(first.run, data_from="absent"))
    with pytest.raises(UserError, match="absent/data is not complete"):
        share(config, *folders(config))


def test_lines_of_another_sequence_length_belong_to_one_run(first: Config) -> None:
    """Where they begin depends on the batch, and is written into the data folder."""
    from pretrainer.config import SegmentConfig

    stages = (SegmentConfig(until=0.5), SegmentConfig(until=1.0, seq_len=8))
    config = second(first)
    config = replace(config, data=replace(config.data, curriculum=stages))
    with pytest.raises(ConfigError, match="sequence length"):
        share(config, *folders(config))
