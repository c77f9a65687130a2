"""The n-gram model against Kneser-Ney in plain Python, perplexities, cut-offs, the stage, the model file, the pipeline.

    python -m pytest -q tests/data/test_perplexity.py
"""

from __future__ import annotations

import ast
import json
import math
import random
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import train_perplexity
from pipelines.cli import run_main
from pretrainer.config.curation import PerplexityConfig
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.data.quality import corpus, model_file, train_ngrams
from pretrainer.data.quality.kneser_ney import FALLBACK_DISCOUNTS, Ngrams, discounts, estimate
from pretrainer.data.quality.perplexity import MAX_SCORED_CHARS, PerplexityModel, perplexity_stage, rules, terciles
from pretrainer.data.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pretrainer.errors import ConfigError, UserError
from pretrainer.schema import DOCUMENTS

VOCAB = 12
MARK = "mark"
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
NATURAL = "The list of names is sorted before it is returned to the caller, so that the order is always the same."


def array(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def small_corpus(documents: int = 60, seed: int = 0) -> list[list[int]]:
    """Documents over VOCAB - 2 pieces with some structure, some empty, some of a single piece."""
    generator = random.Random(seed)
    found = []
    for _ in range(documents):
        document = [generator.randrange(VOCAB - 2) for _ in range(generator.choice([0, 1, 2, 9, 30]))]
        for i in range(1, len(document)):
            if generator.random() < 0.6:
                document[i] = (document[i - 1] * 3 + 1) % (VOCAB - 2)
        found.append(document)
    return found


def flat(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return np.array([piece for document in documents for piece in document], np.uint32), offsets


# ------------------------------------------------------------------------------------- the model against a reference


class Reference:
    """Interpolated modified Kneser-Ney by its definition, with dicts."""

    def __init__(self, documents: Sequence[Sequence[int]], order: int, min_count: int) -> None:
        self.order, self.min_count = order, min_count
        self.occurrences: list[Counter] = [Counter() for _ in range(order + 1)]
        for document in documents:
            marked = (MARK, *document)
            for n in range(1, order + 1):
                self.occurrences[n].update(marked[i : i + n] for i in range(len(marked) - n + 1))
        self.occurrences[1].pop((MARK,), None)
        self.counts = [self._counts(n) for n in range(order + 1)]
        self.discounts = [self._discounts(counts) for counts in self.counts]
        self.following: list[dict] = [defaultdict(dict) for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, count in self.counts[n].items():
                self.following[n][gram[:-1]][gram[-1]] = count

    def _counts(self, n: int) -> dict[tuple, int]:
        if n in (0, self.order):
            return dict(self.occurrences[n])
        before: dict[tuple, set] = defaultdict(set)
        for gram in self.occurrences[n + 1]:
            before[gram[1:]].add(gram[0])
        return {g: c if g[0] == MARK else len(before[g]) for g, c in self.occurrences[n].items()}

    def _discounts(self, counts: dict[tuple, int]) -> Sequence[float]:
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return FALLBACK_DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        found = (0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return found if all(0 < d <= k for k, d in enumerate(found) if k) else FALLBACK_DISCOUNTS

    def probability(self, context: tuple, piece: int) -> float:
        n = len(context) + 1
        shorter = self.probability(context[1:], piece) if context else 1 / VOCAB
        following = self.following[n].get(context)
        if not following:
            return shorter
        least = self.min_count if n >= 3 else 0
        kept = {w: c for w, c in following.items() if self.occurrences[n][*context, w] >= least}
        left = {w: c - self.discounts[n][min(c, 3)] for w, c in kept.items()}
        total = sum(following.values())
        return left.get(piece, 0) / total + (total - sum(left.values())) / total * shorter

    def document(self, pieces: Sequence[int]) -> list[float]:
        marked = (MARK, *pieces)
        contexts = [marked[max(0, i - self.order + 1) : i] for i in range(1, len(marked))]
        return [math.log(self.probability(c, w)) for c, w in zip(contexts, pieces, strict=True)]


@cache
def trained(order: int, min_count: int) -> tuple[Ngrams, Reference]:
    documents = small_corpus()
    return estimate(*flat(documents), VOCAB, order, min_count), Reference(documents, order, min_count)


EACH_MODEL = [(2, 2), (3, 1), (3, 2), (4, 2), (5, 1), (5, 3)]


@pytest.mark.parametrize(("order", "min_count"), EACH_MODEL)
def test_probabilities_are_those_of_the_definition(order: int, min_count: int) -> None:
    model, reference = trained(order, min_count)
    for document in [*small_corpus(20, seed=1), *small_corpus(10), [11, 3, 11, 11, 4], [10]]:
        found = model.each_log_probability(np.array(document, np.uint32))
        assert found == pytest.approx(reference.document(document), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("order", "min_count"), EACH_MODEL)
def test_probabilities_of_all_pieces_sum_to_one(order: int, min_count: int) -> None:
    model, _ = trained(order, min_count)
    contexts: list[list[int]] = [[], [0], [11], [1, 4], [1, 4, 3, 0, 1], [11, 11], [2, 7, 2], small_corpus()[4][:6]]
    for context in contexts:
        each = [model.each_log_probability(np.array([*context, piece]))[-1] for piece in range(VOCAB)]
        assert np.exp(each).sum() == pytest.approx(1, abs=1e-6), context


def test_unseen_pieces_share_what_is_left() -> None:
    model, _ = trained(3, 2)
    unseen = [model.each_log_probability(np.array([piece]))[0] for piece in (10, 11)]
    assert unseen[0] == unseen[1] and -20 < unseen[0] < -3


def test_singletons_above_bigrams_are_pruned() -> None:
    documents = small_corpus()
    grams = [Counter(tuple(d[i : i + n]) for d in [[VOCAB, *d] for d in documents] for i in range(len(d) - n + 1))
             for n in (2, 3)]  # fmt: skip
    sizes = [VOCAB + 1, len(grams[0]), sum(count >= 2 for count in grams[1].values())]
    model, _ = trained(3, 2)
    assert len(model.pieces) == len(model.log_probabilities) == sum(sizes)
    assert len(model.log_backoffs) == sum(sizes[:2]) == len(model.first_child) - 1
    assert 0 < sizes[2] < len(grams[1])


def test_discounts_by_hand() -> None:
    counts = np.repeat([1.0, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    assert discounts(counts) == pytest.approx([0, 0.5, 2 - 1.5 * 2 / 4, 3 - 2 * 1 / 2])  # y = 8 / (8 + 8)
    assert discounts(np.array([1.0, 1, 5])).tolist() == list(FALLBACK_DISCOUNTS)
    assert discounts(np.repeat([1.0, 2, 3, 4], [1, 1, 9, 1])).tolist() == list(FALLBACK_DISCOUNTS)  # D2 below 0


def test_documents_do_not_see_each_other() -> None:
    model, _ = trained(3, 1)
    documents = small_corpus(30, seed=2)
    together = model.mean_log_probability(*flat(documents))
    alone = [model.mean_log_probability(*flat([document]))[0] for document in documents]
    assert together.tobytes() == np.array(alone).tobytes()
    ids, offsets = flat(documents)
    assert np.array_equal(model.mean_log_probability(ids, offsets[5:9]), together[5:8], equal_nan=True)
    assert np.isnan(together).tolist() == [not document for document in documents]


def test_order_of_documents_changes_no_model() -> None:
    documents = small_corpus()
    one, other = (estimate(*flat(part), VOCAB, 3) for part in (documents, documents[::-1]))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=8), min_size=1, max_size=6).filter(any),
    order=st.integers(2, 5),
    min_count=st.integers(1, 3),
)
def test_tiny_corpora_give_the_definition_too(documents: list[list[int]], order: int, min_count: int) -> None:
    model, reference = estimate(*flat(documents), VOCAB, order, min_count), Reference(documents, order, min_count)
    for document in [*documents, [0, 1, 2, 0, 1, 2]]:
        found = model.each_log_probability(np.array(document, np.uint32))
        assert found == pytest.approx(reference.document(document), rel=1e-5, abs=1e-5)


# ------------------------------------------------------------------------------------------- perplexity of documents


@cache
def prose() -> tuple[str, ...]:
    """Docstrings of some modules of the standard library."""
    found = []
    for path in sorted(LIBRARY.glob("[a-f]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.append(ast.get_docstring(node) or "")
    return tuple(text for text in found if len(text) > 150)


@cache
def model() -> PerplexityModel:
    reference = corpus.each_once(array(*prose()), 0)
    tokenizer = Tokenizer.from_bytes(train_tokenizer(prose()[:200], "bpe", 700))
    return train_ngrams.train(reference, tokenizer, 3, 2, 0.2, None)


def held_back() -> pa.Array:
    return train_ngrams.cut(corpus.each_once(array(*prose()), 0), 0.2)[0]


def test_shuffled_words_are_more_perplexing() -> None:
    generator = random.Random(0)
    natural = [" ".join(text.split()) for text in held_back().to_pylist()]
    shuffled = [" ".join(generator.sample(words, len(words))) for words in map(str.split, natural)]
    a, b = model().perplexity(array(*natural)), model().perplexity(array(*shuffled))
    assert np.mean(a < b) > 0.95 and np.median(b) > 1.5 * np.median(a)


def test_code_is_more_perplexing_than_prose() -> None:
    code = [(LIBRARY / f"{name}.py").read_text()[2000:4000] for name in ("heapq", "queue", "shlex", "tarfile", "pdb")]
    assert np.median(model().perplexity(array(*code))) > 1.2 * np.median(model().perplexity(held_back()))


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    each = model().ngrams.each_log_probability(model().tokenizer.encode(NATURAL))
    assert model().perplexity(array(NATURAL))[0] == pytest.approx(math.exp(-each.mean()), abs=1e-6)


def test_empty_text_has_no_perplexity() -> None:
    found = model().perplexity(array("", NATURAL, ""))
    assert np.isnan(found).tolist() == [True, False, True]
    assert np.isnan(model().bucket(found)).tolist() == [True, False, True]
    assert len(model().perplexity(array())) == 0


def test_unknown_characters_have_a_finite_perplexity() -> None:
    found = model().perplexity(array("\U0001f600\u4e16\u754c \u0416", "\0", "\n\n"))
    assert np.isfinite(found).all() and found[0] > model().perplexity(array(NATURAL))[0]


def test_long_text_is_its_first_characters() -> None:
    beginning = (NATURAL * (MAX_SCORED_CHARS // len(NATURAL) + 1))[:MAX_SCORED_CHARS]
    found = model().perplexity(array(beginning, beginning + "\u0416 xqzj" * 1_500_000, beginning[:-70]))
    assert found[0] == found[1] != found[2]


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=4))
def test_any_text_has_its_perplexity_in_any_batch(texts: list[str]) -> None:
    found = model().perplexity(array(*texts))
    assert ((found >= 1) | np.isnan(found)).all()
    assert [bool(np.isnan(value)) for value in found] == [not text for text in texts]
    alone = [model().perplexity(array("before", text)[1:])[0] for text in texts]
    assert found.tobytes() == np.array(alone, np.float64).tobytes()


def test_cutoffs_are_terciles_of_documents_that_were_not_counted() -> None:
    held = model().perplexity(held_back())
    assert model().cutoffs == terciles(held)
    counts = np.bincount(model().bucket(held).astype(int), minlength=3)
    assert counts.max() - counts.min() <= 1
    assert model().report["held_out_documents"] == len(held)
    counted = train_ngrams.cut(corpus.each_once(array(*prose()), 0), 0.2)[1]
    assert model().report["documents"] == len(counted) == len(set(prose())) - len(held)
    assert np.median(model().perplexity(counted)) < np.median(held), "counted documents are better known"


def test_cutoffs_of_a_sample() -> None:
    reference = corpus.each_once(array(*prose()), 0)
    sample = corpus.each_once(array(*(text[::-1] for text in prose()[:30])), 0)
    found = train_ngrams.train(reference, model().tokenizer, 3, 2, 0.2, sample)
    assert found.cutoffs == terciles(model().perplexity(sample.texts)) and found.cutoffs[0] > model().cutoffs[1]
    assert found.report["cutoffs_of"] == "sample"


# ------------------------------------------------------------------------------------------------ stage and model file


def documents(*texts: str) -> pa.Table:
    rows = [{"id": str(i), "shard": 0, "row": i, "text": t, "url": "", "language": "", "scores": []} for i, t in
            enumerate(texts)]  # fmt: skip
    return pa.Table.from_pylist(rows, DOCUMENTS)


def staged(config: PerplexityConfig, *texts: str) -> Verdict:
    return run_stages(documents(*texts), [perplexity_stage(config, {"file": model().to_bytes()}.__getitem__)])


HARD = "\u0416\u0416 xqzj ][ \u4e16"


def test_high_perplexity_is_dropped() -> None:
    verdict = staged(PerplexityConfig(model="file"), NATURAL, HARD, "")
    assert verdict.reasons == [None, "high_perplexity", None]
    assert verdict.measures["perplexity_bucket"][1] == 2
    assert verdict.measures["perplexity"][:2].tolist() == model().perplexity(array(NATURAL, HARD)).tolist()


def test_low_perplexity_is_dropped_where_the_head_is_not_kept() -> None:
    texts = held_back().to_pylist()
    buckets = model().bucket(model().perplexity(held_back()))
    reasons = staged(PerplexityConfig(model="file", keep=("middle",)), *texts).reasons
    expected = {0: "low_perplexity", 1: None, 2: "high_perplexity"}
    assert reasons == [expected[int(bucket)] for bucket in buckets] and set(reasons) == set(expected.values())


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (("head",), [True, True, False, False, False]),
        (("middle", "head"), [True, True, True, True, False]),
        (("middle",), [False, False, True, True, False]),
        (("tail", "middle"), [False, False, True, True, True]),
        (("tail",), [False, False, False, False, True]),
        (("head", "middle", "tail"), [True] * 5),
    ],
)
def test_kept_buckets_are_limits(keep: tuple, kept: list[bool]) -> None:
    cutoffs = (10.0, 20.0)
    values = np.array([9, 10, math.nextafter(10, 11), 20, math.nextafter(20, 21)])
    passed = [rule.passes(values) for rule in rules(PerplexityConfig(keep=keep), cutoffs)]
    assert np.logical_and.reduce([np.ones(5, bool), *passed]).tolist() == kept
    model_ = PerplexityModel(model().ngrams, model().tokenizer, cutoffs, {})
    names = np.array(["head", "middle", "tail"])[model_.bucket(values).astype(int)]
    assert [name in keep for name in names] == kept


def test_max_perplexity_replaces_the_buckets() -> None:
    perplexity = float(model().perplexity(array(NATURAL))[0])
    limit = PerplexityConfig(model="file", max_perplexity=perplexity, keep=("tail",))
    assert staged(limit, NATURAL, HARD).reasons == [None, "high_perplexity"]
    below = PerplexityConfig(model="file", max_perplexity=math.nextafter(perplexity, 0))
    assert staged(below, NATURAL).reasons == ["high_perplexity"]


@pytest.mark.parametrize("fields", [{"keep": ()}, {"keep": ("head", "tail")}, {"max_perplexity": 1.0}])
def test_config_mistakes_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=r"data\.perplexity\.(keep|max_perplexity)="):
        PerplexityConfig(model="file", **fields)


def test_model_file_gives_the_model_back() -> None:
    data = model().to_bytes()
    again = PerplexityModel.from_bytes(data)
    assert again.to_bytes() == data and again.tokenizer.digest == model().tokenizer.digest
    assert again.perplexity(held_back()).tobytes() == model().perplexity(held_back()).tobytes()
    assert (again.cutoffs, again.report) == (model().cutoffs, model().report)


def rewritten(change: Callable[[dict], None]) -> bytes:
    header, arrays = model_file.unpack(model().to_bytes(), "perplexity model", 1, "x")
    change(header)
    return model_file.pack(header.pop("kind"), header.pop("version"), header, arrays)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"{}", "no model file of this package, not a perplexity model: train it with"),
        (lambda: rewritten(lambda h: h.update(kind="quality classifier")), "a quality classifier, not a perplexity"),
        (lambda: rewritten(lambda h: h.update(version=7)), "has version 7, this code reads version 1"),
        (lambda: rewritten(lambda h: h.update(scheme="trie9")), "scheme 'trie9'"),
        (lambda: rewritten(lambda h: h.update(max_scored_chars=5)), "over 5 characters"),
        (lambda: model().to_bytes()[:-1] + b"\x07", "is damaged"),
    ],
)
def test_other_files_are_refused(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PerplexityModel.from_bytes(data())
    assert str(caught.value).startswith("data.perplexity.model: ") and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ pipeline


def write_jsonl(path: Path, texts: Sequence[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def test_pipeline_with_a_given_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, to = write_jsonl(tmp_path / "a.jsonl", prose()), tmp_path / "models" / "perplexity.model"
    (tmp_path / "t.model").write_bytes(model().tokenizer.data)
    arguments = ["--reference", reference, "--tokenizer", str(tmp_path / "t.model"), "--to", str(to)]
    assert train_perplexity.main([*arguments, "--held-out", "0.2"]) == 0
    assert to.read_bytes() == model().to_bytes(), "the same documents, tokenizer and order"
    output, (head, middle) = capsys.readouterr().out, model().cutoffs
    assert f"perplexity up to {head:,.1f}" in output and f"up to {middle:,.1f}; both are thirds of" in output
    assert f"data.perplexity.model={to} data.perplexity.keep=[head,middle]" in output


def test_pipeline_trains_a_tokenizer_and_takes_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, sample = write_jsonl(tmp_path / "a.jsonl", prose()), write_jsonl(tmp_path / "b.jsonl", [HARD, NATURAL])
    to = tmp_path / "perplexity.model"
    arguments = ["--reference", reference, "--sample", sample, "--vocab-size", "500", "--order", "2", "--to", str(to)]
    assert train_perplexity.main(arguments) == 0
    written = PerplexityModel.from_bytes(to.read_bytes())
    assert (written.ngrams.order, written.tokenizer.vocab_size) == (2, 500)
    assert "thirds of 2 sample documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--order": "6"}, "--order=6 is not possible: use 2 to 5"),
        ({"--to": "python-stdlib://model"}, "cannot be written: use a local path"),
        ({"--tokenizer": "nowhere.model"}, "--tokenizer nowhere.model does not exist"),
        ({"--reference": "nowhere.jsonl"}, "source reference: nothing to read at"),
        ({}, "--reference: 3 different documents are too few"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    changed: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "t.model").write_bytes(model().tokenizer.data)
    given_ = {"--reference": write_jsonl(tmp_path / "a.jsonl", prose()[:3]), "--tokenizer": str(tmp_path / "t.model")}
    arguments = {**given_, "--to": str(tmp_path / "out"), **changed}
    monkeypatch.setattr(sys, "argv", ["train_perplexity", *(word for pair in arguments.items() for word in pair)])
    with pytest.raises(SystemExit) as stopped:
        run_main(train_perplexity.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not (tmp_path / "out").exists()
