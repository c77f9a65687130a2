"""The inspect page: hostile texts, its numbers, excerpts and clusters, its parts, and the pipeline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import inspect_data
from pretrainer.config import Config, DataConfig, LanguageConfig, SourceConfig
from pretrainer.data.filters.rules import Rule
from pretrainer.data.inspect import page
from pretrainer.data.inspect.chain import Chain, Dedup, Edits, Step
from pretrainer.data.inspect.diffs import line_diff, word_diff
from pretrainer.data.inspect.funnel import (
    Decided,
    decide,
    funnel,
)
from pretrainer.data.inspect.look import look, table
from pretrainer.data.inspect.page import Looked, column, model, render
from pretrainer.data.inspect.pairs import Pairs
from pretrainer.data.inspect.samples import KEPT, PER_REASON
from pretrainer.data.inspect.settings import setting_of
from pretrainer.errors import UserError
from tests.data.inspected import EVIL, a_config, corpus, ticks
from tests.data.inspected import config as config  # a fixture
from tests.data.inspected import looked as looked

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
