"""The audit log proves what it should: every way to damage it is found, at the step where it is.

    python -m pytest -q tests/train/telemetry/test_auditlog.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pretrainer.storage import Store
from pretrainer.train.batch import block_digest, to_tensor
from pretrainer.train.telemetry.audit import Entry, audit_lines, object_name
from pretrainer.train.telemetry.auditlog import Verdict, compare_digest, examine, read_log
from tests.train.specs import BLOCKS_PER_STEP, CURRICULUM, block, worker_spec

CONFIG = worker_spec().config
EVERY = 3  # steps per checkpoint


def entries(first: int, end: int) -> list[Any]:
    numbers = range(first * BLOCKS_PER_STEP, end * BLOCKS_PER_STEP)
    return [Entry(n // BLOCKS_PER_STEP, n, block_digest(to_tensor(block(n))), 10) for n in numbers]


LINES = audit_lines(worker_spec(), entries(0, 9), 2, 0, "")


def start(folder: Path, attempt: int, step: int, world: int = 2) -> None:
    record = {"attempt": attempt, "step": step, "world_size": world, "time_s": 1.0}
    Store(str(folder)).write(f"audit/attempts/{attempt:06d}.json", json.dumps(record).encode())


def log(folder: Path, attempt: int, first: int, end: int, **changes: Any) -> Path:
    """One object of an attempt, as train.audit writes it."""
    before = LINES[first - 1]["order_digest"] if first else ""
    lines = audit_lines(worker_spec(), entries(first, end), changes.pop("world_size", 2), attempt, before)
    body = "".join(json.dumps({**line, **changes}, sort_keys=True) + "\n" for line in lines)
    path = folder / "audit" / object_name(first, end - 1, attempt)
    Store(str(folder)).write(f"audit/{path.name}", body.encode())
    return path


def verdict(folder: Path, committed: int = 9) -> Verdict:
    return examine(read_log(Store(str(folder))), CONFIG, CURRICULUM, committed)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Nine steps by one attempt, in three objects."""
    start(tmp_path, 0, 0)
    for first in range(0, 9, EVERY):
        log(tmp_path, 0, first, first + EVERY)
    return tmp_path


def test_an_undisturbed_log_proves_everything(run: Path) -> None:
    found = verdict(run)
    assert found.problems == [] and [asdict(line) for line in found.lines] == LINES
    assert found.restarts == [] and found.world_sizes() == [(0, 8, 2)]
    assert found.checkpoint_after == {step: step // 3 * 3 + 3 for step in range(9)}
    assert found.sequences(9) == {"code": 80, "web": 28} and found.sequences(1) == {"code": 8, "web": 4}
    assert compare_digest(found, 9, LINES[8]["order_digest"], "the checkpoint") == []
    assert compare_digest(found, 6, LINES[5]["order_digest"], "the checkpoint") == []
    assert "the checkpoint" in compare_digest(found, 8, LINES[8]["order_digest"], "the checkpoint")[0]


def test_restarts_resizes_and_replays_are_listed(tmp_path: Path) -> None:
    """A crash between audit and commit, one before anything was logged, one at another world size."""
    start(tmp_path, 0, 0)
    log(tmp_path, 0, 0, 3)
    log(tmp_path, 0, 3, 6)  # its checkpoint was never committed
    start(tmp_path, 1, 3)
    start(tmp_path, 2, 3, world=1)
    log(tmp_path, 2, 3, 5, world_size=1)
    log(tmp_path, 2, 5, 9, world_size=1)
    found = verdict(tmp_path)
    assert found.problems == []
    assert [(r.attempt, r.step, r.world_size, r.replayed_steps) for r in found.restarts] == [(1, 3, 2, 3), (2, 3, 1, 0)]
    assert found.world_sizes() == [(0, 2, 2), (3, 8, 1)]
    assert [line.attempt for line in found.lines] == [0] * 3 + [2] * 6
    assert found.checkpoint_after[3] == 5 and found.checkpoint_after[5] == 9


def test_steps_that_wait_for_their_commit_are_no_problem(run: Path) -> None:
    assert verdict(run, committed=6).problems == []


def test_a_torn_object_is_found_before_its_commit_too(run: Path) -> None:
    path = run / "audit" / object_name(6, 8, 0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert "step 8: " in verdict(run, committed=6).problems[0]


def test_a_step_that_was_not_applied_is_named(run: Path) -> None:
    log(run, 0, 3, 6, applied=False)
    found = verdict(run)
    assert found.problems == [] and [line.step for line in found.lines if not line.applied] == [3, 4, 5]


def edit(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """Change the lines of the second object (steps 3 to 5)."""

    def apply(run: Path) -> None:
        path = run / "audit" / object_name(3, 5, 0)
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return apply


def with_attempt(first: int, end: int, step: int, **changes: Any) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        start(run, 1, step)
        log(run, 1, first, end, **changes)

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a line is missing": (edit(lambda lines: lines.pop(1)), "step 4: "),
    "the last line is missing": (edit(lambda lines: lines.pop()), "step 5: "),
    "a line is there twice": (edit(lambda lines: lines.insert(1, lines[1])), "step 5: "),
    "two lines are swapped": (edit(lambda lines: lines.reverse()), "step 3: "),
    "a digest was altered": (edit(lambda lines: lines[1].update(digest="0" * 64)), "step 4: its digest"),
    "a digest is no digest": (edit(lambda lines: lines[1].update(digest="zz")), "step 4: its digest"),
    "an order digest was altered": (edit(lambda lines: lines[2].update(order_digest="0" * 64)), "step 5: its digest"),
    "two digests were swapped": (
        edit(lambda lines: [a.update(digest=b) for a, b in zip(lines[:2], [lines[1]["digest"], lines[0]["digest"]],
                                                              strict=True)]), "step 3: its digest",
    ),
    "a range has a gap": (edit(lambda lines: lines[1]["provenance"]["web"].__setitem__(0, 13)), "step 4: source web"),
    "a range ends early": (
        edit(lambda lines: lines[1]["provenance"]["web"].__setitem__(1, 13)), "step 4: sequences",
    ),
    "a source is missing": (edit(lambda lines: lines[1]["provenance"].pop("web")), "step 4: sequences"),
    "more targets than tokens": (edit(lambda lines: lines[0].update(targets=10**6)), "step 3: "),
    "another batch size": (edit(lambda lines: lines[0].update(tokens=1)), "step 3: "),
    "another world size than its attempt": (edit(lambda lines: lines[0].update(world_size=5)), "step 3: world size 5"),
    "a line of another attempt": (edit(lambda lines: lines[0].update(attempt=1)), "step 3: "),
    "an unreadable line": (edit(lambda lines: lines[0].pop("digest")), "step 3: line 1"),
    "a missing object": (lambda run: (run / "audit" / object_name(3, 5, 0)).unlink(), "step 3: it is missing"),
    "the last object is missing": (lambda run: (run / "audit" / object_name(6, 8, 0)).unlink(), "step 6: it is miss"),
    "an object twice": (lambda run: log(run, 0, 4, 7), "step 4: it is logged twice"),
    "an object of no attempt": (lambda run: log(run, 3, 3, 6), "step 3: "),
    "another name": (lambda run: (run / "audit" / object_name(3, 5, 0)).rename(run / "audit/x.jsonl"), "audit/x.jsonl"),
    "a missing attempt": (lambda run: start(run, 2, 9), "attempts are numbered [0, 2]"),
    "an attempt from nowhere": (lambda run: start(run, 1, 12), "step 9: attempt 1 went on at step 12"),
    "an attempt that lost its steps": (lambda run: start(run, 1, 6), "step 6: it is missing"),
    "other tokens in a replay": (with_attempt(6, 9, 6, targets=11), "step 6: attempts 0 and 1 both trained it"),
    "a replay that begins late": (with_attempt(7, 9, 6), "step 6: it is missing in attempt 1"),
    "a replay with other digests": (with_attempt(6, 9, 6, digest="ab" * 32), "step 6: attempts 0 and 1"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda name: name.replace(" ", "-"))
def test_damage_is_found_and_its_step_is_named(run: Path, damage: str) -> None:
    apply, words = DAMAGE[damage]
    apply(run)
    problems = verdict(run).problems
    assert problems and words in problems[0], problems


def test_a_chain_that_was_rewritten_to_its_end_differs_from_the_checkpoint(run: Path) -> None:
    """Whoever changes a digest and every order digest after it still meets the one in the checkpoint."""
    changed = [entry._replace(digest="ab" * 32) if entry.number == 20 else entry for entry in entries(0, 9)]
    lines = audit_lines(worker_spec(), changed, 2, 0, "")
    for first in range(0, 9, EVERY):
        body = "".join(json.dumps(line) + "\n" for line in lines[first : first + EVERY])
        (run / "audit" / object_name(first, first + EVERY - 1, 0)).write_text(body)
    found = verdict(run)
    assert found.problems == []
    assert compare_digest(found, 9, LINES[8]["order_digest"], "the checkpoint") != []
