"""The look at curation: its numbers are those of a run, moved limits are those of another run, its page is safe.

    python -m pytest -q tests/data/test_inspect.py
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import inspect_data
from pretrainer.config import Config, DataConfig, DedupConfig, LanguageConfig, SourceConfig, TrainConfig
from pretrainer.config.dedup import LineDedupConfig
from pretrainer.data.curation import run_after_dedup, run_before_dedup
from pretrainer.data.dedup.dedup import DedupIndex, signatures
from pretrainer.data.dedup.in_order import decisions_table
from pretrainer.data.dedup.oddsketch import similarity
from pretrainer.data.filters.rules import Rule
from pretrainer.data.inspect import page
from pretrainer.data.inspect.chain import Chain, Dedup, Edits, Step
from pretrainer.data.inspect.diffs import line_diff, word_diff
from pretrainer.data.inspect.funnel import (
    BANDS,
    Decided,
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
from pretrainer.data.inspect.page import Looked, column, model, render
from pretrainer.data.inspect.pairs import MIN_SIMILARITY, Pairs, find_pairs
from pretrainer.data.inspect.sample import Sample, drafted, draw, freeze_references
from pretrainer.data.inspect.samples import KEPT, PER_REASON
from pretrainer.data.inspect.settings import setting_of
from pretrainer.data.ledger.segments import apply_decisions
from pretrainer.data.plan import SourcePlan
from pretrainer.data.readers.source import list_shards
from pretrainer.errors import UserError
from pretrainer.storage import Store
from tests.data.harness import document

EVIL = "</script><script>window.pwned=1</script><img src=x onerror=alert(1)> & \u2028 <!-- "
SENTENCE = "The harbour master wrote that all ships would have to leave the old port with the tide and be back. "
PROSE = " ".join(f"In the year {n} the people had built a new wall and the river was very high." for n in range(9))


def page_text(number: int, tail: str = "") -> str:
    """A text that the web preset keeps, with a line that it removes."""
    lines = [f"{document(number * 31 + line, 30)[:-1]} said the {line} man." for line in range(8)]
    return "\n".join([*lines, "Please enable javascript to read this.", tail or "It was the end of that."])


def corpus(folder: Path) -> Path:
    """JSONL: pages, exact and near copies, short ones, one that attacks the page, lines that cannot be read."""
    pages = [page_text(n) for n in range(12)]
    near = [page_text(n, f"It was the end of that, said number {n}.") for n in range(4)]
    half = ["\n".join([*page_text(n).split("\n")[:6], *page_text(n + 60).split("\n")[6:]]) for n in range(4, 7)]
    short = ["too short", "", EVIL, SENTENCE * 30]
    first = f"{SENTENCE * 30}\nIt was the end of that."  # dropped before dedup, so its line counts for nothing
    texts = [first, *pages, *pages[:3], *near, *half, *short]
    records = [{"id": f"{i}{EVIL if i == 3 else ''}", "text": text} for i, text in enumerate(texts)]
    lines = [json.dumps(record) for record in records]
    lines += ["{broken", json.dumps({"id": "x" + EVIL, "other": EVIL}), json.dumps({"text": page_text(3) + EVIL * 20})]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def library(folder: Path) -> Path:
    """The standard library's text files, in a folder of their own: listing all of it takes a second."""
    source = SourceConfig(name="s", uris=("python-stdlib://",), include=(".txt", ".rst"))
    for number, shard in enumerate(list_shards(source)[:70]):
        (folder / f"{number:03d}.txt").write_bytes(Store(shard.root).read(shard.path))
    return folder


def a_config(folder: Path, **data: Any) -> Config:
    """Pages with the web preset."""
    web = SourceConfig(name="pages", uris=(str(corpus(folder)),), preset="web", id_column="id")
    fields: dict[str, Any] = {"sources": (web,), "seq_len": 8, "slot_sequences": 2, "chunk_bytes": 1 << 16}
    return Config(data=DataConfig(**(fields | data)), train=TrainConfig(steps=9, global_batch_tokens=128))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The pages, and the library's texts with the prose preset, which drops most of them."""
    pages = a_config(tmp_path_factory.mktemp("corpus"))
    texts = SourceConfig(name="library", uris=(str(library(tmp_path_factory.mktemp("library"))),), preset="prose")
    return replace(pages, data=replace(pages.data, sources=(*pages.data.sources, texts)))


@pytest.fixture(scope="module")
def looked(config: Config) -> list[Looked]:
    return look(config, 80, ticks())


def ticks() -> Any:
    """A clock that goes on by one second with every look."""
    seconds = count()
    return lambda: float(next(seconds))


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


# --------------------------------------------------------------------------------------------------------------- page


class Elements(HTMLParser):
    """(tag, attributes) of every element, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.content: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style")
        self.content += [""] if self.inside else []

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.content[-1] += data


@pytest.fixture(scope="module")
def written(config: Config, looked: list[Looked]) -> str:
    return render(model(config, looked)).decode()


def test_texts_of_strangers_are_data(written: str, looked: list[Looked]) -> None:
    elements = Elements(written)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 2 and "img" not in tags
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in elements.found for name in attrs)
    data = next(text for text in elements.content if text.startswith("{"))
    assert "<" not in data and ">" not in data
    source = json.loads(data)["sources"][0]
    assert any(EVIL in excerpt["text"] for excerpt in source["excerpts"]) and any(EVIL in doc for doc in source["ids"])


def test_only_the_pages_own_scripts_may_run(written: str) -> None:
    elements = Elements(written)
    policy = next(attrs["content"] for tag, attrs in elements.found if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    style, _data, script = elements.content
    for name, content in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


def test_the_page_loads_nothing(written: str) -> None:
    style, _data, script = Elements(written).content
    assert re.findall(r"https?://[^\"' ]*", style + script) == ["http://www.w3.org/2000/svg"]  # a name, not a load
    for word in ("@import", "url(", "fetch(", "XMLHttpRequest", "import(", "innerHTML", "insertAdjacentHTML", "eval("):
        assert word not in style + script, word


def test_a_lone_surrogate_does_not_break_the_page(config: Config, looked: list[Looked]) -> None:
    found = model(config, looked)
    found["sources"][0]["dead_letters"]["first"][0][3] = "bad \udc80 byte"
    data = next(text for text in Elements(render(found).decode()).content if text.startswith("{"))
    assert json.loads(data)["sources"][0]["dead_letters"]["first"][0][3] == "bad \udc80 byte"


def test_equal_input_gives_equal_bytes(config: Config, written: str) -> None:
    assert render(model(config, look(config, 80, ticks()))).decode() == written
    first, second = (model(config, look(config, 40)) for _ in range(2))
    assert first.pop("timings") != second.pop("timings") and first == second


def test_the_pages_numbers_are_the_looks(config: Config, looked: list[Looked]) -> None:
    """What the page is given is enough to decide, and exact: read back it decides the same."""
    plain = json.loads(page.to_json(model(config, looked)))
    for source, each in zip(plain["sources"], looked, strict=True):
        chain = chain_of(source)
        for changes in ({}, {"gopher_too_few_words": 20.0, "duplicate_near": 0.6}, {"gopher_too_few_words": None}):
            mine, theirs = decide(chain, changes), decide(each.chain, changes)
            assert mine.reasons == theirs.reasons and mine.duplicate_of.tolist() == theirs.duplicate_of.tolist()
            assert funnel(chain, mine) == funnel(each.chain, theirs)


def unpack(packed: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), f"<{packed['type']}").astype(np.float64)


def chain_of(source: dict[str, Any]) -> Chain:
    """A chain from the page's data, as model.js reads it."""
    nothing = pa.chunked_array([], pa.large_string())

    def edits(plain: dict[str, Any]) -> Edits:
        return Edits(nothing, nothing, unpack(plain["size_in"]), unpack(plain.get("size_out", plain["size_in"])))

    def steps(plain: list[dict[str, Any]]) -> tuple[Step, ...]:
        return tuple(
            Step(
                step["stage"],
                tuple(Rule(r["reason"], r["measure"], **{r["side"]: r["limit"]}) for r in step["rules"]),
                {name: unpack(values) for name, values in step["measures"].items()},
                step["annotates"],
                edits(step),
            )
            for step in plain
        )

    raw, fixed = source["dedup"], dict(source["dedup"]["fixed"])
    pairs = Pairs(unpack(raw["starts"]).astype(int), unpack(raw["earlier"]).astype(int), unpack(raw["similarity"]))
    equal = {reason: unpack(group).astype(int) - 1 for reason, group in raw["equal"]}
    everyone = range(source["documents"])
    dedup = Dedup(equal, pairs, raw["threshold"], [fixed.get(doc) for doc in everyone], edits(raw))
    sizes = unpack(source["size"])
    before, after = steps(source["before"]), steps(source["after"])
    return Chain(source["ids"], nothing, sizes, sizes, sizes, {}, before, dedup, after, ())


def test_excerpts_show_reasons_edits_and_what_is_close_to_a_limit(config: Config, looked: list[Looked]) -> None:
    source, library = model(config, looked)["sources"]
    counts = Counter(decide(looked[1].chain).reasons)
    shown = Counter(decide(looked[1].chain).reasons[excerpt["doc"]] for excerpt in library["excerpts"])
    assert shown == {reason: min(number, KEPT if reason is None else PER_REASON) for reason, number in counts.items()}
    assert max(counts.values()) > PER_REASON
    removed = [text for e in source["excerpts"] for _stage, diff in e["edits"] for kind, text in diff if kind == "-"]
    assert any("enable javascript" in text for text in removed)


def test_clusters_show_a_pair(config: Config, looked: list[Looked]) -> None:
    found = model(config, looked)["sources"][0]["clusters"]
    assert [cluster["size"] for cluster in found] == sorted((c["size"] for c in found), reverse=True)
    near = next(c for c in found if c["members"][-1][2] == "duplicate_near")
    added = "".join(text for kind, text in near["diff"] if kind == "+")
    assert "said number" in added and all(len(cluster["members"]) == cluster["size"] for cluster in found)


# --------------------------------------------------------------------------------------------------------------- parts


@given(st.lists(st.one_of(st.floats(), st.integers(-(2**40), 2**40), st.integers(0, 300))))
@settings(max_examples=60, deadline=None)
def test_columns_keep_every_number(values: list[float]) -> None:
    array = np.array(values, np.float64)
    assert np.array_equal(unpack(column(array)), array, equal_nan=True)


def test_columns_take_the_smallest_type() -> None:
    kinds = [column(np.array(values, np.float64))["type"] for values in ([0, 255], [256], [65536], [0.5], [0.1], [-1])]
    assert kinds == ["u1", "u2", "u4", "f4", "f8", "f4"]


TEXTS = st.text(alphabet="ab \n.\u00e9", max_size=60)


@given(TEXTS, TEXTS)
@settings(max_examples=100, deadline=None)
def test_diffs_hold_both_texts(before: str, after: str) -> None:
    for diff in (line_diff(before, after), word_diff(before, after)):
        if any(kind == "…" for kind, _ in diff):
            continue  # what is the same is shortened
        assert "".join(text for kind, text in diff if kind in "=-") == before
        assert "".join(text for kind, text in diff if kind in "=+") == after


def test_long_equal_parts_are_left_out() -> None:
    text = "".join(f"line {n}\n" for n in range(100))
    diff = line_diff(text, text.replace("line 50\n", ""))
    assert ["-", "line 50\n"] in diff and ["…", "46 lines the same"] in diff


def test_settings_name_what_a_limit_is_in_the_config() -> None:
    source = SourceConfig(name="s", uris=("x",), scores=("sim>=0.3", "sim[zh]>=0.2", "other<=5"))
    data = DataConfig(sources=(source,), language=LanguageConfig(keep=("en>=0.65", "de>=0.5")))
    assert setting_of("rules", "gopher_too_few_words", data, source) == {"in": "rules"}
    assert setting_of("url", "url_blocked_domain", data, source) is None
    language = setting_of("language", "language_low_score", data, source)
    assert language is not None and language["entries"] == [["en>=", 1, 0.65], ["de>=", 1, 0.5]]
    score = setting_of("score", "score_sim", data, source)
    assert score is not None and score["entries"] == [["sim>=", 1, 0.3], ["sim[zh]>=", 1, 0.2]]
    assert score["others"] == ["other<=5.0"]
    assert setting_of("score", "score_other", data, source)["entries"] == [["other<=", -1, 5.0]]  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------------ pipeline


def test_pipeline_writes_a_page_without_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml, to = tmp_path / "config.yaml", tmp_path / "page.html"
    source = f"{{name: pages, uris: ['{corpus(tmp_path / 'in')}'], preset: web}}"
    yaml.write_text(f"data: {{sources: [{source}]}}\ntrain: {{steps: 1, global_batch_tokens: 8192}}\n")
    code = inspect_data.main(["--config", str(yaml), "--documents", "20", "--to", str(to), "data.dedup.threshold=0.7"])
    printed = capsys.readouterr().out
    assert code == 0 and to.read_bytes().startswith(b"<!doctype html>") and str(to) in printed
    assert re.search(r"pages \(preset web\): 20 documents", printed) and not ray.is_initialized()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "in", "page.html"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--documents", "0"], "--documents=0"), (["--to", "/nowhere/at/all.html"], "--to='/nowhere/at/all.html'")],
)
def test_mistakes_are_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as told:
        inspect_data.main(arguments)
    assert "\n" not in str(told.value)


def test_no_documents_are_no_crash(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").write_text("{broken\n")
    source = SourceConfig(name="s", uris=(str(tmp_path / "empty"),), preset="web")
    config = a_config(tmp_path / "other", sources=(source,))
    looked = look(config, 5, ticks())
    assert isinstance(decide(looked[0].chain), Decided) and table(looked)
    assert render(model(config, looked))
