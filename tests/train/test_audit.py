"""The audit log: digests that notice every change, one line per step, sequence ranges without gaps.

    python -m pytest -q tests/train/test_audit.py
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed

from pretrainer.schema import Batch
from pretrainer.train.audit import Audit, audit_lines, provenance
from pretrainer.train.batch import block_digest, chain, to_tensor
from pretrainer.train.spec import TrainState
from pretrainer.train.step import StepResult
from tests.train.specs import BLOCKS_PER_STEP, SEQ_LEN, SEQUENCES, block, worker_spec

Entry = tuple[int, int, str, int, bool]


def entry(number: int, batch: Batch, applied: bool = True) -> Entry:
    return number // BLOCKS_PER_STEP, number, block_digest(to_tensor(batch)), 10 + number, applied


def entries(steps: int) -> list[Entry]:
    return [entry(number, block(number)) for number in range(steps * BLOCKS_PER_STEP)]


def digests(found: list[Entry]) -> list[str]:
    return [line["digest"] for line in audit_lines(worker_spec(), found, world=2)]


def test_one_line_per_step_with_its_sums() -> None:
    lines = audit_lines(worker_spec(), entries(3), world=2)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["targets"] for line in lines] == [sum(range(10 + 6 * s, 16 + 6 * s)) for s in range(3)]
    assert {line["tokens"] for line in lines} == {BLOCKS_PER_STEP * SEQUENCES * SEQ_LEN}
    assert {line["world_size"] for line in lines} == {2} and all(line["applied"] is True for line in lines)
    assert audit_lines(worker_spec(), [], world=2) == []


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
    found[7] = entry(7, block(7), applied=False)
    assert [line["applied"] for line in audit_lines(worker_spec(), found, world=2)] == [True, False]


def test_provenance_is_the_half_open_range_of_sequences_by_source() -> None:
    # Sources of blocks 0 to 11: 0 1 0 0 | 0 1 0 0 | 0 1 0 0, with two sequences each.
    assert provenance(worker_spec(), [0, 1, 2, 3, 4, 5]) == {"code": [0, 8], "web": [0, 4]}
    assert provenance(worker_spec(), [6, 7, 8, 9, 10, 11]) == {"code": [8, 18], "web": [4, 6]}
    assert provenance(worker_spec(), [2, 3]) == {"code": [2, 6]}


def test_ranges_of_a_source_join_from_step_to_step() -> None:
    lines = audit_lines(worker_spec(), entries(8), world=2)
    for name in ("code", "web"):
        ranges = [line["provenance"][name] for line in lines]
        assert ranges[0][0] == 0 and all(a[1] == b[0] < b[1] for a, b in zip(ranges, ranges[1:], strict=False))


def gather_with(other: list[Entry]) -> Any:
    def all_gather_object(out: list[Any], mine: list[Entry]) -> None:
        out[:] = [list(mine), other]

    return all_gather_object


def test_object_holds_all_ranks_lines_and_the_chain_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two ranks with every other block give the lines that one rank with all of them would give."""
    whole = [entry(n, block(n))[:3] + (SEQUENCES * SEQ_LEN, True) for n in range(2 * BLOCKS_PER_STEP)]
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with(whole[1::2]))
    audit = Audit(worker_spec(tmp_path), rank=0, world=2)
    for step in range(2):
        mine = [(n, block(n)) for n in range(6 * step, 6 * step + 6, 2)]
        audit.add(step, mine, [to_tensor(b) for _n, b in mine], StepResult(1.0, 1.0, True))
    assert audit.lines_waiting
    before = hashlib.sha256(b"before").hexdigest()
    digest = audit.write(TrainState(step=2, order_digest=before))
    lines = [json.loads(line) for line in (tmp_path / "audit/000000000-000000001.jsonl").read_text().splitlines()]
    assert lines == audit_lines(worker_spec(), whole, world=2)
    assert digest == chain(chain(before, lines[0]["digest"]), lines[1]["digest"])
    assert not audit.lines_waiting


def test_only_rank_0_writes_and_both_get_the_same_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with(entries(1)))
    written = {}
    for rank in (1, 0):
        written[rank] = Audit(worker_spec(tmp_path / str(rank)), rank, world=2).write(TrainState(step=1))
    assert written[0] == written[1] != ""
    assert not (tmp_path / "1").exists() and (tmp_path / "0/audit").is_dir()


def test_nothing_new_keeps_the_digest_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather_with([]))
    assert Audit(worker_spec(tmp_path), rank=0, world=2).write(TrainState(order_digest="ab")) == "ab"
    assert list(tmp_path.iterdir()) == []


def test_digest_is_of_the_ids_and_not_of_their_type() -> None:
    ids = np.ascontiguousarray(block(5).tokens, "<u4")
    assert block_digest(to_tensor(block(5))) == hashlib.sha256(ids.tobytes()).hexdigest()
