"""The exported tokenizer gives in `transformers` the ids and the text that ours gives.

    python -m pytest -q tests/data/test_tokenizer_export.py
"""

import json
import random
import sysconfig
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.tokenizer.hf import export_hf, to_tokenizers
from pretrainer.data.tokenizer.text import ESCAPE, SPACE_MARK
from pretrainer.data.tokenizer.tokenizer import SentencePieceTokenizer, Tokenizer, train_tokenizer
from pretrainer.schema import BOS, EOS, MASK, PAD, SPECIAL_TOKENS

KINDS = ("bpe", "unigram", "char")
STDLIB = Path(sysconfig.get_paths()["stdlib"])
CODE = [(STDLIB / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "ast", "json/decoder", "textwrap")]
UNSEEN = [(STDLIB / f"{name}.py").read_text(encoding="utf-8") for name in ("shlex", "heapq", "tokenize", "sched")]
RUNS = ["=" * 40 + "\n", "-" * 33 + "\n", " " * 24 + "x\n", "\n" * 5, "#" * 70 + "\n", "-=" * 20 + "\n", "\t\ty\n"] * 5
TOKENIZERS = {
    kind: SentencePieceTokenizer(train_tokenizer([*CODE, *RUNS, "Grüße 世界 🙂\n" * 3], kind, 2000)) for kind in KINDS
}

FRAGMENTS = [SPACE_MARK, ESCAPE, " ", "  ", "=", "==", "===", "-=", "\n", "\n\n", "(", ")", "self", "<0x0A>", "pad>"]

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, transformers.PreTrainedTokenizerBase]:
    found = {}
    for kind, tokenizer in TOKENIZERS.items():
        folder = tmp_path_factory.mktemp(kind) / "made" / "by export"
        export_hf(tokenizer, folder)
        # As in the export of a model: the class that a Llama config suggests would rebuild the tokenizer.
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": tokenizer.vocab_size}))
        found[kind] = transformers.AutoTokenizer.from_pretrained(folder)
    return found


def assert_same(ours: Tokenizer, theirs: transformers.PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    ids, offsets = ours.encode_batch(texts)
    for text, (begin, end) in zip(texts, pairwise(offsets), strict=True):
        row = ids[begin:end].tolist()
        assert theirs.encode(text, add_special_tokens=False) == row, repr(text[:200])
        assert theirs.decode(row) == text == ours.decode(row), repr(text[:200])


@each_kind
def test_real_code_has_the_same_ids(kind: str, exported: dict) -> None:
    assert_same(TOKENIZERS[kind], exported[kind], UNSEEN)


@each_kind
def test_runs_of_every_length_have_the_same_ids(kind: str, exported: dict) -> None:
    runs = [c * n for c in " =-#_\n\t.a0" for n in range(1, 201)]
    framed = [a + c * n + b for c, a, b in product(" =-\n", "(x\n=", ")y \n=") for n in range(1, 42)]
    assert_same(TOKENIZERS[kind], exported[kind], runs + framed)


@each_kind
def test_awkward_texts_have_the_same_ids(kind: str, exported: dict) -> None:
    assert_same(TOKENIZERS[kind], exported[kind], [
        "", " ", SPACE_MARK, f"a{SPACE_MARK} {SPACE_MARK * 3}b", ESCAPE, f"{ESCAPE}0{ESCAPE}1{SPACE_MARK}", "\0",
        "e\u0301\u0301", "\ufeffx", "3.14159 2**64 0x1F", "🙂👩\u200d👩\u200d👧 世界 Привет", "\r\n\r\n", "\ufffd",
        "\x1e", "\u2585", "do not , strip ' s .", *SPECIAL_TOKENS, "a<mask>b <bos>", "<<pad>>", "<0x0", "<0xZZ>", "<pa",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ])


@each_kind
def test_texts_longer_than_a_segment_have_the_same_ids(kind: str, exported: dict) -> None:
    words = UNSEEN[0].split()
    assert_same(TOKENIZERS[kind], exported[kind], [
        " ".join(words * 8), "".join(words * 8), "\n" * 9001, " " * 9001, "ab" * 5000 + "\n\n" + "c" * 4097,
        "世" * 5000, "\u4e8c" * 5000,
    ])


@each_kind
@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(FRAGMENTS)).map("".join))
def test_any_text_has_the_same_ids(kind: str, text: str, exported: dict) -> None:
    assert_same(TOKENIZERS[kind], exported[kind], [text])


@pytest.mark.parametrize("seed", range(6))
def test_bpe_ties_are_broken_alike(seed: int) -> None:
    """Vocabularies that are nothing but runs and repetitions, where one piece has many splits that overlap."""
    rng = random.Random(seed)
    alphabet = ["=-", "=-.", "ab", "= ", "=-\n (", "abc"][seed]
    lengths = [1, 1, 2, 3, 5, 8, 16]
    train, texts = (
        ["".join(rng.choice(alphabet) * rng.choice(lengths) for _ in range(n)) for _ in range(400)] for n in (30, 8)
    )
    ours = SentencePieceTokenizer(train_tokenizer(train, "bpe", 360))
    theirs = to_tokenizers(ours)
    ids, offsets = ours.encode_batch(texts)
    for text, (begin, end) in zip(texts, pairwise(offsets), strict=True):
        assert theirs.encode(text, add_special_tokens=False).ids == ids[begin:end].tolist(), repr(text)


@each_kind
def test_bos_is_added_by_default_and_only_then(kind: str, exported: dict) -> None:
    plain = TOKENIZERS[kind].encode("x = 1").tolist()
    assert exported[kind]("x = 1")["input_ids"] == [BOS, *plain]
    assert exported[kind]("x = 1", add_special_tokens=False)["input_ids"] == plain
    pair = [BOS, *plain, BOS, *TOKENIZERS[kind].encode("y").tolist()]
    assert exported[kind]("x = 1", "y")["input_ids"] == pair
    assert exported[kind].decode([BOS, *plain, EOS], skip_special_tokens=True) == "x = 1"


@each_kind
def test_special_tokens_have_their_roles(kind: str, exported: dict) -> None:
    theirs = exported[kind]
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (PAD, BOS, EOS)
    assert (theirs.mask_token_id, theirs.unk_token) == (MASK, "<unk>")
    assert len(theirs) == TOKENIZERS[kind].vocab_size
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


@each_kind
def test_saving_and_loading_the_export_keeps_the_ids(kind: str, exported: dict, tmp_path: Path) -> None:
    exported[kind].save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_same(TOKENIZERS[kind], again, [*UNSEEN[:1], "<mask>", SPACE_MARK])


@each_kind
def test_the_exported_file_is_a_tokenizer_of_ours_with_the_same_ids(kind: str, tmp_path: Path) -> None:
    export_hf(TOKENIZERS[kind], tmp_path)
    loaded = Tokenizer.from_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id, loaded.mask_id) == (PAD, BOS, EOS, MASK)
    assert loaded.vocab_size == TOKENIZERS[kind].vocab_size
    assert loaded.encode(UNSEEN[0]).tolist() == TOKENIZERS[kind].encode(UNSEEN[0]).tolist()


@each_kind
def test_exporting_twice_writes_the_same_bytes(kind: str, tmp_path: Path) -> None:
    export_hf(TOKENIZERS[kind], tmp_path / "a")
    export_hf(Tokenizer.from_bytes(TOKENIZERS[kind].data), tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_foreign_model_is_exported_with_its_own_ids(prefix: bool, tmp_path: Path) -> None:
    (tmp_path / "sample.txt").write_text("\n".join(CODE), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "sample.txt"), model_prefix=str(tmp_path / "m"), vocab_size=900, model_type="bpe",
        minloglevel=2, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=prefix)
    ours = Tokenizer.from_bytes((tmp_path / "m.model").read_bytes())
    export_hf(ours, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert_same(ours, theirs, [*UNSEEN, "", " ", " x", "  x ", "\n x", SPACE_MARK, "</s>"])
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<s>", "</s>", "</s>")


def test_a_tokenizer_json_is_exported_as_it_was(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(CODE, tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    ours = Tokenizer.from_bytes(made.to_str().encode())
    export_hf(ours, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == ours.data
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_same(ours, theirs, [*UNSEEN, "x<|endoftext|>y", SPACE_MARK])
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 0)
