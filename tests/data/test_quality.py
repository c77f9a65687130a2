"""Quality classifier: corpora, splits, evaluation, training, model file, stage and pipeline."""

from __future__ import annotations

import json
import random
import sys
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
from pipelines.driver.cli import run_main
from pretrainer.config.curation import QualityConfig
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.data.quality import corpus, evaluation, model_file, train_classifier
from pretrainer.data.quality.classifier import Classifier, quality_stage
from pretrainer.data.quality.features import FeatureScheme
from pretrainer.errors import ConfigError, UserError
from pretrainer.schema import DOCUMENTS
from tests.data.quality_texts import SMALL, TEXTS, array, prose_and_code, reference_tokens


@cache
def model() -> Classifier:
    prose, code = prose_and_code()
    good, bad, _common = corpus.without_common(corpus.each_once(array(*prose), 0), corpus.each_once(array(*code), 0))
    return train_classifier.train(good, bad, SMALL, held_out=0.4, seed=0)


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
