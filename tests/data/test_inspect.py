"""The look behind the inspect page: decisions as in a run, moved limits, funnel, sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pretrainer.config import Config, DedupConfig, SourceConfig
from pretrainer.config.dedup import LineDedupConfig
from pretrainer.data.curation import run_after_dedup, run_before_dedup
from pretrainer.data.dedup.dedup import DedupIndex, signatures
from pretrainer.data.dedup.in_order import decisions_table
from pretrainer.data.dedup.oddsketch import similarity
from pretrainer.data.inspect.funnel import (
    BANDS,
    Row,
    add_up,
    all_stages,
    decide,
    funnel,
    is_raw_crawl,
    judge_bands,
    own_limits,
)
from pretrainer.data.inspect.look import look, table
from pretrainer.data.inspect.page import Looked, model
from pretrainer.data.inspect.pairs import MIN_SIMILARITY, find_pairs
from pretrainer.data.inspect.sample import Sample, drafted, draw, freeze_references
from pretrainer.data.ledger.segments import apply_decisions
from pretrainer.data.plan import SourcePlan
from pretrainer.storage import Store
from tests.data.inspected import a_config, ticks
from tests.data.inspected import config as config  # a fixture
from tests.data.inspected import looked as looked

PROSE = " ".join(f"In the year {n} the people had built a new wall and the river was very high." for n in range(9))


class Outcome:
    """What a run does to a sample, by the functions that the stream calls; nothing of the look is used."""

    def __init__(self, plan: SourcePlan, sample: Sample) -> None:
        docs = sample.docs
        first = run_before_dedup(plan, docs)
        sketches = signatures(first.docs.column("text"), plan.config.dedup, first.docs.column("url"))
        second = DedupIndex(plan.config.dedup).decide(np.arange(len(sketches), dtype=np.int64), sketches)
        left = apply_decisions(first.docs, decisions_table(second))
        third = run_after_dedup(plan, left)
        self.reasons = np.array(first.reasons, object)
        self.reasons[first.kept] = second.reasons
        kept = np.flatnonzero(first.kept)[second.kept]
        self.reasons[kept] = third.reasons
        self.texts = third.docs.column("text").to_pylist()
        self.duplicate_of = np.full(docs.num_rows, -1)
        copies = np.flatnonzero(second.duplicate_of >= 0)
        alive = np.flatnonzero(first.kept)
        self.duplicate_of[alive[copies]] = alive[second.duplicate_of[copies]]


def rerun(config: Config, looked: Sequence[Looked], source: int) -> Outcome:
    with drafted(config) as plans:
        freeze_references(config, [each.sample for each in looked], Store(plans[0].data_uri))
        return Outcome(plans[source], looked[source].sample)


def with_rules(config: Config, source: int, *rules: str) -> Config:
    sources = list(config.data.sources)
    sources[source] = replace(sources[source], rules=rules)
    return replace(config, data=replace(config.data, sources=tuple(sources)))


# ------------------------------------------------------------------------------------------------------- as in a run


@pytest.mark.parametrize("source", [0, 1])
def test_decisions_are_those_of_a_run(config: Config, looked: list[Looked], source: int) -> None:
    decided, run = decide(looked[source].chain), rerun(config, looked, source)
    assert decided.reasons == run.reasons.tolist()
    assert decided.duplicate_of.tolist() == run.duplicate_of.tolist()
    assert funnel(looked[source].chain, decided)[-1].bytes_out == sum(len(text.encode()) for text in run.texts)


def test_the_corpus_shows_what_is_tested(looked: list[Looked]) -> None:
    pages, library = (set(decide(each.chain).reasons) for each in looked)
    assert {"gopher_too_few_words", "duplicate_exact", "duplicate_near", None} <= pages
    assert {"gopher_too_few_words", "gopher_too_few_alphabetic_words", None} <= library
    assert len(library) >= 5


CHANGES = [
    (0, "gopher_too_few_words", 1.0),
    (0, "gopher_too_few_words", None),
    (0, "c4_too_few_sentences", 100.0),
    (0, "gopher_top_4gram_chars", None),
    (0, "fineweb_list", 0.01),
    (1, "gopher_too_few_words", 5.0),
    (1, "gopher_long_words", 6.0),
    (1, "gopher_too_few_alphabetic_words", 0.5),
    (1, "gopher_too_few_stop_words", None),
]


@pytest.mark.parametrize(("source", "reason", "limit"), CHANGES)
def test_a_moved_limit_is_a_run_with_that_rule(
    config: Config, looked: list[Looked], source: int, reason: str, limit: float | None
) -> None:
    changed = with_rules(config, source, f"{reason}={'off' if limit is None else limit}")
    decided = decide(looked[source].chain, {reason: limit})
    assert decided.reasons == rerun(changed, looked, source).reasons.tolist()
    assert decided.reasons != decide(looked[source].chain).reasons


@pytest.mark.parametrize("threshold", [0.55, 0.95, 1.0])
def test_a_moved_similarity_is_a_run_with_that_threshold(
    config: Config, looked: list[Looked], threshold: float
) -> None:
    dedup = DedupConfig(threshold=threshold)
    run = rerun(replace(config, data=replace(config.data, dedup=dedup)), looked, 0)
    assert decide(looked[0].chain, {"duplicate_near": threshold}).reasons == run.reasons.tolist()


def test_dedup_is_decided_again_for_other_survivors(config: Config, looked: list[Looked]) -> None:
    """A copy comes back when a rule drops the document that was kept in its place."""
    chain = looked[0].chain
    copies = np.flatnonzero(decide(chain).duplicate_of >= 0)
    original = int(decide(chain).duplicate_of[copies[0]])
    words = next(step for step in chain.before if "gopher_words" in step.measures)
    # A limit that the original alone fails: its own length, one more.
    limit = float(words.measures["gopher_words"][original]) + 1
    changed = rerun(with_rules(config, 0, f"gopher_too_few_words={limit}"), looked, 0)
    assert decide(chain, {"gopher_too_few_words": limit}).reasons == changed.reasons.tolist()
    assert decide(chain, {"gopher_too_few_words": limit}).duplicate_of.tolist() == changed.duplicate_of.tolist()


@pytest.mark.parametrize(("min_share_left", "reasons"), [(0.5, set()), (0.99, {"duplicate_lines"})])
def test_repeated_lines_are_as_the_config_has_them(tmp_path: Path, min_share_left: float, reasons: set[str]) -> None:
    dedup = DedupConfig(near=False, lines=LineDedupConfig(max_documents=2, min_chars=10, min_share_left=min_share_left))
    config = a_config(tmp_path, dedup=dedup)
    looked = look(config, 80, ticks())
    decided, run = decide(looked[0].chain), rerun(config, looked, 0)
    assert decided.reasons == run.reasons.tolist() and reasons == {"duplicate_lines"} & set(decided.reasons)
    row = next(row for row in funnel(looked[0].chain, decided) if row.stage == "dedup")
    assert row.bytes_out == sum(len(text.encode()) for text in run.texts)
    assert (row.bytes_edited > 0) == (not reasons)


def test_an_annotating_stage_drops_nothing_until_its_rule_is_put_on(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    sources = (replace(config.data.sources[0], annotate=("rules",)),)
    chain = look(replace(config, data=replace(config.data, sources=sources)), 80, ticks())[0].chain
    assert own_limits(chain)["gopher_too_few_words"] is None
    assert not any(stage == "rules" for stage in decide(chain).stages)
    assert "gopher_too_few_words" in decide(chain, {"gopher_too_few_words": 50}).reasons


# ------------------------------------------------------------------------------------------------------------- funnel


def test_funnel_adds_up(looked: list[Looked]) -> None:
    for _source, sample, chain in looked:
        decided = decide(chain)
        rows = funnel(chain, decided)
        for row in rows:
            assert row.documents_in == row.documents_dropped + row.documents_out
            assert row.bytes_in == row.bytes_dropped + row.bytes_edited + row.bytes_out
        for row, after in pairwise(rows):
            assert (row.documents_out, row.bytes_out) == (after.documents_in, after.bytes_in)
        assert rows[0].documents_in == sample.docs.num_rows == len(chain.ids)
        assert rows[-1].documents_out == decided.reasons.count(None)
    assert any(row.bytes_edited > 0 for row in funnel(looked[0].chain, decide(looked[0].chain)))


def test_total_adds_up(looked: list[Looked]) -> None:
    chains = [each.chain for each in looked]
    stages = all_stages(chains)
    total = add_up([funnel(chain, decide(chain), stages) for chain in chains])
    assert stages[:2] == ["rules", "dedup"]
    assert total[0].documents_in == sum(len(chain.ids) for chain in chains)
    assert total[-1].documents_out == sum(decide(chain).reasons.count(None) for chain in chains)


def test_a_source_passes_through_a_stage_that_it_has_not(looked: list[Looked]) -> None:
    rows = funnel(looked[0].chain, decide(looked[0].chain), ["url", "rules", "dedup", "pii"])
    assert [row.documents_dropped for row in (rows[0], rows[3])] == [0, 0]
    assert rows[0].bytes_in == rows[0].bytes_out == rows[1].bytes_in and rows[3].bytes_in == rows[2].bytes_out


def a_row(stage: str, arrives: int, out: int) -> Row:
    return Row(stage, arrives, 0, arrives - out, 0, 0, out, 0)


@pytest.mark.parametrize(
    ("rows", "inside"),
    [
        ([("url", 1000, 500), ("language", 500, 350), ("rules", 350, 105), ("dedup", 105, 63)], [True] * 4),
        ([("url", 1000, 999)], [False]),
        ([("rules", 1000, 600)], [False]),
        ([("rules", 1000, 401)], [False]),
        ([("rules", 1000, 400)], [True]),
        ([("rules", 1000, 600), ("quality", 600, 300)], [True]),  # together 70 %
        ([("dedup", 1000, 499)], [False]),
    ],
)
def test_bands_judge_stages_together(rows: list[tuple[str, int, int]], inside: list[bool]) -> None:
    assert [judged.inside for judged in judge_bands([a_row(*row) for row in rows])] == inside


def test_bands_are_for_raw_crawls(looked: list[Looked]) -> None:
    assert [is_raw_crawl(each.source) for each in looked] == [True, False]
    text = table(looked)
    pages, library = text.split("\n\n")[:2]
    assert "WARNING" not in library and f"({BANDS[2].words} of a raw crawl)" in library
    judged = judge_bands(funnel(looked[0].chain, decide(looked[0].chain)))
    assert len({each.inside for each in judged}) == 2
    for each in judged:
        line = next(line for line in pages.splitlines() if line.startswith(f"  {each.last} "))
        assert line.endswith(each.band.words) and ("WARNING" not in line) == each.inside


# ------------------------------------------------------------------------------------------------------------- sample


def test_a_sample_is_spread_over_the_units(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for shard in range(20):
        lines = [json.dumps({"text": f"{shard} {n} {PROSE}"}) for n in range(30)]
        (tmp_path / "many" / f"{shard:02d}.jsonl").write_text("\n".join(lines))
    source = SourceConfig(name="s", uris=(str(tmp_path / "many"),), preset="none")
    config = a_config(tmp_path / "other", sources=(source,), chunk_bytes=1 << 15)
    with drafted(config) as plans:
        sample, again, all_ = draw(plans[0], 64), draw(plans[0], 64), draw(plans[0], 10_000)
        units = {plans[0].place(at).unit for at in range(16)}
    assert sample.docs.equals(again.docs) and sample.docs.num_rows == 64
    assert len(set(sample.docs.column("shard").to_pylist())) >= len(units) - 1
    assert all_.docs.num_rows == all_.records == 600 and all_.dead_letters == []
    assert len(set(sample.docs.column("row").to_pylist())) > 8  # not the first ones of every shard


def test_dead_letters_of_the_chunks_are_counted(looked: list[Looked], config: Config) -> None:
    sample = looked[0].sample
    assert {letter.reason for letter in sample.dead_letters} == {"bad_json", "missing_column"}
    assert sample.records == sample.docs.num_rows + len(sample.dead_letters)
    plain = model(config, looked)["sources"][0]["dead_letters"]
    assert plain["reasons"] == {"bad_json": 1, "missing_column": 1} and len(plain["first"]) == 2


def test_candidate_pairs_are_those_of_equal_band_keys(looked: list[Looked]) -> None:
    sketches = signatures(looked[0].chain.texts, DedupConfig())
    pairs, expected = find_pairs(sketches), []
    assert sketches.sketch is not None
    has = np.diff(sketches.sketch.offsets) > 0
    for later in range(len(sketches)):
        for earlier in range(later):
            if has[later] and has[earlier] and (sketches.bands[later] == sketches.bands[earlier]).any():
                sizes = int(sketches.shingle_count[later]), int(sketches.shingle_count[earlier])
                share = similarity(sketches.sketch[later], sizes[0], sketches.sketch[earlier], sizes[1])
                expected += [(later, earlier, share)] if share >= MIN_SIMILARITY else []
    by_doc = [zip(*(each.tolist() for each in pairs.of(doc)), strict=True) for doc in range(len(sketches))]
    found = [(doc, *pair) for doc, own in enumerate(by_doc) for pair in own]
    assert found == expected and len(found) >= 7
    assert any(share < 0.7 for _later, _earlier, share in found)
