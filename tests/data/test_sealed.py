"""URL dedup, sealed indexes and edited texts through the in-order stage and its segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pretrainer.config import DedupConfig
from pretrainer.config.dedup import LineDedupConfig
from pretrainer.data import stages
from pretrainer.data.dedup import sealed
from pretrainer.data.dedup.dedup import DedupIndex, Sketches, held_out_position, sealed_position, signatures
from pretrainer.data.dedup.in_order import InOrderDedup, decisions_table
from pretrainer.data.ledger.ledger import Ledger
from pretrainer.data.ledger.pages import ChunkKey
from pretrainer.data.ledger.segments import SegmentPager, document_positions, join_segment
from pretrainer.data.plan import SourcePlan
from pretrainer.errors import ConfigError, SourceError
from pretrainer.schema import from_ipc
from pretrainer.storage import Store
from tests.data.harness import make_plan, no_held_out

CONFIG = DedupConfig()


def text(name: str, words: int = 60) -> str:
    return " ".join(f"{name}{i}" for i in range(words))


def sketch(texts: list[str], config: DedupConfig = CONFIG, urls: list[str] | None = None) -> Sketches:
    addresses = None if urls is None else pa.array(urls, pa.large_string())
    return signatures(pa.array(texts, pa.large_string()), config, addresses)


# URLs -----------------------------------------------------------------------------------------------------------------
def test_a_canonical_address_is_kept_once() -> None:
    config = DedupConfig(url=True, near=False)
    urls = ["http://a.example/x", "HTTP://A.example:80/x#part", "http://a.example/y", "", "", "http://a.example/x"]
    texts = [text(f"t{i}") for i in range(5)] + [text("t0")]
    index = DedupIndex(config)
    first = index.decide(np.arange(6), sketch(texts, config, urls))
    assert first.reasons == [None, "duplicate_url", None, None, None, "duplicate_exact"]
    assert first.duplicate_of[1] == 0 and first.similarity[1] == 1
    again = index.decide(np.arange(6), sketch(texts, config, urls))
    rebuilt = DedupIndex(config)
    rebuilt.insert(np.flatnonzero(first.kept), Sketches.from_table(first.entries.to_table()))
    assert again.reasons == first.reasons == rebuilt.decide(np.arange(6), sketch(texts, config, urls)).reasons
    off = DedupConfig(near=False)
    assert DedupIndex(off).decide(np.arange(6), sketch(texts, off, urls)).reasons == [None] * 5 + ["duplicate_exact"]


# sealed ---------------------------------------------------------------------------------------------------------------
def seal(root: Path, texts: list[str], config: DedupConfig = CONFIG, chunk: int = 2, paged: int = 0) -> str:
    """A ledger of a prepared source: its segments, the first `paged` in a page."""
    ledger, index = Ledger(Store(str(root))), DedupIndex(config)
    pager, held = SegmentPager(ledger.segment_log), []
    for unit, start in enumerate(range(0, len(texts), chunk)):
        key, part = ChunkKey(unit, 0), sketch(texts[start : start + chunk], config)
        decided = index.decide(document_positions(key, len(part)), part)
        meta = {"last": True, "read": len(part), "dead": 0}
        data = ledger.write_segment(key, join_segment(decisions_table(decided), decided.entries, meta))
        held.append((key, data))
    for number, (key, data) in enumerate(held[:paged]):
        import pretrainer.data.ledger.pages as pages

        before, pages.PAGE_CHUNKS = pages.PAGE_CHUNKS, paged
        pager.add(key, True, data)
        pages.PAGE_CHUNKS = before
        assert (number + 1 == paged) == bool(ledger.root.list("segment_pages"))
    return str(root)


@pytest.mark.parametrize("paged", [0, 2])
def test_what_a_sealed_source_kept_counts_as_seen(tmp_path: Path, paged: int) -> None:
    """Behind held-out documents, before the stream, in config order."""
    old = [text(f"old{i}") for i in range(6)] + [text("old0")]  # the last one is no entry: it was dropped
    uris = (seal(tmp_path / "a", old, paged=paged), seal(tmp_path / "b", [text("old1"), text("b")]))
    config = replace(CONFIG, sealed=uris)
    index = DedupIndex(config)
    index.insert(np.array([held_out_position(0)]), sketch([text("old2")], config))
    found = sealed.freeze(config, Store(str(tmp_path / "run")))
    assert [each.documents for each in found] == [6, 2]
    sealed.insert_sealed(index, found)
    near = text("old3", 59) + " changed"
    texts = [text("old0"), text("old1"), text("old2"), near, text("b"), text("n")]
    decisions = index.decide(np.arange(6), sketch(texts))
    assert decisions.reasons == ["duplicate_sealed", "duplicate_sealed", "held_out", "duplicate_sealed",
                                 "duplicate_sealed", None]
    places = [sealed_position(*p) for p in ((0, 0), (0, 1), (0, 3), (1, 1))]
    assert decisions.duplicate_of[[0, 1, 3, 4]].tolist() == places
    assert decisions.similarity[0] == 1 and 0.8 < decisions.similarity[3] < 1


def test_a_sealed_source_that_grows_changes_nothing_for_a_run_that_began(tmp_path: Path) -> None:
    uri, run = seal(tmp_path / "a", [text("x"), text("y")]), Store(str(tmp_path / "run"))
    config = replace(CONFIG, sealed=(uri,))
    first = sealed.freeze(config, run)
    seal(tmp_path / "a", [text("x"), text("y"), text("later"), text("more")], paged=2)
    assert sealed.freeze(config, run) == first != sealed.survey(config)
    index = DedupIndex(config)
    sealed.insert_sealed(index, sealed.freeze(config, run))
    assert len(index) == 2


def test_ledgers_are_found_in_a_data_folder_and_doubts_refused(tmp_path: Path) -> None:
    seal(tmp_path / "data/ledger/web-aa", [text("x")])
    seal(tmp_path / "data/ledger/code-bb", [text("y")])
    found = sealed.ledgers_at(str(tmp_path / "data"))
    assert [uri.rsplit("/", 1)[-1] for uri in found] == ["code-bb", "web-aa"]
    assert sealed.ledgers_at(found[1]) == [found[1]]
    seal(tmp_path / "data/ledger/web-cc", [text("x")])
    with pytest.raises(SourceError, match="more than one config; name one of .*code-bb, .*web-aa, .*web-cc"):
        sealed.ledgers_at(str(tmp_path / "data"))
    with pytest.raises(SourceError, match="no ledger here"):
        sealed.ledgers_at(str(tmp_path / "nothing"))


def test_another_scheme_is_refused(tmp_path: Path) -> None:
    uri = seal(tmp_path / "a", [text("x")], DedupConfig(shingle_size=4))
    with pytest.raises(ConfigError, match="prepared with the scheme words2-4gram.*this run has words2-5gram"):
        sealed.survey(replace(CONFIG, sealed=(uri,)))
    with pytest.raises(ConfigError, match="prepared without data.dedup.url=true"):
        sealed.survey(DedupConfig(url=True, sealed=(seal(tmp_path / "b", [text("x")]),)))


# in order -------------------------------------------------------------------------------------------------------------
MENU = "Subscribe to our newsletter and follow us\n"
STORIES = [f"{MENU}Story {i}: {text(f's{i}x', 30)} then {text(f's{max(0, i - 6)}x', 15)}\n" for i in range(12)]


def with_dedup(plan: SourcePlan, config: DedupConfig) -> SourcePlan:
    return replace(plan, config=replace(plan.config, dedup=config))


def fresh_rows(plan: SourcePlan) -> list[pa.Table]:
    return [row for p in range(plan.units) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 0)]


def texts_of(rows: list[pa.Table]) -> list[str]:
    return [t for row in rows for t in from_ipc(stages.one_chunk(row).docs).column("text").to_pylist()]


def test_removed_text_is_in_the_segment_for_live_replayed_and_rebuilt_actors(tmp_path: Path) -> None:
    config = DedupConfig(near=False, substring_tokens=12, lines=LineDedupConfig(max_documents=2, min_chars=20))
    plan = with_dedup(make_plan(tmp_path, STORIES), config)
    rows = fresh_rows(plan)
    actor = InOrderDedup(plan, no_held_out(plan))
    first = [actor(row) for row in rows]
    texts = texts_of(first)
    assert len(texts) == len(STORIES) and sum(MENU in t for t in texts) == 2 and all("Story" in t for t in texts)
    assert 0 < sum("x14\n" in t for t in texts) < len(STORIES)
    assert [actor(row).equals(want) for row, want in zip(rows, first, strict=True)] == [True] * len(rows)
    rebuilt = InOrderDedup(plan, no_held_out(plan))
    assert [rebuilt(row).equals(want) for row, want in zip(rows, first, strict=True)] == [True] * len(rows)
    decisions = rebuilt.decisions_of(stages.one_chunk(rows[0]).key)
    assert decisions.column_names == ["kept", "reason", "duplicate_of", "similarity", "removed"]


def test_a_rebuilt_actor_goes_on_with_the_same_texts(tmp_path: Path) -> None:
    config = DedupConfig(near=False, substring_tokens=12, lines=LineDedupConfig(max_documents=3, min_chars=20))
    whole = with_dedup(make_plan(tmp_path / "whole", STORIES), config)
    actor = InOrderDedup(whole, no_held_out(whole))
    want = texts_of([actor(row) for row in fresh_rows(whole)])
    parted = with_dedup(make_plan(tmp_path / "parted", STORIES), config)
    got = []
    for row in fresh_rows(parted):  # a new actor for every chunk
        got.append(InOrderDedup(parted, no_held_out(parted))(row))
    assert texts_of(got) == want and sum(MENU in t for t in want) == 3


def test_a_sealed_source_reaches_the_stream(tmp_path: Path) -> None:
    uri = seal(tmp_path / "old", STORIES[3:5])
    plan = with_dedup(make_plan(tmp_path, STORIES), replace(CONFIG, sealed=(uri,)))
    for _ in range(2):  # the second from segments
        actor = InOrderDedup(plan, no_held_out(plan))
        assert texts_of([actor(row) for row in fresh_rows(plan)]) != STORIES
        assert sorted(texts_of([actor(row) for row in fresh_rows(plan)])) == sorted(STORIES[:3] + STORIES[5:])
    assert plan.ledger.root.exists("sealed.json")
