"""The comparison of vocabulary sizes counts what it says.

    python -m pytest -q tests/data/test_tokenizer_report.py
"""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from pretrainer.data.tokenizer.report import ALL, Row, compare, format_rows, parse_sizes, split_sample
from pretrainer.data.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pretrainer.errors import UserError

STDLIB = Path(sysconfig.get_paths()["stdlib"])
CODE = (STDLIB / "argparse.py").read_text(encoding="utf-8").split("\n\n")
PROSE = [f"The {n} grey geese fly over the {n} old harbours, déjà vu." for n in ("one", "two", "six")] * 4
SAMPLES = {"code": CODE, "prose": PROSE}
SIZES = [512, 800]


def parameters(vocab_size: int) -> tuple[int, int]:
    return vocab_size * 8, vocab_size * 8 + 4096


def test_rows_equal_a_straightforward_count() -> None:
    rows = {(row.vocab_size, row.source): row for row in compare(SAMPLES, SIZES, "bpe", parameters, {"code": "python"})}
    assert list(rows) == [(size, source) for size in SIZES for source in ("code", "prose", ALL)]
    train = [text for texts in SAMPLES.values() for i, text in enumerate(texts) if i % 10 != 0]
    for size in SIZES:
        tokenizer = Tokenizer.from_bytes(train_tokenizer(train, "bpe", size))
        seen: dict[str, set[int]] = {ALL: set()}
        for source, texts in SAMPLES.items():
            seen[source] = {int(i) for text in texts for i in tokenizer.encode(text)}
            seen[ALL] |= seen[source]
        measured = {source: texts[::10] for source, texts in SAMPLES.items()}
        measured[ALL] = [text for texts in measured.values() for text in texts]
        for source, texts in measured.items():
            row, tokens = rows[size, source], sum(len(tokenizer.encode(text)) for text in texts)
            assert row.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in texts) / tokens)
            assert row.tokens_per_word == pytest.approx(tokens / sum(len(text.split()) for text in texts))
            assert row.unused_pieces == sum(i not in seen[source] for i in range(69 + 256, size))
            assert row.embedding_share == pytest.approx(size * 8 / (size * 8 + 4096))
    assert (rows[512, "code"].language, rows[512, "prose"].language) == ("python", "")


def test_a_larger_vocabulary_needs_fewer_tokens() -> None:
    small, large = (row for row in compare(SAMPLES, SIZES, "unigram", parameters) if row.source == "code")
    assert large.bytes_per_token > small.bytes_per_token
    assert large.tokens_per_word < small.tokens_per_word


def test_measured_documents_are_not_trained_on_unless_there_is_only_one() -> None:
    documents = [str(i) for i in range(25)]
    train, measure = split_sample(documents)
    assert measure == ["0", "10", "20"]
    assert sorted(train + measure, key=int) == documents
    assert split_sample(["only"]) == (["only"], ["only"])


@pytest.mark.parametrize(("text", "sizes"), [("8k,16k", [8192, 16384]), ("512", [512]), ("1K, 700", [1024, 700])])
def test_sizes_are_read(text: str, sizes: list[int]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "8kb", "a", "8k,,16k", "1.5k"])
def test_a_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--compare"):
        parse_sizes(text)


def test_an_empty_source_and_a_size_beyond_the_sample_are_refused() -> None:
    with pytest.raises(UserError, match="source 'web' is empty"):
        compare({**SAMPLES, "web": [""]}, SIZES, "bpe", parameters)
    with pytest.raises(UserError, match="vocab_size=50000 is more than the sample supports"):
        compare(SAMPLES, [50_000], "bpe", parameters)


def test_a_sample_with_an_empty_measured_document_is_measured_on_another() -> None:
    rows = compare({"code": ["", *CODE[:9], ""]}, [512], "bpe", parameters)
    assert all(np.isfinite([row.bytes_per_token, row.tokens_per_word]).all() for row in rows)


def test_the_table_is_aligned() -> None:
    small = [Row(8192, "stdlib", "code", 3.25, 1.5, 1234, 0.5), Row(8192, ALL, "", 12.0, 10.25, 7, 0.5)]
    assert format_rows([*small, Row(16384, ALL, "", 1, 1, 0, 0)]).split("\n") == [
        "vocabulary  source  language  bytes/token  tokens/word  unused pieces  embedding share",
        "     8,192  stdlib  code            3.250        1.500          1,234            50.0%",
        "     8,192  all                    12.000       10.250              7            50.0%",
        "",
        "    16,384  all                     1.000        1.000              0             0.0%",
    ]
