"""The audit log: digests that notice every change, one line per step, sequence ranges without gaps.

    python -m pytest -q tests/train/telemetry/test_audit.py
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrainer.errors import StorageError
from pretrainer.schema import Batch
from pretrainer.storage import Store
from pretrainer.train.batch import block_digest, chain, step_digest, to_tensor
from pretrainer.train.spec import TrainState
from pretrainer.train.telemetry.audit import Audit, Entry, audit_lines, claim_attempt, provenance
from tests.train.samples import result_of
from tests.train.specs import BLOCKS_PER_STEP, ORDER, SEQ_LEN, SEQUENCES, block, worker_spec

CONFIG = worker_spec().config
DONE = result_of(1.0, 1.0)


def entry(number: int, batch: Batch, reason: str | None = None) -> Entry:
    step = number // BLOCKS_PER_STEP
    return Entry(step, number, block_digest(to_tensor(batch)), 10 + number, reason, 2.5, math.inf)


def entries(steps: int) -> list[Entry]:
    return [entry(number, block(number)) for number in range(steps * BLOCKS_PER_STEP)]


def lines_of(found: list[Entry], order_digest: str = "", attempt: int = 4) -> list[dict[str, Any]]:
    return audit_lines(worker_spec(), found, 2, attempt, order_digest)


def digests(found: list[Entry]) -> list[str]:
    return [line["digest"] for line in lines_of(found)]


def test_one_line_per_step_with_its_sums() -> None:
    lines = lines_of(entries(3))
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["targets"] for line in lines] == [sum(range(10 + 6 * s, 16 + 6 * s)) for s in range(3)]
    assert {(line["loss"], line["grad_norm"]) for line in lines} == {(2.5, None)}, "what is not finite is null"
    assert {line["tokens"] for line in lines} == {BLOCKS_PER_STEP * SEQUENCES * SEQ_LEN}
    assert {line["world_size"] for line in lines} == {2} and all(line["applied"] is True for line in lines)
    assert {line["attempt"] for line in lines} == {4}
    assert lines_of([]) == []


def test_digest_is_sha256_over_the_blocks_in_slot_order() -> None:
    raw = [hashlib.sha256(block(n).tokens.astype("<u4").tobytes()).digest() for n in range(2 * BLOCKS_PER_STEP)]
    want = [hashlib.sha256(b"".join(raw[i : i + BLOCKS_PER_STEP])).hexdigest() for i in (0, BLOCKS_PER_STEP)]
    assert digests(entries(2)) == want


def test_one_changed_token_changes_the_digest_of_its_step_alone() -> None:
    before, changed = entries(3), entries(3)
    tokens = block(8).tokens.copy()
    tokens[1, 3] += 1
    changed[8] = entry(8, replace(block(8), tokens=tokens))
    assert [a == b for a, b in zip(digests(before), digests(changed), strict=True)] == [True, False, True]


def test_two_swapped_blocks_change_the_digest() -> None:
    swapped = entries(1)
    swapped[2], swapped[3] = entry(2, block(3)), entry(3, block(2))
    assert digests(swapped) != digests(entries(1))


def test_step_is_applied_only_if_every_block_says_so() -> None:
    found = entries(2)
    found[7] = entry(7, block(7), "loss_spike")
    assert [(line["applied"], line["reason"]) for line in lines_of(found)] == [(True, ""), (False, "loss_spike")]


def test_provenance_is_the_half_open_range_of_sequences_by_source() -> None:
    # Sources of blocks 0 to 11: 0 1 0 0 | 0 1 0 0 | 0 1 0 0, with two sequences each.
    assert provenance(CONFIG, SEQUENCES, ORDER, [0, 1, 2, 3, 4, 5]) == {"code": [0, 8], "web": [0, 4]}
    assert provenance(CONFIG, SEQUENCES, ORDER, [6, 7, 8, 9, 10, 11]) == {"code": [8, 18], "web": [4, 6]}
    assert provenance(CONFIG, SEQUENCES, ORDER, [2, 3]) == {"code": [2, 6]}


def test_ranges_of_a_source_join_from_step_to_step() -> None:
    lines = lines_of(entries(8))
    for name in ("code", "web"):
        ranges = [line["provenance"][name] for line in lines]
        assert ranges[0][0] == 0 and all(a[1] == b[0] < b[1] for a, b in zip(ranges, ranges[1:], strict=False))


def gather_with(other: list[Entry]) -> Any:
    def all_gather_object(out: list[Any], mine: list[Entry]) -> None:
        out[:] = [list(mine), other]

    return all_gather_object


def test_object_holds_all_ranks_lines_and_the_chain_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two ranks with every other block give the lines that one rank with all of them would give."""
    same = {"targets": SEQUENCES * SEQ_LEN, "loss": 1.0, "grad_norm": 1.0}
    whole = [entry(n, block(n))._replace(**same) for n in range(2 * BLOCKS_PER_STEP)]
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with(whole[1::2]))
    audit = Audit(worker_spec(tmp_path), rank=0, world=2, attempt=7)
    for step in range(2):
        mine = [(n, block(n)) for n in range(6 * step, 6 * step + 6, 2)]
        audit.add(step, mine, [to_tensor(b) for _n, b in mine], DONE)
    assert audit.lines_waiting
    before = hashlib.sha256(b"before").hexdigest()
    digest = audit.write(TrainState(step=2, order_digest=before))
    written = (tmp_path / "audit/000000000-000000001-a000007.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines == lines_of(whole, before, attempt=7)
    assert digest == chain(chain(before, lines[0]["digest"]), lines[1]["digest"]) == lines[1]["order_digest"]
    assert not audit.lines_waiting


def test_only_rank_0_writes_and_both_get_the_same_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with(entries(1)))
    written = {}
    for rank in (1, 0):
        written[rank] = Audit(worker_spec(tmp_path / str(rank)), rank, world=2, attempt=0).write(TrainState(step=1))
    assert written[0] == written[1] != ""
    assert not (tmp_path / "1").exists() and (tmp_path / "0/audit").is_dir()


def test_nothing_new_keeps_the_digest_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with([]))
    assert Audit(worker_spec(tmp_path), rank=0, world=2, attempt=0).write(TrainState(order_digest="ab")) == "ab"
    assert list(tmp_path.iterdir()) == []


def test_digest_is_of_the_ids_and_not_of_their_type() -> None:
    ids = np.ascontiguousarray(block(5).tokens, "<u4")
    assert block_digest(to_tensor(block(5))) == hashlib.sha256(ids.tobytes()).hexdigest()


def test_attempts_are_numbered_over_the_life_of_the_run(tmp_path: Path) -> None:
    """Whoever starts the worker group, and whatever the one before left behind."""
    run = Store(str(tmp_path))
    assert [claim_attempt(run, step, world) for step, world in ((0, 2), (0, 2), (3, 1))] == [0, 1, 2]
    found = json.loads((tmp_path / "audit/attempts/000002.json").read_text())
    assert (found["attempt"], found["step"], found["world_size"]) == (2, 3, 1) and found["time_s"] > 0


def test_two_groups_that_start_at_once_never_have_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Store(str(tmp_path))
    claim_attempt(run, 0, 2)
    monkeypatch.setattr(Store, "list", lambda *_args: [])  # a listing from before the other one's start
    with pytest.raises(StorageError, match="other bytes"):
        claim_attempt(run, 0, 2)


def test_only_rank_0_takes_a_number_and_all_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[Any] = []

    def broadcast(numbers: list[Any], src: int) -> None:
        sent[:] = sent or numbers  # the first caller is the source
        numbers[:] = sent

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assert [Audit.begin(worker_spec(tmp_path), rank, 3, 0).attempt for rank in (0, 1, 2)] == [0, 0, 0]
    assert len(list(tmp_path.glob("audit/attempts/*"))) == 1


def test_an_object_is_never_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lines of an attempt that crashed before its commit stay beside those of the next one."""
    for attempt, ids in ((0, entries(2)), (1, entries(3))):
        monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with(ids))
        Audit(worker_spec(tmp_path), rank=0, world=2, attempt=attempt).write(TrainState(step=2))
    names = sorted(path.name for path in tmp_path.glob("audit/*.jsonl"))
    assert names == ["000000000-000000001-a000000.jsonl", "000000000-000000002-a000001.jsonl"]
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with([entry(0, block(1)), *entries(2)[1:]]))
    with pytest.raises(StorageError, match="other bytes"):
        Audit(worker_spec(tmp_path), rank=0, world=2, attempt=0).write(TrainState(step=2))


def test_digest_is_of_what_the_model_got_whatever_happens_to_the_tensor_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Blocks are hashed one step late; the copy is made at once."""
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with([]))
    audit, tensor = Audit(worker_spec(tmp_path), rank=0, world=2, attempt=0), to_tensor(block(0))
    audit.add(0, [(0, block(0))], [tensor], DONE)
    want = chain("", step_digest([block_digest(tensor)]))
    tensor += 1
    assert audit.lines_waiting and audit.write(TrainState(step=1)) == want
