"""The tokenizer gives back every text, keeps its special ids out of text, and trains to the same bytes twice.

    python -m pytest -q tests/data/test_tokenizer.py
"""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.tokenizer.text import ESCAPE, SEGMENT_CHARS, SPACE_MARK, escape, segments, unescape
from pretrainer.data.tokenizer.tokenizer import SentencePieceTokenizer, Tokenizer, train_tokenizer
from pretrainer.errors import UserError
from pretrainer.schema import BOS, EOS, FIRST_TEXT_ID, MASK, PAD, SPECIAL_TOKENS

KINDS = ("bpe", "unigram")  # of which vocab_size is the exact size
VOCAB_SIZE = 2000
STDLIB = Path(sysconfig.get_paths()["stdlib"])
CODE = [(STDLIB / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "ast", "json/decoder", "textwrap")]
OTHER = ["Grüße, 世界! Привет 🙂 e\u0301\n", "\tif\tx:\n\t\treturn 12345\n\n\n" * 20, f"{SPACE_MARK}{ESCAPE}1 <mask>\n"]
SAMPLE = CODE + OTHER
TOKENIZERS = {kind: Tokenizer.from_bytes(train_tokenizer(SAMPLE, kind, VOCAB_SIZE)) for kind in (*KINDS, "char")}

each_kind = pytest.mark.parametrize("kind", KINDS)
char_too = pytest.mark.parametrize("kind", [*KINDS, "char"])


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text))


def pieces(kind: str) -> list[str]:
    tokenizer = TOKENIZERS[kind]
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return [piece.piece for piece in tokenizer.model.pieces]


# Any scalar value, mixed with what tokenizers get wrong: their own marks, control characters, whitespace, names.
TEXT = st.lists(st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([
        SPACE_MARK, ESCAPE, ESCAPE + "0", ESCAPE + "1", "\0", "\x1e", "\u2585", "\ufffd", "\u0301", "\ufeff", " ", "  ",
        "\t", "\n", "\r\n", "\u00a0", "\u3000", "<mask>", "<bos>", "<0x0A>", "0", "1", "= =", "def f():",
    ]),
)).map("".join)


@char_too
@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_decode_gives_back_every_text(kind: str, text: str) -> None:
    assert round_trip(TOKENIZERS[kind], text) == text


@char_too
def test_decode_gives_back_every_scalar_value(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    scalars = [chr(c) for c in range(0x11_0000) if not 0xD800 <= c < 0xE000]
    blocks = ["".join(scalars[i : i + 4096]) for i in range(0, len(scalars), 4096)]
    ids, offsets = tokenizer.encode_batch(blocks)
    assert [tokenizer.decode(ids[a:b]) for a, b in pairwise(offsets)] == blocks


@char_too
def test_special_characters_alone_survive(kind: str) -> None:
    for text in ["", " ", "\n", SPACE_MARK, ESCAPE, "\0", "\u0301", "\x1e", " " * 5000, "\n" * 9000, SPACE_MARK * 9000]:
        assert round_trip(TOKENIZERS[kind], text) == text


@given(st.text(alphabet=[ESCAPE, SPACE_MARK, "0", "1", " ", "a"]))
def test_escape_is_reversible_and_leaves_no_space_mark(text: str) -> None:
    assert unescape(escape(text)) == text
    assert SPACE_MARK not in escape(text)


@given(st.lists(st.sampled_from(["\n", "\n\n", "a", "ab" * 900, "\n" * 5000])).map("".join))
def test_segments_are_the_text_cut_behind_line_ends(text: str) -> None:
    parts = segments(text)
    assert "".join(parts) == text
    for part, rest in pairwise(parts):
        assert len(part) <= SEGMENT_CHARS
        is_line_end = part.endswith("\n") and not rest.startswith("\n")
        assert is_line_end or len(part) == SEGMENT_CHARS
    assert len(text) <= SEGMENT_CHARS or len(parts[-1]) <= SEGMENT_CHARS


@char_too
def test_cutting_into_segments_changes_no_id(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    text = "".join(SAMPLE)
    assert len(segments(escape(text))) > 10
    lines = re.findall(r"[^\n]*\n+", text)
    assert "".join(lines) == text
    np.testing.assert_array_equal(tokenizer.encode(text), tokenizer.encode_batch(lines)[0])


@char_too
def test_ids_of_special_and_byte_pieces_are_fixed(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tuple(pieces(kind)[:FIRST_TEXT_ID]) == SPECIAL_TOKENS
    assert pieces(kind)[FIRST_TEXT_ID : FIRST_TEXT_ID + 256] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (PAD, BOS, EOS, MASK)
    assert tokenizer.vocab_size == len(pieces(kind))
    assert tokenizer.vocab_size == VOCAB_SIZE or kind == "char"


def test_char_has_a_piece_for_each_character_and_the_rarest_are_bytes() -> None:
    text = "".join(SAMPLE).replace(ESCAPE, "").replace(SPACE_MARK, "")
    tokenizer = Tokenizer.from_bytes(train_tokenizer([text], "char", 2000))
    found = {piece.piece for piece in tokenizer.model.pieces[FIRST_TEXT_ID + 256 :]}  # type: ignore[attr-defined]
    alphabet = {SPACE_MARK if c == " " else c for c in text}
    assert found <= alphabet and {"\n", "\t", SPACE_MARK, "e", "7"} <= found
    common = "".join(c for c in CODE[0] if c.isascii())
    assert len(tokenizer.encode(common)) == len(common) and tokenizer.decode(tokenizer.encode(common)) == common
    rare = sorted(c for c in alphabet - found)
    assert all(len(tokenizer.encode(c)) == len(c.encode()) for c in rare)
    fewer = Tokenizer.from_bytes(train_tokenizer([text], "char", 512 - 128))
    assert fewer.vocab_size == 384 and fewer.decode(fewer.encode(text)) == text


@char_too
def test_special_names_in_text_give_no_special_id(kind: str) -> None:
    names = [*SPECIAL_TOKENS, "<0x0A>", "".join(SPECIAL_TOKENS), *(f"a{name} {name}\n" for name in SPECIAL_TOKENS)]
    loud = Tokenizer.from_bytes(train_tokenizer([*CODE, *(name * 50 + "\n" for name in SPECIAL_TOKENS)], kind, 800))
    for tokenizer in (TOKENIZERS[kind], loud):
        ids, _ = tokenizer.encode_batch(names)
        assert ids.min() >= FIRST_TEXT_ID
        assert all(round_trip(tokenizer, name) == name for name in names)


@char_too
def test_special_ids_decode_to_nothing(kind: str) -> None:
    ids = TOKENIZERS[kind].encode("x = 1\n").tolist()
    assert TOKENIZERS[kind].decode([BOS, *ids, MASK, EOS, PAD]) == "x = 1\n"


@each_kind
def test_pieces_keep_to_their_rules(kind: str) -> None:
    text_pieces = pieces(kind)[FIRST_TEXT_ID + 256 :]
    assert any(len(p) > 1 and p.endswith("\n") for p in text_pieces), "line ends must survive training"
    assert any(p.strip("\n") == "" and len(p) > 1 for p in text_pieces)
    assert any(set(p) == {SPACE_MARK} and len(p) >= 8 for p in text_pieces), "indentation is one piece"
    assert "\t" in "".join(text_pieces)
    for piece in text_pieces:
        assert "\n" not in piece.rstrip("\n"), "nothing follows a line end inside a piece"
        assert len(piece) == 1 or not any(c.isdigit() for c in piece)
        assert not (len(piece) > 1 and piece[0] == "<" and piece[1].isalnum())


def test_batches_are_flat_ids_with_offsets() -> None:
    texts = ["", "x = 1\n", "", CODE[0], "a b"]
    ids, offsets = TOKENIZERS["bpe"].encode_batch(texts)
    assert (ids.dtype, offsets.dtype, offsets.tolist()[0], int(offsets[-1])) == (np.uint32, np.int64, 0, len(ids))
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(ids[offsets[i] : offsets[i + 1]], TOKENIZERS["bpe"].encode(text))
    ids, offsets = TOKENIZERS["bpe"].encode_batch([])
    assert (ids.dtype, ids.tolist(), offsets.tolist()) == (np.uint32, [], [0])


@char_too
def test_training_again_gives_the_same_bytes(kind: str) -> None:
    assert train_tokenizer(iter(SAMPLE), kind, VOCAB_SIZE, seed=1) == TOKENIZERS[kind].data


@each_kind
def test_training_in_another_process_gives_the_same_bytes(kind: str) -> None:
    program = (
        "import sys, json, hashlib; from pretrainer.data.tokenizer.tokenizer import train_tokenizer\n"
        f"print(hashlib.sha256(train_tokenizer(json.load(sys.stdin), {kind!r}, {VOCAB_SIZE})).hexdigest())"
    )
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
        done = subprocess.run([sys.executable, "-c", program], input=json.dumps(SAMPLE), env=env, capture_output=True,
                              text=True, check=True)
        assert done.stdout.strip() == TOKENIZERS[kind].digest


@char_too
def test_another_sample_gives_another_digest(kind: str) -> None:
    other = Tokenizer.from_bytes(train_tokenizer(CODE[:2], kind, 1000))
    assert other.digest != TOKENIZERS[kind].digest
    assert other.digest == hashlib.sha256(other.data).hexdigest()


@char_too
def test_pickle_gives_an_equal_tokenizer(kind: str) -> None:
    copy = pickle.loads(pickle.dumps(TOKENIZERS[kind]))
    assert copy.digest == TOKENIZERS[kind].digest
    assert copy.encode(CODE[1]).tolist() == TOKENIZERS[kind].encode(CODE[1]).tolist()


@each_kind
def test_a_vocabulary_that_is_too_large_names_the_largest(kind: str) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=90000 .*use (\d+) or less") as caught:
        train_tokenizer(CODE[3:], kind, 90_000)
    largest = int(str(caught.value).split("use ")[1].split()[0])
    assert Tokenizer.from_bytes(train_tokenizer(CODE[3:], kind, largest)).vocab_size == largest
    with pytest.raises(UserError, match=f"use {largest} or less"):
        train_tokenizer(CODE[3:], kind, largest + 1)


@each_kind
def test_a_vocabulary_below_the_alphabet_names_the_smallest(kind: str) -> None:
    text = ["".join(map(chr, range(0x4E00, 0x4E00 + 400)))]
    with pytest.raises(UserError, match=r"vocab_size=512 is smaller .*use at least 7\d\d"):
        train_tokenizer(text, kind, 512)


@char_too
@pytest.mark.parametrize("texts", [[], ["", ""], ["\0"]])
def test_a_sample_without_text_is_refused(kind: str, texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(texts, kind, 512)


@char_too
def test_no_text_is_dropped_from_training(kind: str) -> None:
    """sentencepiece silently drops long sentences and those with U+0000 or U+2585."""
    rare = "\u0416\u0416\u0416 " * 9000  # one line of 36,000 characters, and the only place of U+0416
    plain = train_tokenizer([*CODE[3:], rare], kind, 600)
    assert train_tokenizer([*CODE[3:], "\0\u2585" + rare + "\x1e"], kind, 600) == plain
    assert "\u0416" in [piece.piece for piece in SentencePieceTokenizer(plain).model.pieces]


# Tokenizers of others ------------------------------------------------------------------------------------------------


def foreign_model(tmp_path: Path, **options: object) -> bytes:
    (tmp_path / "sample.txt").write_text("\n".join(CODE), encoding="utf-8")
    kept = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "sample.txt"), model_prefix=str(tmp_path / "m"), vocab_size=900,
        num_threads=1, minloglevel=2, **(kept | options))
    return (tmp_path / "m.model").read_bytes()


def test_a_lossless_foreign_model_is_read_with_its_own_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_bytes(foreign_model(tmp_path))
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.data)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (1, 2, 2, None)
    assert tokenizer.encode(CODE[0]).tolist() == processor.encode(CODE[0])
    for text in [*SAMPLE, "", " x", "  x ", SPACE_MARK, "</s>"]:
        assert round_trip(tokenizer, text) == text


@pytest.mark.parametrize(("options", "fault"), [
    ({"byte_fallback": False}, "byte_fallback=false"),
    ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name=nmt_nfkc"),
    ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces=true"),
    ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix=true"),
    ({"user_defined_symbols": ["<mask>"]}, "user-defined"),
    ({"model_type": "unigram"}, "no BPE model"),
    ({"eos_id": -1}, "no eos token"),
])
def test_a_foreign_model_that_loses_text_is_refused(tmp_path: Path, options: dict[str, object], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Tokenizer.from_bytes(foreign_model(tmp_path, **options))


def hugging_face_json(special: list[str]) -> bytes:
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(CODE, trainer)
    return made.to_str().encode()


def test_a_tokenizer_json_finds_its_special_ids_and_keeps_them_out_of_text() -> None:
    tokenizer = Tokenizer.from_bytes(hugging_face_json(["<|startoftext|>", "<|endoftext|>", "[MASK]"]))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (0, 1, 1, 2)
    assert (tokenizer.is_json, tokenizer.vocab_size) == (True, 600)
    text = "x<|endoftext|>[MASK] y" + CODE[0]
    assert min(tokenizer.encode(text)) > 2
    assert round_trip(tokenizer, text) == text
    assert tokenizer.decode([0, *tokenizer.encode("a b"), 1]) == "a b"
    assert pickle.loads(pickle.dumps(tokenizer)).digest == hashlib.sha256(tokenizer.data).hexdigest()


def test_a_tokenizer_json_without_eos_is_refused() -> None:
    with pytest.raises(UserError, match="no end-of-text token: add one of <eos>, </s>"):
        Tokenizer.from_bytes(hugging_face_json(["<s>"]))


def test_a_tokenizer_json_whose_eos_can_stand_in_text_is_refused() -> None:
    made = json.loads(hugging_face_json(["</s>"]))
    made["added_tokens"][0]["special"] = False
    with pytest.raises(UserError, match="the text '</s>' in a document would give a special token id"):
        Tokenizer.from_bytes(json.dumps(made).encode())


@pytest.mark.parametrize("data", [b"", b"\xff\xfe no model", b"{}", b'{"model": 1}', b"{\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.uri"):
        Tokenizer.from_bytes(data)
