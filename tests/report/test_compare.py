"""What differs between a card and its derivation is named, with the reason that comes first.

    python -m pytest -q tests/report/test_compare.py
"""

from __future__ import annotations

from typing import Any

import pytest

from pretrainer.plan.hardware import load_prices
from pretrainer.report.card import card
from pretrainer.report.compare import Row, as_text, compare
from tests.report.example import PARTS, derived, digests, facts, inputs

SHARDS = {"web": {"count": 2, "bytes": 30, "objects": [("a.jsonl", 10), ("b.jsonl", 20)]},
          "code": {"count": 9, "bytes": 99}}  # fmt: skip


def rows(then: dict[str, Any] | None = None, shards: dict[str, Any] = SHARDS, **now: Any) -> dict[str, Row]:
    whole = card(facts(), inputs(digests=then or digests()), load_prices())
    return {row.name: row for row in compare(whole, derived(**now), shards)}


def parts(**changes: Any) -> dict[str, Any]:
    return {"fingerprint_parts": {**PARTS, **{name.replace("__", "."): value for name, value in changes.items()}}}


def differing(found: dict[str, Row]) -> list[str]:
    return [name for name, row in found.items() if not row.is_same]


def test_equal_digests_are_the_same() -> None:
    found = rows()
    assert list(found) == ["manifest", "held-out documents", "files", "settings", "packages", "code", "tokenizer",
                           "fingerprint", "order digest"]  # fmt: skip
    assert differing(found) == [] and found["order digest"].card == "d200 after step 200"
    assert all(" same " in line for line in as_text(list(found.values())))


@pytest.mark.parametrize(
    ("now", "name", "why"),
    [
        (parts(web__curation__libraries__numpy="2.5.0"), "packages", "web.curation.libraries.numpy: 2.4.6 -> 2.5.0"),
        (parts(web__curation__code="c2"), "code", "web.curation.code: c1 -> c2; the run's code is git commit abc"),
        (parts(order__code="o2"), "code", "order.code: o1 -> o2"),
        (parts(web__seq_len=64), "settings", "web.seq_len: 32 -> 64"),
        (parts(web__curation__files=[["x", "y"]]), "files", "web.curation.files: [] -> [['x', 'y']]"),
        (parts(web__curation__held_out="h2"), "held-out documents", "other bytes"),
        ({"tokenizer": "tok2"}, "tokenizer", "other bytes"),
        ({"fingerprint": "f2"}, "fingerprint", "the rows above"),
    ],
)
def test_a_difference_is_named(now: dict[str, Any], name: str, why: str) -> None:
    found = rows(**now)
    assert differing(found) == [name] and why in found[name].why
    assert any("DIFFERS" in line for line in as_text(list(found.values())))
    assert any(why in line for line in as_text(list(found.values())))


def test_changed_objects_are_named_where_the_card_lists_them() -> None:
    there = {"web": {"count": 2, "bytes": 31, "objects": [("a.jsonl", 11), ("c.jsonl", 20)]},
             "code": {"count": 8, "bytes": 98}}  # fmt: skip
    why = rows(shards=there, manifest="other")["manifest"].why
    assert why == (
        "web: a.jsonl 10 -> 11, web: b.jsonl 20 -> gone, web: c.jsonl new -> 20, "
        "code: 9 objects with 99 bytes, here 8 with 98"
    )


def test_the_first_point_of_the_chain_that_differs_is_named() -> None:
    found = rows(order_digests={60: "d60", 100: "other", 200: "other"})["order digest"]
    assert (found.card, found.here) == ("d100 after step 100", "other after step 100")
    assert "other bytes than they did" in found.why


def test_what_came_first_is_the_reason_of_what_follows() -> None:
    found = rows(manifest="m2", tokenizer="t2", order_digests={200: "other"}, **parts(web__curation__held_out="h2"))
    assert found["held-out documents"].why == "because of manifest"
    assert found["tokenizer"].why == "because of manifest, held-out documents"
    assert found["order digest"].why.startswith("because of manifest, held-out documents, tokenizer")


def test_documents_that_killed_their_reader_are_told() -> None:
    known = facts()
    sources = {**known.sources, "web": {**known.sources["web"], "quarantined": 3}}
    whole = card(facts(sources=sources), inputs(), load_prices())
    found = {row.name: row for row in compare(whole, derived(order_digests={200: "x"}), SHARDS)}
    assert "left 3 documents out" in found["order digest"].why


def test_a_shorter_derivation_is_compared_where_both_are() -> None:
    assert rows(order_digests={60: "d60", 70: "x"})["order digest"].card == "d60 after step 60"
    assert not rows(order_digests={5: "x"})["order digest"].is_same  # nothing to compare is no success
