"""Words in the pieces of a tokenizer, for whole-word masking.

    python -m pytest -q tests/data/test_tokenizer_words.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from pretrainer.data.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pretrainer.data.tokenizer.words import mask_vocabulary
from pretrainer.errors import ConfigError
from pretrainer.schema import FIRST_TEXT_ID, MASK

TEXT = "def tokenize(unhappiness):\n    return unhappiness  # 世界 naïveté\n\n"


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text cut where the tables say that words begin."""
    table, ids = mask_vocabulary(tokenizer), tokenizer.encode(text)
    begins = table.begins[ids]
    begins[1:] |= table.ends[ids[:-1]]
    begins[0] = True
    cuts = [*np.flatnonzero(begins), len(ids)]
    return [tokenizer.decode(ids[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_words_of_a_trained_tokenizer_are_cut_at_spaces_and_line_ends(kind: str) -> None:
    sample = [Path(textwrap.__file__).read_text(encoding="utf-8"), TEXT * 30]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(sample, kind, 600))
    table = mask_vocabulary(tokenizer)
    assert table.mask_id == MASK and np.flatnonzero(~table.ordinary).tolist() == list(range(FIRST_TEXT_ID))
    assert len(table.begins) == len(table.ends) == tokenizer.vocab_size
    got = words(tokenizer, "x unhappiness zq\nreturn 世語é")
    assert "".join(got) == "x unhappiness zq\nreturn 世語é"
    assert [word.strip() for word in got if word.strip()] == ["x", "unhappiness", "zq", "return", "世語é"]
    assert len(tokenizer.encode("世語é")) > 4  # bytes of a character that was not seen, inside one word


def huggingface(vocab: list[str], special: list[str]) -> Tokenizer:
    model = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.add_special_tokens(special)
    return Tokenizer.from_bytes(model.to_str().encode())


def test_word_pieces_go_on_where_they_say_so() -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##happy", "##ness", "dog"]
    table = mask_vocabulary(huggingface(vocab, vocab[:5]))
    assert table.mask_id == 4 and table.ordinary.tolist() == [False] * 5 + [True] * 4
    assert table.begins[5:].tolist() == [True, False, False, True] and not table.ends.any()


def test_byte_level_pieces_begin_words_at_their_letter_for_a_space() -> None:
    vocab = {"<|endoftext|>": 0, "<mask>": 1, "a": 2, "Ġ": 3, "Ġa": 4, "Ċ": 5, "ĠĠ": 6}
    raw = tokenizers.Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("Ġ", "Ġ")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens(["<|endoftext|>", "<mask>"])
    table = mask_vocabulary(Tokenizer.from_bytes(raw.to_str().encode()))
    assert table.ordinary.tolist() == [False, False, True, True, True, True, True]
    assert table.begins[2:].tolist() == [False, True, True, True, True]
    assert table.ends[2:].tolist() == [False, False, False, True, True]


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    vocab = ["[UNK]", "[SEP]", "dog"]
    tokenizer = huggingface(vocab, vocab[:2])
    assert json.loads(tokenizer.data)["model"]["type"] == "WordPiece"
    with pytest.raises(ConfigError, match=r"train\.objective='mlm' needs a mask token"):
        mask_vocabulary(tokenizer)
