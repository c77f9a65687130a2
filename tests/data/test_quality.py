"""The quality classifier: features against plain Python, an honest split, calibration, the model file, the pipeline.

    python -m pytest -q tests/data/test_quality.py
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipelines import train_quality
from pipelines.cli import run_main
from pretrainer.config.curation import QualityConfig
from pretrainer.data.dedup import minhash
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.data.quality import corpus, evaluation, features, model_file, train_classifier
from pretrainer.data.quality.classifier import Classifier, quality_stage
from pretrainer.data.quality.features import MAX_READ_CHARS, FeatureScheme, feature_rows, margins
from pretrainer.errors import ConfigError, UserError
from pretrainer.schema import DOCUMENTS

MASK = 2**64 - 1
SMALL = FeatureScheme(bucket_bits=12)
BOTH = FeatureScheme(word_ngrams=2, char_ngram=3, bucket_bits=10)
LETTERS = st.characters(codec="utf-8") | st.sampled_from("aB19 .-\t\n\u4e2d\u3042\u3002\u044f\u00e9\u00a0")
TEXTS = st.text(LETTERS, max_size=60)
LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def array(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@cache
def prose_and_code() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(docstrings, functions without one) of some modules of the standard library."""
    prose, code = [], []
    for path in sorted(LIBRARY.glob("[a-d]*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 150:
                prose.append(docstring)
            elif isinstance(node, ast.FunctionDef) and not docstring and node.end_lineno:
                code.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return tuple(prose), tuple(text for text in code if len(text) > 150)


@cache
def model() -> Classifier:
    prose, code = prose_and_code()
    good, bad, _common = corpus.without_common(corpus.each_once(array(*prose), 0), corpus.each_once(array(*code), 0))
    return train_classifier.train(good, bad, SMALL, held_out=0.4, seed=0)


# ------------------------------------------------------------------------------------------------------- features


def kind_of(character: str) -> int:
    point = ord(character)
    if any(a <= point <= b for a, b in minhash._SINGLES) or 0x20000 <= point < 0x40000:
        return minhash._SINGLE
    if any(a <= point <= b for a, b in minhash._SEPARATORS) or (point < 128 and not character.isalnum()):
        return minhash._SEPARATOR
    return minhash._LETTER


def is_blank(character: str) -> bool:
    return ord(character) <= 0x20 or ord(character) == 0x7F


def fold(text: str) -> str:
    return "".join("0" if c in "0123456789" else c.lower() if ord(c) < 128 else c for c in text)


def reference_tokens(text: str) -> list[str]:
    """Tokens as the module docstring defines them."""
    tokens, run = [], ""
    for character in text:
        if kind_of(character) == minhash._LETTER:
            run += character
            continue
        tokens += [run] * bool(run) + [character] * (not is_blank(character))
        run = ""
    return [fold(token) for token in tokens + [run] * bool(run)]


def reference_characters(text: str) -> list[str]:
    found: list[str] = []
    for character in text:
        if is_blank(character):
            found += [" "] * (not found or found[-1] != " ")
        else:
            found.append(fold(character))
    return found


def mix(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


def fnv(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return mix(h)


def reference_features(text: str, scheme: FeatureScheme) -> dict[int, float]:
    """bucket -> value."""
    sequences = [(reference_tokens(text), n, n) for n in range(1, scheme.word_ngrams + 1)]
    if scheme.char_ngram:
        sequences.append((reference_characters(text), scheme.char_ngram, 64 + scheme.char_ngram))
    counts: Counter[int] = Counter()
    for parts, n, seed in sequences:
        hashes = [fnv(part) for part in parts]
        for i in range(len(hashes) - n + 1):
            value = 0
            for h in hashes[i : i + n]:
                value = (value * 0x9E3779B97F4A7C15 + h) & MASK
            counts[mix((value + seed) & MASK) >> (64 - scheme.bucket_bits)] += 1
    return {bucket: (count / counts.total()) ** 0.5 for bucket, count in counts.items()}


def rows_of(texts: list[str], scheme: FeatureScheme) -> list[dict[int, float]]:
    values, indices, indptr = feature_rows(array(*texts), scheme)
    return [
        dict(zip(indices[a:b].tolist(), values[a:b].tolist(), strict=True))
        for a, b in zip(indptr, indptr[1:], strict=False)
    ]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4), scheme=st.sampled_from([SMALL, BOTH]))
def test_features_are_those_of_plain_python(texts: list[str], scheme: FeatureScheme) -> None:
    for text, row in zip(texts, rows_of(texts, scheme), strict=True):
        assert row == pytest.approx(reference_features(text, scheme), rel=1e-6), text


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_margins_are_features_times_weights_in_any_batch(texts: list[str]) -> None:
    weights = np.random.default_rng(0).normal(size=BOTH.buckets).astype(np.float32)
    found = margins(array(*texts), BOTH, weights)
    for text, row, margin in zip(texts, rows_of(texts, BOTH), found, strict=True):
        alone = margins(array("other", text, "x y")[1:2], BOTH, weights)  # an Arrow slice has an offset
        assert alone.tobytes() == np.array([margin]).tobytes()
        if row:
            expected = sum(float(weights[bucket]) * value for bucket, value in row.items())
            assert margin == pytest.approx(expected, rel=1e-5, abs=1e-6)
        else:
            assert np.isnan(margin)


def test_features_stay_what_they_were() -> None:
    """Model files depend on these numbers; change the scheme's name with them."""
    text = "It's 1999: Grüße, 世界! x_1 -- \u201cquoted\u201d\u00a0end\n\n\tif (a != b) { return 0; }"
    values, indices, indptr = feature_rows(array(text, "", "a"), FeatureScheme(char_ngram=4))
    assert indptr.tolist() == [0, 124, 124, 125]
    digest = hashlib.sha256(indices.astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "d9c96f205bfde7d9"
    assert FeatureScheme(char_ngram=4).id == "hashed1-words2-chars4-bits18-max200000-sqrt-l2"


def test_what_tokens_are() -> None:
    assert reference_tokens("Don't pay $1,234.56 for x_1\u201d") == [
        "don", "'", "t", "pay", "$", "0", ",", "000", ".", "00", "for", "x", "_", "0", "\u201d",
    ]  # fmt: skip
    assert rows_of(["Price 1999"], SMALL) == rows_of(["price   2024"], SMALL)
    assert rows_of(["a b"], SMALL) != rows_of(["a, b"], SMALL)


def test_rows_have_norm_one_and_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = array(*prose_and_code()[0][:50], "")
    whole = feature_rows(texts, SMALL)
    monkeypatch.setattr(features, "SLICE_BYTES", 700)
    for part, expected in zip(feature_rows(texts, SMALL), whole, strict=True):
        assert np.array_equal(part, expected)
    norms = np.add.reduceat(whole[0].astype(np.float64) ** 2, whole[2][:-2])
    assert norms == pytest.approx(np.ones(50), abs=1e-5)


def test_long_text_is_its_first_characters() -> None:
    weights = np.ones(SMALL.buckets, np.float32)
    beginning = ("ab c\u4e2d " * MAX_READ_CHARS)[:MAX_READ_CHARS]
    long, shorter = beginning + "unlike anything\n" * 600_000, beginning[:-1]
    for scheme in (SMALL, FeatureScheme(word_ngrams=0, char_ngram=3, bucket_bits=12)):
        whole, cut, less = (margins(array(text), scheme, weights)[0] for text in (long, beginning, shorter))
        assert whole == cut != less
    assert margins(array("x" * 10_000_000), BOTH, np.ones(BOTH.buckets, np.float32)) > 0


@pytest.mark.parametrize(
    "fields", [{"word_ngrams": 6}, {"char_ngram": 1}, {"word_ngrams": 0, "char_ngram": 0}, {"bucket_bits": 25}]
)
def test_impossible_scheme_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is not possible"):
        FeatureScheme(**fields)


# ----------------------------------------------------------------------------------------------- corpora and splits


def test_each_text_once_in_an_order_of_its_own() -> None:
    texts = [f"text {i}" for i in range(40)]
    one = corpus.each_once(array(*texts, "text 3", "text\t 7 "), 0)  # equal as exact dedup compares
    other = corpus.each_once(array(*reversed(texts)), 0)
    assert one.texts.to_pylist() == other.texts.to_pylist() and sorted(one.texts.to_pylist()) == sorted(texts)
    assert corpus.each_once(array(*texts), 1).texts.to_pylist() != one.texts.to_pylist()


def test_a_text_in_both_sets_is_in_neither() -> None:
    left, right, common = corpus.without_common(
        corpus.each_once(array("a", "b", "c", "c"), 0), corpus.each_once(array("d", "c ", "b"), 0)
    )
    assert (left.texts.to_pylist(), right.texts.to_pylist(), common) == (["a"], ["d"], 2)
    assert len(left.hashes) == len(right.hashes) == 1


def test_parts_are_disjoint_and_whole() -> None:
    whole = corpus.each_once(array(*(f"text {i}" for i in range(100))), 0)
    parts = train_classifier.cut("positive", whole, 0.2)
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(text for part in parts for text in part.to_pylist()) == sorted(whole.texts.to_pylist())
    with pytest.raises(UserError, match=r"--negative: 19 different documents .* are too few: give at least 20"):
        train_classifier.cut("negative", corpus.each_once(whole.texts[:19], 0), 0.2)


def test_documents_are_read_as_a_source_is(tmp_path: Path) -> None:
    rows = [json.dumps({"body": f"line {i}\r\n"}) for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "no json", rows[0]]))
    found = corpus.read_corpus("positive", [str(tmp_path)], "body", 10**6, 0)
    assert sorted(found.texts.to_pylist()) == [f"line {i}\n" for i in range(5)]
    assert (found.read, found.unreadable) == (6, 1)
    with pytest.raises(UserError, match=r"--positive: no document could be read \(7 records are unreadable\)"):
        corpus.read_corpus("positive", [str(tmp_path)], "text", 10**6, 0)


def test_max_bytes_samples_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 1024)
    lines = [json.dumps({"text": f"{i:04}" * 50}) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    few = corpus.read_corpus("sample", [str(tmp_path)], "text", 5000, 0)
    assert 25 <= few.read <= 30
    assert max(int(text[:4]) for text in few.texts.to_pylist()) > 50, "the sample is not the beginning"


# ------------------------------------------------------------------------------------------------------ evaluation


def test_auc_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    good, bad = generator.integers(3, 12, 50) / 10, generator.integers(0, 9, 80) / 10  # with ties
    expected = roc_auc_score([1] * 50 + [0] * 80, np.concatenate([good, bad]))
    assert evaluation.auc(good, bad) == pytest.approx(expected, abs=1e-12)
    interval = evaluation.auc_interval(good, bad, seed=1)
    assert interval.low < interval.value < interval.high and interval == evaluation.auc_interval(good, bad, seed=1)


def test_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    generator = np.random.default_rng(0)
    good, bad = generator.normal(1, 1, 300), generator.normal(0, 1, 300)
    value, low, high = evaluation.auc_interval(good, bad, seed=0)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)  # Hanley and McNeil 1982
    error = ((value * (1 - value) + 299 * (q1 + q2 - 2 * value**2)) / 300**2) ** 0.5
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_calibration_error_by_hand() -> None:
    assert evaluation.calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    assert evaluation.calibration_error(np.array([1.0, 0.0]), np.array([0, 1])) == 1
    # Three negatives at 0.25 weigh 1/3 each of the one positive at 0.25: half the weight is positive.
    assert evaluation.calibration_error(np.full(4, 0.25), np.array([0, 0, 0, 1])) == pytest.approx(0.25)


def test_share_kept_counts_the_threshold_itself() -> None:
    assert evaluation.share_kept(np.array([0.1, 0.5, 0.5, 0.9]), [0.0, 0.5, 0.51, 1.0]).tolist() == [1, 0.75, 0.25, 0]


def test_platt_finds_the_curve_that_labels_follow() -> None:
    generator = np.random.default_rng(0)
    margin = generator.normal(0, 2, 20_000)
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-(1.5 * margin)))).astype(np.int64)
    rare = (labels == 0) | (generator.random(20_000) < 0.2)  # the class of positives is thinned: nothing changes
    slope, offset = train_classifier.platt(margin[rare], labels[rare])
    assert slope == pytest.approx(1.5, abs=0.1) and offset == pytest.approx(0, abs=0.1)


def test_platt_of_separable_sets_is_finite() -> None:
    slope, offset = train_classifier.platt(np.array([-1.0, -2, np.nan, 3, 4]), np.array([0, 0, 0, 1, 1]))
    assert 0 < slope < 10 and np.isfinite(offset)


# -------------------------------------------------------------------------------------------- training and scoring


def test_prose_is_told_from_code() -> None:
    report = model().report
    assert report["auc"] > 0.95 and report["auc_low"] > 0.95
    assert report["calibration_error"] < 0.1
    assert report["positive_test"] > 10 and report["negative_test"] > 10
    scores = model().score(array("The list of names is sorted before it is returned.", "def f(x): return x + 1"))
    assert scores[0] > 0.5 > scores[1]


def test_prose_is_told_from_its_shuffled_words() -> None:
    """The words are the same: only bigrams can tell."""
    texts = [" ".join(text.split()) for text in prose_and_code()[0]]
    generator = random.Random(0)
    shuffled = [" ".join(generator.sample(words, len(words))) for words in map(str.split, texts)]
    good, bad = corpus.each_once(array(*texts[::2]), 0), corpus.each_once(array(*shuffled[1::2]), 0)
    words, bigrams = (train_classifier.train(good, bad, FeatureScheme(n), 0.4, 0).report["auc"] for n in (1, 2))
    assert words < 0.7 and bigrams > 0.8


def test_training_is_deterministic() -> None:
    prose, code = (array(*texts) for texts in prose_and_code())
    good, bad = corpus.each_once(array(*reversed(prose.to_pylist())), 0), corpus.each_once(code, 0)
    good, bad, _common = corpus.without_common(good, bad)
    assert train_classifier.train(good, bad, SMALL, 0.4, 0).to_bytes() == model().to_bytes()
    assert train_classifier.train(good, bad, SMALL, 0.4, 1).to_bytes() != model().to_bytes()


def test_keep_share_keeps_that_share_of_the_negatives() -> None:
    held = array(*prose_and_code()[1])
    scores = model().score(held)
    assert model().threshold(1) == 0
    thresholds = [model().threshold(share) for share in (0.9, 0.5, 0.2, 0.1)]
    assert thresholds == sorted(thresholds)
    for share, threshold in zip((0.9, 0.5, 0.2), thresholds, strict=False):
        assert np.mean(scores >= threshold) == pytest.approx(share, abs=0.15)
    assert evaluation.share_kept(model().negative_quantiles, [thresholds[1]])[0] == pytest.approx(0.5, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_scores_are_shares_for_any_text(texts: list[str]) -> None:
    scores = model().score(array(*texts))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert all(score == 0 for text, score in zip(texts, scores, strict=True) if not reference_tokens(text))


# ------------------------------------------------------------------------------------------------------ model file


def test_model_file_gives_the_model_back() -> None:
    data = model().to_bytes()
    again = Classifier.from_bytes(data)
    texts = array(*prose_and_code()[0][:20], "")
    assert again.to_bytes() == data and again.score(texts).tobytes() == model().score(texts).tobytes()
    assert again.report == model().report and again.scheme == SMALL


def rewritten(change: Callable[[dict], None]) -> bytes:
    header, arrays = model_file.unpack(model().to_bytes(), "quality classifier", 1, "x")
    change(header)
    return model_file.pack(header.pop("kind"), header.pop("version"), header, arrays)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"", "no model file of this package, not a quality classifier: train it with"),
        (lambda: b"\x80\x04 a pickle of somebody", "no model file of this package"),
        (lambda: rewritten(lambda h: h.update(kind="perplexity model")), "a perplexity model, not a quality cl"),
        (lambda: rewritten(lambda h: h.update(version=2)), "has version 2, this code reads version 1"),
        (lambda: rewritten(lambda h: h.update(scheme="hashed9")), "scheme 'hashed9', which this code does not make"),
        (lambda: rewritten(lambda h: h["features"].update(unheard_of=1)), "which this code does not make"),
        (lambda: model().to_bytes()[:-8], "is damaged"),
        (lambda: model().to_bytes()[:-1] + b"\x01", "is damaged"),
        (lambda: replace(model(), weights=model().weights[:-1]).to_bytes(), "4095 weights do not fit"),
    ],
)
def test_other_files_are_refused(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Classifier.from_bytes(data())
    assert str(caught.value).startswith("data.quality.model: ") and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- stage


def documents(*texts: str) -> pa.Table:
    rows = [{"id": str(i), "shard": 0, "row": i, "text": t, "url": "", "language": "", "scores": []} for i, t in
            enumerate(texts)]  # fmt: skip
    return pa.Table.from_pylist(rows, DOCUMENTS)


def staged(config: QualityConfig, *texts: str) -> Verdict:
    return run_stages(documents(*texts), [quality_stage(config, {"file": model().to_bytes()}.__getitem__)])


def test_low_quality_is_dropped() -> None:
    prose, code = prose_and_code()
    verdict = staged(QualityConfig(model="file", min_score=0.5), prose[0], code[0], "", prose[1])
    assert verdict.reasons == [None, "low_quality", "low_quality", None]
    assert verdict.measures["quality_score"].tolist() == model().score(array(prose[0], code[0], "", prose[1])).tolist()
    assert verdict.docs.column("text").to_pylist() == [prose[0], prose[1]]


def test_limit_itself_is_kept() -> None:
    score = float(model().score(array(prose_and_code()[1][0]))[0])
    assert staged(QualityConfig(model="file", min_score=score), prose_and_code()[1][0]).kept.tolist() == [True]
    above = np.nextafter(score, 1)
    assert staged(QualityConfig(model="file", min_score=above), prose_and_code()[1][0]).kept.tolist() == [False]


def test_keep_share_becomes_a_limit() -> None:
    stage = quality_stage(QualityConfig(model="file", keep_share=0.3), {"file": model().to_bytes()}.__getitem__)
    assert [(rule.reason, rule.measure, rule.limit) for rule in stage.rules] == [
        ("low_quality", "quality_score", model().threshold(0.3))
    ]
    assert staged(QualityConfig(model="file", keep_share=1), "", "{}").kept.all()


@pytest.mark.parametrize(
    "fields", [{"model": "m"}, {"model": "m", "min_score": 0.5, "keep_share": 0.5}, {"keep_share": 0}, {"min_score": 2}]
)
def test_config_mistakes_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=r"data\.quality\.(min_score|keep_share)="):
        QualityConfig(**fields)


# -------------------------------------------------------------------------------------------------------- pipeline


def write_jsonl(path: Path, texts: tuple[str, ...]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def test_pipeline_trains_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prose, code = prose_and_code()
    good, bad = write_jsonl(tmp_path / "a.jsonl", (*prose, code[0])), write_jsonl(tmp_path / "b.jsonl", code)
    to = tmp_path / "models" / "quality.model"
    arguments = ["--positive", good, "--negative", bad, "--to", str(to), "--buckets", "4096", "--held-out", "0.4"]
    assert train_quality.main(arguments) == 0
    output = capsys.readouterr().out
    written = Classifier.from_bytes(to.read_bytes())
    assert f"AUC                 {written.report['auc']:.4f} (95 % interval" in output
    assert "in both, left out   1" in output and "calibration error" in output
    assert f"{0.5:>17.1%}{written.threshold(0.5):>12.4f}" in output
    assert f"data.quality.model={to} data.quality.keep_share=0.1" in output
    assert written.scheme.buckets == 4096


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--buckets": "1000"}, "--buckets=1000 is not possible: use a power of two"),
        ({"--held-out": "0"}, "--held-out=0.0 is not possible"),
        ({"--to": "https://host/model"}, "https://host cannot be written"),
        ({"--negative": "nowhere.jsonl"}, "source negative: nothing to read at"),
        ({"--text-column": "body"}, "--positive: no document could be read"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    changed: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    prose, code = prose_and_code()
    good, bad = write_jsonl(tmp_path / "a.jsonl", prose), write_jsonl(tmp_path / "b.jsonl", code)
    arguments = {"--positive": good, "--negative": bad, "--to": str(tmp_path / "model"), **changed}
    monkeypatch.setattr(sys, "argv", ["train_quality", *(word for pair in arguments.items() for word in pair)])
    with pytest.raises(SystemExit) as stopped:
        run_main(train_quality.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not (tmp_path / "model").exists()
