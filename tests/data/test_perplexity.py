"""Perplexity: of documents, cut-offs, stage, model file and pipeline."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import train_perplexity
from pipelines.driver.cli import run_main
from pretrainer.config.curation import PerplexityConfig
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.data.quality import corpus, model_file, train_ngrams
from pretrainer.data.quality.perplexity import MAX_SCORED_CHARS, PerplexityModel, perplexity_stage, rules, terciles
from pretrainer.errors import ConfigError, UserError
from tests.data.ngram_texts import LIBRARY, array, documents, model, prose

NATURAL = "The list of names is sorted before it is returned to the caller, so that the order is always the same."


# ------------------------------------------------------------------------------------------- perplexity of documents


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
