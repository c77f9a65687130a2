"""Where words begin and end in a tokenizer's pieces, and which ids are text: what masked language modelling needs."""

from __future__ import annotations

import numpy as np

from pretrainer.config import Config
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.tokenizer.text import SPACE_MARK
from pretrainer.data.tokenizer.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from pretrainer.errors import ConfigError
from pretrainer.schema import MaskVocabulary

CONTINUES = "##"  # WordPiece marks the pieces inside a word instead of those that begin one
# sentencepiece's and byte-level BPE's letters for whitespace
WHITESPACE = str.maketrans({SPACE_MARK: " ", "Ġ": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})


def mask_vocabulary(tokenizer: Tokenizer) -> MaskVocabulary:
    """The tables of a tokenizer. Raises ConfigError when it has no mask token.

    A word begins at a piece that begins with a space mark or with whitespace, and behind a piece that ends with
    whitespace (a line end, an indentation); pieces of bytes go on.
    """
    if tokenizer.mask_id is None:
        raise ConfigError(
            "train.objective='mlm' needs a mask token and this tokenizer has none: add <mask> or [MASK] to it, or "
            "train one (tokenizer.uri=null)"
        )
    pieces, ordinary = _pieces(tokenizer)
    if any(piece.startswith(CONTINUES) for piece in pieces):
        begins = [not piece.startswith(CONTINUES) for piece in pieces]
        ends = [False] * len(pieces)
    else:
        texts = [piece.translate(WHITESPACE) for piece in pieces]
        begins = [text[:1].isspace() for text in texts]
        # A lone space mark belongs to the rare word that follows in other pieces.
        ends = [text[-1:].isspace() and text != " " for text in texts]
    return MaskVocabulary(tokenizer.mask_id, np.array(ordinary), np.array(begins), np.array(ends))


def mask_vocabulary_of(config: Config, data_uri: str) -> MaskVocabulary | None:
    """The tables of a run's frozen tokenizer with train.objective=mlm, None with others."""
    return mask_vocabulary(load_tokenizer(data_uri)) if config.train.objective == "mlm" else None


def _pieces(tokenizer: Tokenizer) -> tuple[list[str], list[bool]]:
    """(written form of every id, whether it comes from text)"""
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id}
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = tokenizer.model
        pieces = [_byte_text(p.piece) if p.type == p.BYTE else p.piece for p in model.pieces]
        special |= {i for i, p in enumerate(model.pieces) if p.type in (p.CONTROL, p.UNKNOWN, p.UNUSED)}
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        pieces = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
        special |= tokenizer.special_ids
    return pieces, [i not in special for i in range(len(pieces))]


def _byte_text(piece: str) -> str:
    """The piece "<0x0A>" as the character that it is in ASCII, "" for a byte of a longer character."""
    value = int(piece[1:-1], 16)
    return chr(value) if value < 0x80 else ""
