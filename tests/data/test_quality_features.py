"""Hashed n-grams of the quality classifier against plain Python."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.quality import features
from pretrainer.data.quality.features import MAX_READ_CHARS, FeatureScheme, feature_rows, margins
from pretrainer.errors import ConfigError
from tests.data.quality_texts import SMALL, TEXTS, array, fold, is_blank, prose_and_code, reference_tokens

MASK = 2**64 - 1
BOTH = FeatureScheme(word_ngrams=2, char_ngram=3, bucket_bits=10)


# ------------------------------------------------------------------------------------------------------- features


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
