"""The stream derived again from raw input equals the run's, and nothing that the run has curated is used for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pretrainer.config import ExtractConfig
from pretrainer.data.curriculum import Curriculum, Segment, SegmentOrder
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.ledger.ledger import ChunkKey
from pretrainer.data.mixture import Mixture
from pretrainer.data.plan import SourcePlan
from pretrainer.data.readers import extract
from pretrainer.data.readers.extract import Verdict
from pretrainer.data.replay import fresh_plans, replay_blocks, source_blocks
from pretrainer.data.stages import read_chunks
from pretrainer.data.trace import SourceTrace, find_dropped, find_kept
from pretrainer.errors import StreamError
from pretrainer.schema import DOCUMENTS, Batch, to_ipc
from pretrainer.storage import Store
from tests.data.harness import document, make_plan, no_held_out, plan_over, stream

TEXTS = [document(n) for n in range(120)]
TEXTS[50] = TEXTS[3]
TEXTS[90] = TEXTS[7].rsplit(" ", 1)[0] + " changed"


def frozen_plan(folder: Path, **changes: object) -> SourcePlan:
    plan = make_plan(folder, TEXTS, **changes)
    Store(plan.data_uri).create(f"held_out/{plan.source.name}.sketches.arrow", no_held_out(plan))
    Store(plan.data_uri).create(f"held_out/{plan.source.name}.documents.arrow", no_documents())
    return plan


def one_segment(*shares: int) -> Curriculum:
    order = SegmentOrder(Mixture(shares), 0, (0,) * len(shares))
    return Curriculum((Segment(0, 0, 0, 10**6, 16, 4, tuple(map(float, shares)), order),), 1)


def no_documents() -> bytes:
    return to_ipc(DOCUMENTS.empty_table())


def rows_of(path: Path) -> list[str]:
    """Ids that documents of a JSONL file have by default: its name and the byte offset of each line."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [f"{path.name}#{sum(map(len, lines[:n]))}" for n in range(len(lines))]


def same(batch: Batch, row: dict) -> bool:
    other = Batch.from_row(row, batch.tokens.shape[1] - 1)
    return (batch.block, batch.epoch) == (other.block, other.epoch) and all(
        np.array_equal(getattr(batch, n), getattr(other, n)) for n in ("tokens", "starts", "lengths")
    )


def test_replay_is_the_stream_over_two_epochs(tmp_path: Path) -> None:
    plan = frozen_plan(tmp_path, max_epochs=2)
    blocks = stream(plan)
    again = list(source_blocks(fresh_plans([plan], Store(str(tmp_path / "again")))[0], 3))
    assert len(again) == len(blocks) - 3 and blocks[-1]["epoch"] == 1
    assert all(same(batch, row) for batch, row in zip(again, blocks[3:], strict=True))


def test_a_poisoned_ledger_changes_nothing(tmp_path: Path) -> None:
    plan = frozen_plan(tmp_path)
    blocks = stream(plan)
    files = [path for part in ("ledger", "packing") for path in (tmp_path / "data" / part).rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        path.write_bytes(b"poison")
    again = list(replay_blocks(fresh_plans([plan], Store(str(tmp_path / "again"))), one_segment(1), 2, 9))
    assert [same(batch, row) for batch, row in zip(again, blocks[2:9], strict=True)] == [True] * 7


class Clocked:
    """An extractor of pages that say how many seconds they take on a machine of speed 1."""

    def __init__(self, config: ExtractConfig, speed: float, asked: list[float]) -> None:
        self.config, self.speed, self.asked = config, speed, asked

    def extract(self, pages: list[bytes]) -> list[Verdict]:
        return [self._verdict(*page.decode().split("|")[1:3]) for page in pages]

    def _verdict(self, seconds: str, text: str) -> Verdict:
        self.asked.append(float(seconds))
        if float(seconds) / self.speed <= self.config.timeout_s:
            return Verdict(text)
        return Verdict(None, "extraction_timeout", f"more than {self.config.timeout_s:g} s of CPU time")


def slow_pages(folder: Path) -> SourcePlan:
    """Pages of HTML of which the deadline of 30 s lets one just through and refuses two."""
    (folder / "corpus").mkdir()
    for number in range(60):
        seconds = {17: 40, 18: 25, 44: 31}.get(number, 1)
        page = f"<html><body><p>|{seconds}|{document(number)}|</p></body></html>"
        (folder / "corpus" / f"{number:03d}.html").write_text(page)
    return plan_over(folder, folder / "corpus", max_dead_letter_share=1.0)


def test_a_retry_on_a_faster_machine_does_not_decide_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try ended behind dedup; its decisions are of the documents that it had."""
    plan = slow_pages(tmp_path)
    monkeypatch.setattr(extract, "_extractor", lambda config, _process: Clocked(config, 1.0, []))
    dedup = InOrderDedup(plan, no_held_out(plan))
    for position in range(plan.positions):
        for chunk in read_chunks(pa.table({"position": [position]}), plan, 0):
            dedup(chunk)
    monkeypatch.setattr(extract, "_extractor", lambda config, _process: Clocked(config, 4.0, []))
    stream(plan)
    assert sorted(letter.shard for letter in plan.ledger.dead_letters()) == ["017.html", "044.html"]


@pytest.mark.parametrize("speed", [0.25, 4.0])
def test_pages_that_took_too_long_are_not_decided_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float
) -> None:
    """On a faster machine the refused page would come through, on a slower one the page behind it would not."""
    asked: list[float] = []
    monkeypatch.setattr(extract, "_extractor", lambda config, _process: Clocked(config, 1.0, asked))
    plan = slow_pages(tmp_path)
    Store(plan.data_uri).create(f"held_out/{plan.source.name}.sketches.arrow", no_held_out(plan))
    blocks, letters = stream(plan), list(plan.ledger.dead_letters())
    assert sorted(letter.shard for letter in letters) == ["017.html", "044.html"] and max(asked) == 40
    asked.clear()
    monkeypatch.setattr(extract, "_extractor", lambda config, _process: Clocked(config, speed, asked))
    fresh = fresh_plans([plan], Store(str(tmp_path / "again")))[0]
    again = list(source_blocks(fresh, 0))
    assert [same(batch, row) for batch, row in zip(again, blocks, strict=True)] == [True] * len(blocks)
    assert list(fresh.ledger.dead_letters()) == letters
    assert [record.to_bytes() for record in fresh.ledger.records()] == [r.to_bytes() for r in plan.ledger.records()]
    assert len(asked) == 58 and max(asked) == 25, "no machine sees the refused pages again"


def test_sources_come_as_the_mixture_says(tmp_path: Path) -> None:
    """Two sources, shares 3 : 1, from the middle of a mixing cycle."""
    plans = [frozen_plan(tmp_path / name) for name in ("a", "b")]
    fresh = [fresh_plans([p], Store(str(tmp_path / f"again-{i}")))[0] for i, p in enumerate(plans)]
    order = one_segment(3, 1)
    assert [b.block for b in replay_blocks(fresh, order, 2, 14)] == [order.expected(n)[1] for n in range(2, 14)]


def test_a_source_that_ends_is_named(tmp_path: Path) -> None:
    plan = frozen_plan(tmp_path)
    with pytest.raises(StreamError, match="source synthetic ends before its slot block"):
        list(replay_blocks(fresh_plans([plan], Store(str(tmp_path / "again"))), one_segment(1), 0, 10_000))


def test_lines_of_a_curriculum_are_derived_again_from_any_block_on(tmp_path: Path) -> None:
    """Two lines: from their first block, from inside the first one, and from inside the second one alone."""
    plan = frozen_plan(tmp_path, pack_window_tokens=2200)
    order = SegmentOrder(Mixture((1,)), 0, (0,))
    second = Segment(1, 1, 6, 10, 32, 2, (1.0,), SegmentOrder(Mixture((1,)), 6, (0,)))
    curriculum = Curriculum((Segment(0, 0, 0, 6, 16, 4, (1.0,), order), second), 1)
    whole = list(replay_blocks(fresh_plans([plan], Store(str(tmp_path / "whole"))), curriculum, 0, 10))
    assert [b.tokens.shape for b in whole] == [(4, 17)] * 6 + [(2, 33)] * 4
    assert [b.block for b in whole] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    for first in (5, 7):
        fresh = fresh_plans([plan], Store(str(tmp_path / f"from-{first}")))
        again = list(replay_blocks(fresh, curriculum, first, 10))
        assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(again, whole[first:], strict=True))


def test_mixture_number_is_the_inverse_of_expected() -> None:
    mixture = Mixture((5, 2, 1))
    assert [mixture.number(*mixture.expected(n)) for n in range(40)] == list(range(40))


# Trace ----------------------------------------------------------------------------------------------------------------


def test_every_token_of_every_block_has_its_document(tmp_path: Path) -> None:
    plan = frozen_plan(tmp_path, max_epochs=2)
    blocks, trace = stream(plan), SourceTrace(plan)
    counted: dict[str, int] = {}
    for row in blocks:
        batch, passages = trace.block(row["block"])
        assert same(batch, row) and sum(p.tokens for p in passages) == int(batch.lengths.sum())
        for p in passages:
            counted[p.document] = counted.get(p.document, 0) + p.tokens
    lengths: dict[str, int] = {}
    for record in plan.ledger.records():
        table = plan.ledger.read_tokens(ChunkKey(record.unit, record.chunk))[0]
        lengths |= {n: 2 * (len(t) + 2) for n, t in zip(table.column("id").to_pylist(), table.column("tokens"),
                                                        strict=True)}  # fmt: skip
    assert counted == lengths  # bos and eos included, in both epochs


def test_a_document_is_found_where_the_blocks_have_it(tmp_path: Path) -> None:
    plan = frozen_plan(tmp_path, max_epochs=2)
    blocks = stream(plan)
    trace = SourceTrace(plan)
    some = [k for k in find_kept(plan, "00070.jsonl", exact=False) if k][5]
    [kept] = [k for k in find_kept(plan, some.document, exact=True) if k]
    wanted: dict[int, int] = {}
    for row in blocks:
        for p in trace.block(row["block"])[1]:
            if p.document == kept.document:
                wanted[p.sequence] = wanted.get(p.sequence, 0) + p.tokens
    found = dict(place for epoch in range(2) for place in trace.sequences_of(kept.key, kept.number, epoch))
    assert found == wanted and len(wanted) >= 2


def test_a_dropped_document_names_what_it_repeats(tmp_path: Path) -> None:
    plan = frozen_plan(tmp_path)
    stream(plan)
    texts = [place for file in range(0, 120, 10) for place in rows_of(tmp_path / f"corpus/{file:05d}.jsonl")]
    pairs = {frozenset({texts[3], texts[50]}), frozenset({texts[7], texts[90]})}
    found = [d for d in find_dropped(plan, "jsonl", exact=False) if d]
    assert {frozenset({d.document, str(d.duplicate_of)}) for d in found} == pairs
    assert {d.reason for d in found} == {"duplicate_exact", "duplicate_near"}
    assert all(not [k for k in find_kept(plan, d.document, exact=True) if k] for d in found)
