"""MinHash: shingles against plain Python, signatures against datasketch, estimates against exact Jaccard."""

from __future__ import annotations

import random
import sysconfig
from itertools import product
from pathlib import Path

import datasketch
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.dedup import keys, minhash, oddsketch
from pretrainer.data.dedup.minhash import (
    EMPTY,
    MAX_SHINGLED_CHARS,
    estimate_jaccard,
    scheme_id,
    shingle_hashes,
    signatures,
)
from pretrainer.data.filters import normalise

MASK = 2**64 - 1
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("aB1 .-\u4e2d\u3042\u3002\u044f\u00e9"), max_size=120)


def array(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def reference_words(text: str) -> list[str]:
    """Words as the module docstring defines them."""
    words, current = [], ""
    for character in text:
        point = ord(character)
        single = any(a <= point <= b for a, b in minhash._SINGLES) or 0x20000 <= point < 0x40000
        separator = any(a <= point <= b for a, b in minhash._SEPARATORS) or (point < 128 and not character.isalnum())
        if (single or separator) and current:
            words.append(current)
            current = ""
        if single:
            words.append(character)
        elif not separator:
            current += character.lower() if point < 128 else character
    return words + [current] * bool(current)


def reference_mix(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


def reference_word_hash(word: str) -> int:
    h = 0
    for byte in word.encode():
        h = h * 257 + byte & MASK
    return reference_mix(h)


def reference_shingles(text: str, n: int) -> list[int]:
    hashes = [reference_word_hash(word) for word in reference_words(text)]
    windows = [hashes[i : i + n] for i in range(max(len(hashes) - n + 1, min(1, len(hashes))))]
    values = []
    for window in windows:
        value = 0
        for h in window:
            value = (value * 0x9E3779B97F4A7C15 + h) & MASK
        values.append(reference_mix(value) & 0xFFFFFFFF)
    return values


def random_words(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [f"{generator.randrange(10**6)}w" for _ in range(count)]


@given(text=TEXTS, n=st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_shingles_match_plain_python(text: str, n: int) -> None:
    assert shingle_hashes(text, n).tolist() == reference_shingles(text, n)


def test_shingles_of_a_real_document() -> None:
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8")
    assert shingle_hashes(text, 5).tolist() == reference_shingles(text, 5)


@given(texts=st.lists(TEXTS, max_size=5), permutations=st.sampled_from([1, 130, 256]))
@settings(max_examples=60, deadline=None)
def test_signatures_equal_those_of_datasketch(texts: list[str], permutations: int) -> None:
    """The oracle is fed the same 32-bit hashes; its scheme, seed and permutations are its own."""
    values, counts, _ = signatures(array(*texts), 3, permutations)
    for text, value, count in zip(texts, values, counts, strict=True):
        hashes = shingle_hashes(text, 3).tolist()
        oracle = datasketch.MinHash(permutations, seed=1, hashfunc=int, scheme="affine32")
        oracle.update_batch(hashes)
        assert value.tolist() == oracle.hashvalues.tolist()
        assert count == len(set(hashes))


def test_tiles_do_not_change_a_long_document() -> None:
    words = random_words(3 * minhash._TILE + 17, 0)
    oracle = datasketch.MinHash(128, seed=1, hashfunc=int, scheme="affine32")
    oracle.update_batch(shingle_hashes(" ".join(words), 5).tolist())
    assert signatures(array(" ".join(words)), 5, 128)[0][0].tolist() == oracle.hashvalues.tolist()


def test_values_are_the_same_on_every_platform() -> None:
    """Pinned: a change here is another scheme and needs another id."""
    values, *_ = signatures(array("the quick brown fox jumps over the lazy dog \u4e2d\u6587 caf\u00e9"), 5, 256)
    assert values[0, [0, 1, 128, 255]].tolist() == [685901559, 282500479, 247678570, 421245633]
    assert scheme_id(5, 256) == "words2-5gram-max500000-affine32-seed1-256"


def test_scheme_id_names_what_signatures_depend_on() -> None:
    assert len({scheme_id(5, 256), scheme_id(6, 256), scheme_id(5, 128)}) == 3


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8, 0.95])
def test_estimates_stay_within_sampling_error_and_have_no_bias(similarity: float) -> None:
    """40 pairs of sets of 2,000 one-word shingles; the mean's standard error is sqrt(J (1 - J) / (40 x 256))."""
    size, errors = 2000, []
    for seed in range(40):
        common = round(2 * size * similarity / (1 + similarity))
        pool = [f"{seed}x{i}" for i in range(2 * size - common)]
        left, right = pool[:size], pool[size - common :]
        values, *_ = signatures(array(" ".join(left), " ".join(right)), 1, 256)
        exact = len(set(left) & set(right)) / len(set(left) | set(right))
        errors.append(float(estimate_jaccard(values[0], values[1])) - exact)
    deviation = np.sqrt(similarity * (1 - similarity) / 256)
    assert abs(np.mean(errors)) < 4 * deviation / np.sqrt(40)
    assert np.std(errors) < 1.5 * deviation


def test_large_sets_are_not_overestimated() -> None:
    """Two disjoint sets of 100,000 shingles: schemes that cut 61 bits to 32 see similar ones here."""
    left, right = ([f"{side}{i}" for i in range(50_000)] for side in "ab")
    values, counts, _ = signatures(array(" ".join(left), " ".join(right)), 1, 256)
    assert counts.tolist() == [50_000, 50_000]
    assert estimate_jaccard(values[0], values[1]) < 0.02


def test_case_and_punctuation_do_not_matter_and_words_do() -> None:
    values, *_ = signatures(array("One, two (three)", "one two: THREE", "one two four"), 5, 128)
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_short_and_empty_texts() -> None:
    values, counts, _ = signatures(array("a b", "a b c d e", "a b c d e f", "", " .\u3002\n"), 5, 128)
    assert counts.tolist() == [1, 1, 2, 0, 0]
    assert (values[3] == EMPTY).all() and (values[4] == EMPTY).all() and (values[0] != EMPTY).any()


def test_scripts_without_spaces_have_a_word_per_character() -> None:
    assert signatures(array("\u4e2d\u6587\u6c49\u5b57\u5f88\u597d\u3002\u5bf9"), 5, 128)[1][0] == 7 - 5 + 1


def test_text_past_the_limit_is_not_shingled() -> None:
    letters = [chr(0x430 + i) for i in range(18)]
    head = "".join(f"{a}{b}{c}{d} " for a, b, c, d in product(letters, repeat=4))[:MAX_SHINGLED_CHARS]
    assert len(head) == MAX_SHINGLED_CHARS
    values, counts, _ = signatures(array(head, head + "more words at the end", head[:-5]), 5, 128)
    assert counts[0] == counts[1] == counts[2] + 1
    assert abs(counts[0] - (MAX_SHINGLED_CHARS // 5 - 4)) <= 5  # some of 100,000 different ones collide in 32 bit
    assert np.array_equal(values[0], values[1])


def test_slices_and_chunks_give_the_same_signatures() -> None:
    texts = [" ".join(random_words(20, seed)) for seed in range(6)]
    whole, *_ = signatures(array(*texts), 5, 128)
    sliced, *_ = signatures(array(*texts).slice(2, 3), 5, 128)
    chunked, *_ = signatures(pa.chunked_array([texts[:1], texts[1:]]), 5, 128)
    assert np.array_equal(sliced, whole[2:5]) and np.array_equal(chunked, whole)


def test_no_texts() -> None:
    values, counts, sketch = signatures(array(), 5, 128)
    assert values.shape == (0, 128) and counts.shape == (0,) and len(sketch) == 0


def test_only_the_values_that_are_used_are_computed() -> None:
    """Permutations depend on how many are drawn, so a prefix is that of the whole signature."""
    text = array(" ".join(random_words(50, 0)))
    assert np.array_equal(signatures(text, 5, 256, 30).minhash, signatures(text, 5, 256).minhash[:, :30])


@given(text=TEXTS, n=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_shingles_of_characters_are_those_of_the_text(text: str, n: int) -> None:
    """Equal windows of characters have equal hashes and different ones different ones."""
    hashes = shingle_hashes(text, n, "characters").tolist()
    windows = [text[i : i + n] for i in range(max(len(text) - n + 1, min(1, len(text))))]
    assert len(hashes) == len(windows)
    assert len(set(zip(hashes, windows, strict=True))) == len(set(hashes)) == len(set(windows))


def test_repeated_shingles_count_once() -> None:
    once, twice = signatures(array("a b c d e f g h i j k l", "a b c d e f g h i j k l " * 2), 1, 108).shingle_count
    assert once == twice == 12


# odd sketches ---------------------------------------------------------------------------------------------------------
def plain_sketch(values: set[int], words: int) -> np.ndarray:
    bits = [0] * (64 * words)
    for value in values:
        bits[value % (64 * words)] ^= 1
    rows = (bits[64 * w : 64 * w + 64] for w in range(words))
    return np.array([sum(bit << j for j, bit in enumerate(row)) for row in rows], np.uint64)


@given(values=st.sets(st.integers(0, 2**32 - 1), max_size=300), words=st.sampled_from([16, 32]))
@settings(max_examples=30, deadline=None)
def test_sketches_match_plain_python(values: set[int], words: int) -> None:
    out = np.zeros(words, np.uint64)
    oddsketch.write_sketch(np.array(sorted(values), np.uint32), out)
    assert np.array_equal(out, plain_sketch(values, words))


def test_a_sketch_folds_to_half_its_size() -> None:
    """So a set of 1,100 elements, 32 words, and one of 1,000 of them, 16 words, compare: J = 10 / 11."""
    values = np.random.default_rng(0).integers(0, 2**32, 1100).astype(np.uint32)
    large, small = np.zeros(32, np.uint64), np.zeros(16, np.uint64)
    oddsketch.write_sketch(values, large)
    oddsketch.write_sketch(values[:1000], small)
    for estimate in (
        oddsketch.similarity(large, 1100, small, 1000), oddsketch.similarity(small, 1000, large, 1100)
    ):
        assert estimate == pytest.approx(10 / 11, abs=0.01)
    assert [oddsketch.sketch_words(n) for n in (10, 1024, 1025, 2048, 2049, 10**6)] == [16, 16, 32, 32, 64, 1024]


@pytest.mark.parametrize("size", [100, 1000, 5000, 30_000])
@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_sketch_estimates_keep_the_error_that_is_stated(size: int, similarity: float) -> None:
    """The docstring: 0.006 to 0.009 at J = 0.8; without bias."""
    errors = []
    for seed in range(30):
        common = round(2 * size * similarity / (1 + similarity))
        pool = np.random.default_rng(seed).integers(0, 2**32, 2 * size - common).astype(np.uint32)
        sketches = []
        for part in (pool[:size], pool[size - common :]):
            sketches.append(np.zeros(oddsketch.sketch_words(size), np.uint64))
            oddsketch.write_sketch(part, sketches[-1])
        errors.append(oddsketch.similarity(sketches[0], size, sketches[1], size) - common / (2 * size - common))
    limit = {0.5: 0.03, 0.8: 0.011, 0.95: 0.004}[similarity]
    assert np.std(errors) < limit and abs(np.mean(errors)) < 4 * limit / np.sqrt(30)


def test_sketches_of_different_texts_are_not_similar() -> None:
    texts = array(*(" ".join(random_words(count, seed)) for seed, count in enumerate((400, 400, 60_000))))
    _, counts, sketch = signatures(texts, 5, 1)
    assert oddsketch.similarity(sketch[0], counts[0], sketch[1], counts[1]) < 0.1
    assert oddsketch.similarity(sketch[0], counts[0], sketch[2], counts[2]) < 0.02
    assert oddsketch.similarity(sketch[2], counts[2], sketch[2], counts[2]) == 1


# exact hashes ---------------------------------------------------------------------------------------------------------
SPECIAL = "ae \t\x1c\x85\u0301\u2000\u3000\u0958\u1161\uac00\u11a8\U0001f600"
ODD = st.text(st.characters(codec="utf-8") | st.sampled_from(SPECIAL))


@given(texts=st.lists(ODD, max_size=4))
@settings(max_examples=150, deadline=None)
def test_exact_hashes_are_those_of_the_key_in_plain_python(texts: list[str]) -> None:
    assert keys.exact_hashes(array(*texts)).tolist() == normalise.exact_hashes(array(*texts)).tolist()


def test_every_character_has_the_hash_of_plain_python_in_context() -> None:
    """All of the Basic Multilingual Plane, behind letters and marks that could compose with it."""
    texts = array(*(f"{before}{chr(c)} x" for before in ("e", "\u1100", "\u09c7") for c in range(1, 0x10000)
                    if not 0xD800 <= c < 0xE000))
    assert np.array_equal(keys.exact_hashes(texts), normalise.exact_hashes(texts))
