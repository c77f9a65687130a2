"""Texts that become tokens of their own: old ids stay, nothing is lost, and the export has them.

    python -m pytest -q tests/data/test_tokenizer_extend.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import decoders as hf_decoders
from tokenizers import models, pre_tokenizers

from pretrainer.data.tokenizer.extend import extend, pieces_before
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.data.tokenizer.tokenizer import HuggingFaceTokenizer, Tokenizer
from pretrainer.errors import ConfigError
from tests.data.test_tokenizer_export import TOKENIZERS, UNSEEN, assert_same

ADDED = ["<|call|>", "self.assertEqual", "世界線"]
TEXT = "x = <|call|>self.assertEqual(1, 2)\n  self.assertEqualish 世界線世界線 <|call"


def byte_level() -> Tokenizer:
    """A tokenizer.json as GPT-2 has it, of single bytes, with a special end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(alphabet)}
    plain = tokenizers.Tokenizer(models.BPE(vocab={**vocab, "ab": len(vocab)}, merges=[("a", "b")]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), hf_decoders.ByteLevel()
    plain.add_special_tokens(["<|endoftext|>"])
    return HuggingFaceTokenizer(plain.to_str().encode())


EVERY = {**TOKENIZERS, "byte-level": byte_level()}
each = pytest.mark.parametrize("before", EVERY.values(), ids=EVERY.keys())


@each
def test_new_ids_stand_behind_the_old_ones_and_nothing_is_lost(before: Tokenizer) -> None:
    after = extend(before, ADDED)
    assert after.vocab_size == before.vocab_size + 3
    for number, text in enumerate(ADDED):
        assert after.encode(text).tolist() == [before.vocab_size + number]
    ids = after.encode(TEXT).tolist()
    assert after.decode(ids) == TEXT
    assert [i - before.vocab_size for i in ids if i >= before.vocab_size] == [0, 1, 1, 2, 2]
    assert (after.bos_id, after.eos_id, after.pad_id) == (before.bos_id, before.eos_id, before.pad_id)


@each
def test_texts_without_a_new_token_keep_their_ids(before: Tokenizer) -> None:
    after = extend(before, ADDED)
    for text in (*UNSEEN, "", " ", "\n\n", "<s> </s> <|endoftext|>"):
        assert after.encode(text).tolist() == before.encode(text).tolist()


@each
def test_pieces_are_what_the_text_was_before(before: Tokenizer) -> None:
    for text, ids in zip(ADDED, pieces_before(before, ADDED), strict=True):
        assert before.decode(ids) == text and max(ids) < before.vocab_size


def test_transformers_reads_the_export_with_the_same_ids(tmp_path: Path) -> None:
    after = extend(TOKENIZERS["bpe"], ADDED)
    export_hf(after, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": after.vocab_size}))
    assert_same(after, transformers.AutoTokenizer.from_pretrained(tmp_path), [TEXT, *UNSEEN[:1], *ADDED])


def test_the_same_tokens_give_the_same_bytes_and_none_give_the_same_tokenizer() -> None:
    before = TOKENIZERS["bpe"]
    assert extend(before, ADDED).digest == extend(before, ADDED).digest != extend(before, ADDED[:2]).digest
    assert extend(before, []) is before
    twice = extend(extend(before, ADDED[:1]), ADDED[1:])
    assert twice.encode(TEXT).tolist() == extend(before, ADDED).encode(TEXT).tolist()


@pytest.mark.parametrize(("text", "part"), [("self", "has it already"), (" x y", "spaces"), ("<pad>", "has it")])
def test_what_cannot_be_added_is_named(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as raised:
        extend(TOKENIZERS["bpe"], [text])
    assert "init.add_tokens" in str(raised.value) and text in str(raised.value)


def test_a_name_that_would_be_the_end_of_text_is_refused() -> None:
    """A tokenizer whose begin of text is its end would get another one by this name."""
    with pytest.raises(ConfigError, match="special token"):
        extend(byte_level(), ["<s>"])
