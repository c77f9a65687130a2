"""The decision log: every document read has one row that says what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from pretrainer.data import curation
from pretrainer.data.decisions import COLUMNS
from pretrainer.data.dedup.dedup import signatures
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Stage
from pretrainer.data.plan import SourcePlan
from pretrainer.schema import to_ipc
from tests.data.harness import curated, document, make_plan, no_held_out, stream

TEXTS = [document(n) for n in range(60)]
TEXTS[31] = TEXTS[3]  # an exact duplicate
TEXTS[47] = TEXTS[7].rsplit(" ", 1)[0] + " changed"  # a near-duplicate
TEXTS[12] = "too short"


def log_of(plan: SourcePlan) -> list[dict]:
    return pyarrow.dataset.dataset(f"{plan.ledger.root.uri}/decisions").to_table().to_pylist()


def files_of(plan: SourcePlan) -> dict[str, bytes]:
    root = plan.ledger.root
    return {path: root.read(path) for folder in ("read", "decisions") for path, *_ in root.list(folder)}


def broken_plan(folder: Path, **changes: object) -> SourcePlan:
    """With filters and a line that is no JSON."""
    plan = make_plan(folder, TEXTS, preset="prose", decisions=True, **changes)
    shard = sorted((folder / "corpus").iterdir())[2]
    shard.write_bytes(shard.read_bytes().replace(b'{"text"', b'{~text"', 1))
    return plan


def test_every_document_read_has_one_row(tmp_path: Path) -> None:
    plan = broken_plan(tmp_path)
    stream(plan)
    rows, records = log_of(plan), list(plan.ledger.records())
    assert list(rows[0])[: len(COLUMNS)] == list(COLUMNS)
    assert len(rows) == sum(record.read for record in records) == len({row["id"] for row in rows})
    assert sum(row["kept"] for row in rows) == sum(record.kept for record in records)
    reasons = Counter(row["reason"] for row in rows if not row["kept"] and row["stage"] != "read")
    assert reasons == sum((Counter(record.dropped) for record in records), Counter())
    assert all((row["reason"] is None) == row["kept"] for row in rows)
    assert {row["source"] for row in rows} == {"synthetic"}
    measured = [row["gopher_words"] for row in rows if row["kept"]]
    assert min(measured) >= 50
    assert [row["gopher_words"] for row in rows if row["reason"] == "gopher_too_few_words"] == [2]


def test_rows_say_where_a_document_is_and_what_it_repeats(tmp_path: Path) -> None:
    plan = broken_plan(tmp_path)
    stream(plan)
    by_id = {row["id"]: row for row in log_of(plan)}
    (dead,) = [row for row in by_id.values() if row["stage"] == "read"]
    assert (dead["shard"], dead["reason"], dead["row"]) == ("00020.jsonl", "bad_json", 0) and not dead["kept"]
    for copy, original, reason in ((31, 3, "duplicate_exact"), (47, 7, "duplicate_near")):
        pair = [next(row for row in by_id.values() if _is(row, number)) for number in (copy, original)]
        pair.sort(key=lambda row: row["kept"])  # whichever came later in the order of chunks was dropped
        assert (pair[0]["stage"], pair[0]["reason"]) == ("dedup", reason)
        assert pair[0]["duplicate_of"] == pair[1]["id"] and pair[1]["kept"] and pair[1]["duplicate_of"] is None
        assert pair[0]["similarity"] == 1 if reason == "duplicate_exact" else 0.8 <= pair[0]["similarity"] < 1


def _is(row: dict, number: int) -> bool:
    """Whether a row is of the n-th text: shards hold ten lines, rows are byte offsets."""
    if row["shard"] != f"{number // 10 * 10:05d}.jsonl":
        return False
    before = TEXTS[number // 10 * 10 : number]
    return row["row"] == sum(len('{"text": ""}\n') + len(text) for text in before)


def test_a_held_out_document_is_named(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, decisions=True)
    docs = pa.table({"id": pa.array(["the held-out one"], pa.large_string())})
    (tmp_path / "data/held_out").mkdir()
    (tmp_path / "data/held_out/synthetic.documents.arrow").write_bytes(to_ipc(docs))
    held = signatures(pa.array([TEXTS[20]], pa.large_string()), plan.config.dedup)
    curated(plan, range(plan.units), dedup=InOrderDedup(plan, to_ipc(held.to_table())))
    (row,) = [row for row in log_of(plan) if row["reason"] == "held_out"]
    assert row["duplicate_of"] == "the held-out one" and _is(row, 20)


def test_a_document_of_a_sealed_index_is_named_by_its_ledger(tmp_path: Path) -> None:
    old = make_plan(tmp_path / "old", [document(500), TEXTS[20]])
    stream(old)
    sealed = replace(old.config.dedup, sealed=(old.data_uri,))
    plan = make_plan(tmp_path / "new", TEXTS, decisions=True, dedup=sealed)
    stream(plan)
    (row,) = [row for row in log_of(plan) if row["reason"] == "duplicate_sealed"]
    assert row["duplicate_of"] == f"{old.ledger.root.uri}#1" and _is(row, 20)


def test_replayed_chunks_and_rebuilt_indexes_write_the_same_log(tmp_path: Path) -> None:
    whole, torn = broken_plan(tmp_path / "whole"), broken_plan(tmp_path / "torn")
    stream(whole)
    for first in range(torn.units):
        curated(torn, range(max(0, first - 3), first + 1), dedup=InOrderDedup(torn, no_held_out(torn)))
    assert files_of(torn) == files_of(whole) and len(files_of(whole)) == 2 * len(list(whole.ledger.records()))


def test_the_log_changes_nothing_and_is_off_by_default(tmp_path: Path) -> None:
    logged, plain = make_plan(tmp_path / "a", TEXTS, decisions=True), make_plan(tmp_path / "b", TEXTS)
    assert stream(logged) == stream(plain)
    assert files_of(plain) == {}


@pytest.fixture
def loud_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage behind dedup that drops texts with an "e" as their second letter and writes the others in capitals."""

    def measure(docs: pa.Table) -> tuple[dict, pa.Table]:
        texts = docs.column("text").to_pylist()
        found = pa.array([float(text[1] == "e") for text in texts]).to_numpy()
        docs = docs.set_column(3, "text", pa.array([text.upper() for text in texts], pa.large_string()))
        return {"second_e": found}, docs

    monkeypatch.setitem(curation.AFTER_DEDUP, "toxicity", lambda plan: [Stage("toxicity", measure, RULES)])


RULES = (Rule("second_letter", "second_e", most=0),)


@pytest.mark.usefixtures("loud_stage")
def test_stages_behind_dedup_drop_edit_and_are_logged(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, decisions=True, order_seed=77, chunk_bytes=4096)  # repeats amid their chunks
    stream(plan)
    rows = {row["id"]: row for row in log_of(plan)}
    dropped = [row for row in rows.values() if row["reason"] == "second_letter"]
    assert dropped and all((row["stage"], row["kept"], row["second_e"]) == ("toxicity", False, 1) for row in dropped)
    assert sum(record.dropped.get("second_letter", 0) for record in plan.ledger.records()) == len(dropped)
    assert sum(record.kept for record in plan.ledger.records()) == sum(row["kept"] for row in rows.values())
    for key in [record.key for record in plan.ledger.records()]:
        tokens = plan.ledger.read_tokens(key)[0]
        assert all(rows[name]["kept"] for name in tokens.column("id").to_pylist())
        assert all(plan.tokenizer.decode(ids).isupper() for ids in tokens.column("tokens").to_pylist())
    repeats = [row for row in rows.values() if row["stage"] == "dedup"]
    assert repeats and all(row["second_e"] is None for row in repeats)
    for number, text in enumerate(TEXTS):
        (row,) = [row for row in rows.values() if _is(row, number)]
        assert row["stage"] == "dedup" or row["second_e"] == (text[1] == "e")


def test_labels_are_logged_as_the_last_stage_that_saw_a_document_left_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_letter(docs: pa.Table) -> tuple[dict, pa.Table]:
        return {"second_e": np.array([text[1] == "e" for text in docs.column("text").to_pylist()], float)}, docs

    def length(docs: pa.Table) -> tuple[dict, pa.Table]:
        odd = np.array([len(text) % 2 for text in docs.column("text").to_pylist()], float)
        names = pa.array(["odd" if each else "even" for each in odd], pa.large_string())
        return {"odd": odd}, docs.set_column(docs.schema.get_field_index("language"), "language", names)

    stages = [Stage("url", second_letter, RULES), Stage("language", length, (Rule("odd_length", "odd", most=0),))]
    monkeypatch.setitem(curation.BEFORE_DEDUP, "language", lambda plan: stages)
    plan = make_plan(tmp_path, TEXTS, decisions=True)
    stream(plan)
    rows = log_of(plan)
    found = [(next(row for row in rows if _is(row, number)), text) for number, text in enumerate(TEXTS)]
    assert {row["reason"] for row, _text in found} >= {"second_letter", "odd_length", None}
    for row, text in found:
        seen = "odd" if len(text) % 2 else "even"
        assert row["language"] == ("" if row["reason"] == "second_letter" else seen)


@pytest.mark.usefixtures("loud_stage")
def test_a_stage_that_only_annotates_drops_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, decisions=True)
    source = replace(plan.source, annotate=("toxicity",))
    plan = replace(plan, config=replace(plan.config, sources=(source,)))
    stream(plan)
    would = [row for row in log_of(plan) if row["reason"] == "second_letter"]
    assert would and all(row["kept"] for row in would)
    assert all("second_letter" not in record.dropped for record in plan.ledger.records())


@pytest.mark.usefixtures("loud_stage")
def test_a_source_can_leave_a_stage_out(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, decisions=True)
    source = replace(plan.source, skip=("toxicity",))
    stream(replace(plan, config=replace(plan.config, sources=(source,))))
    assert "second_e" not in log_of(plan)[0]
