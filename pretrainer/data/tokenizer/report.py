"""Which vocabulary size? Trains a tokenizer per size on a sample and measures each on documents it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrainer.data.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pretrainer.data.tokenizer.train import NUM_BYTE_PIECES, TokenizerKind
from pretrainer.errors import UserError
from pretrainer.schema import FIRST_TEXT_ID

ALL = "all"
MEASURE_EVERY = 10


@dataclass(frozen=True)
class Row:
    """One vocabulary size on one source, or on all of them together (source = "all")."""

    vocab_size: int
    source: str
    language: str
    bytes_per_token: float
    """UTF-8 bytes of text per token."""
    tokens_per_word: float
    """Fertility (Rust et al. 2021, arXiv 2012.15613); a word is what whitespace separates, so code reads high."""
    unused_pieces: int
    """Text pieces, special and byte pieces aside, that no document of the source's sample needs."""
    embedding_share: float
    """Embedding parameters / all parameters of the model; an untied output layer counts as embedding."""


def parse_sizes(text: str) -> list[int]:
    """Read "8k,16k,32768": k is 1024. Raises UserError."""
    parts = text.lower().replace(" ", "").split(",")
    try:
        return [int(part[:-1]) * 1024 if part.endswith("k") else int(part) for part in parts]
    except ValueError as error:
        raise UserError(f"--compare {text!r} is no list of vocabulary sizes: write for example 8k,16k,32k") from error


def split_sample(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """(train, measure): every tenth document is measured and not trained on; a single one has to do both."""
    measure = list(documents[::MEASURE_EVERY])
    return [text for i, text in enumerate(documents) if i % MEASURE_EVERY] or measure, measure


def compare(
    samples: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
    kind: TokenizerKind,
    count_parameters: Callable[[int], tuple[int, int]],
    languages: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows by size, then by source in the order of `samples`, then for all sources together.

    `count_parameters(vocab_size)` gives (embedding parameters, all parameters); `languages` names each source's
    language. Raises UserError if a sample is empty or supports fewer pieces than a size asks for.
    """
    for source, documents in samples.items():
        if not any(documents):
            raise UserError(f"the sample of source {source!r} is empty: check its uris and the filters of its preset")
    train = [text for documents in samples.values() for text in split_sample(documents)[0]]
    rows: list[Row] = []
    for size in sizes:
        tokenizer = Tokenizer.from_bytes(train_tokenizer(train, kind, size))
        embedding, total = count_parameters(size)
        rows += _rows(tokenizer, samples, languages or {}, embedding / total)
    return rows


def _rows(
    tokenizer: Tokenizer, samples: Mapping[str, Sequence[str]], languages: Mapping[str, str], share: float
) -> list[Row]:
    size = tokenizer.vocab_size
    counts = [(source, languages.get(source, ""), _count(tokenizer, texts)) for source, texts in samples.items()]
    counts.append((ALL, "", sum((c for _, _, c in counts), start=_Counts.zero(size))))
    return [Row(size, name, lang, c.bytes / c.tokens, c.tokens / c.words, c.unused, share) for name, lang, c in counts]


@dataclass(frozen=True)
class _Counts:
    """Sizes of the measured documents, and how often each piece occurs in the whole sample."""

    bytes: int
    words: int
    tokens: int
    pieces: np.ndarray  # [vocab_size]

    @classmethod
    def zero(cls, vocab_size: int) -> _Counts:
        return cls(0, 0, 0, np.zeros(vocab_size, dtype=np.int64))

    def __add__(self, other: _Counts) -> _Counts:
        words, tokens = self.words + other.words, self.tokens + other.tokens
        return _Counts(self.bytes + other.bytes, words, tokens, self.pieces + other.pieces)

    @property
    def unused(self) -> int:
        return int((self.pieces[FIRST_TEXT_ID + NUM_BYTE_PIECES :] == 0).sum())


def _count(tokenizer: Tokenizer, documents: Sequence[str]) -> _Counts:
    measure = [text for text in split_sample(documents)[1] if text] or [text for text in documents if text][:1]
    ids, _ = tokenizer.encode_batch(documents)
    tokens = len(tokenizer.encode_batch(measure)[0])
    words = max(1, sum(len(text.split()) for text in measure))
    pieces = np.bincount(ids, minlength=tokenizer.vocab_size)
    return _Counts(sum(len(text.encode("utf-8")) for text in measure), words, tokens, pieces)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "vocabulary": lambda row: f"{row.vocab_size:,}",
    "source": lambda row: row.source,
    "language": lambda row: row.language,
    "bytes/token": lambda row: f"{row.bytes_per_token:.3f}",
    "tokens/word": lambda row: f"{row.tokens_per_word:.3f}",
    "unused pieces": lambda row: f"{row.unused_pieces:,}",
    "embedding share": lambda row: f"{row.embedding_share:.1%}",
}
TEXT_COLUMNS = ("source", "language")


def format_rows(rows: Iterable[Row]) -> str:
    """The rows as an aligned table: text to the left, numbers to the right, an empty line between sizes."""
    rows = list(rows)
    table = [list(COLUMNS), *([show(row) for show in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    cells = zip(COLUMNS, widths, strict=True)
    align = [f"{{:<{width}}}" if name in TEXT_COLUMNS else f"{{:>{width}}}" for name, width in cells]
    lines = ["  ".join(align).format(*line).rstrip() for line in table]
    ends = [line + "\n" * (row.source == ALL) for row, line in zip(rows, lines[1:], strict=True)]
    return "\n".join([lines[0], *ends]).rstrip("\n")
