"""Normalisation: what changes in a stored text, and which texts exact dedup takes for one."""

from __future__ import annotations

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.data.filters.normalise import (
    as_large_string,
    dedup_key,
    exact_hash,
    exact_hashes,
    normalise_text,
    normalise_texts,
    utf8_buffers,
)

TEXTS = st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("\r\n\0 "), max_size=30), max_size=8)


def test_line_ends_and_nulls_change_and_nothing_else() -> None:
    assert normalise_text("a\r\0\nb") == "a\n\nb"
    assert normalise_text("a\r\nb\rc\n\td  \0e\u0301 \u2028\n\n") == "a\nb\nc\n\td  e\u0301 \u2028\n\n"


@given(texts=TEXTS)
def test_array_and_text_agree_and_are_idempotent(texts: list[str]) -> None:
    array = pa.array(texts, pa.large_string())
    once = normalise_texts(array)
    assert once.to_pylist() == [normalise_text(text) for text in texts]
    assert normalise_texts(once).equals(once)
    assert not any("\r" in text or "\0" in text for text in once.to_pylist())


def test_clean_array_is_not_copied() -> None:
    array = pa.array(["a\n", "b"], pa.large_string())
    assert normalise_texts(array) is array


def test_dedup_key_forgets_layout_and_composition_only() -> None:
    assert dedup_key(" caf\u0065\u0301\n\n  au\u00a0lait ") == "caf\u00e9 au lait"
    assert len({dedup_key(text) for text in ("Name = 1", "name = 1", "name = 2", "name 1")}) == 4


def test_exact_hash_is_canonical_xxh3_of_the_key() -> None:
    assert exact_hash("a\nb") == xxhash.xxh3_128_digest(b"a b") == exact_hash(" a  b")
    assert xxhash.xxh3_128_hexdigest(b"") == exact_hash("").hex() == "99aa06d3014798d86001c324468d497f"


@given(texts=TEXTS)
def test_hash_columns_are_high_and_low_half(texts: list[str]) -> None:
    halves = exact_hashes(pa.array(texts, pa.large_string())).tolist()
    assert [high << 64 | low for high, low in halves] == [int.from_bytes(exact_hash(text)) for text in texts]


@given(texts=TEXTS, start=st.integers(0, 8))
def test_buffers_of_a_slice(texts: list[str], start: int) -> None:
    data, offsets = utf8_buffers(pa.array(texts, pa.large_string()).slice(start))
    found = [bytes(data[a:b]).decode() for a, b in zip(offsets, offsets[1:], strict=False)]
    assert found == texts[start:]


def test_other_string_arrays_are_accepted_and_nulls_refused() -> None:
    assert as_large_string(pa.chunked_array([["a"], ["b"]])).to_pylist() == ["a", "b"]
    assert as_large_string(pa.chunked_array([], pa.string())).type == pa.large_string()
    with pytest.raises(ValueError, match="1 of 2 texts are null"):
        as_large_string(pa.array(["a", None]))
