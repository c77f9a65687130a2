"""Training of the run's own tokenizer: sentencepiece BPE, unigram or characters, with fixed special ids,
byte-deterministic.

BPE is Sennrich et al. 2016 (arXiv 1508.07909), unigram is Kudo 2018 (arXiv 1804.10959), both as sentencepiece
(arXiv 1808.06226) has them; char has a piece for every character of the sample, and no others. Departures from
sentencepiece's defaults, each because text must come back unchanged:

  identity normalisation, no dummy prefix, all spaces kept; runs of spaces may be pieces (indentation)
  byte fallback: a character outside the vocabulary is its UTF-8 bytes, so <unk> is never produced
  every digit is its own piece
  line ends and tabs are ordinary characters; a run of line ends ends a piece, and nothing follows it inside the piece
  unigram scores are rounded to 1/128 nat, so that float32 and float64 find the same best path (see `_round_scores`)
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import sentencepiece

from pretrainer.data.tokenizer.text import LINE_DELIMITER, SEGMENT_CHARS, ModelProto, escape, segments, sp_proto
from pretrainer.errors import UserError
from pretrainer.schema import SPECIAL_TOKENS

TokenizerKind: TypeAlias = Literal["bpe", "unigram", "char"]
NUM_BYTE_PIECES = 256
SCORES_PER_NAT = 128

# sentencepiece drops a whole block that holds U+0000 or U+2585 (its own marks); the delimiter must be ours alone.
_UNTRAINABLE = re.compile(f"[\0\u2585{LINE_DELIMITER}]")
_LAST_LINE_END = re.compile(r"\n(?!\n)")


def train_tokenizer(texts: Iterable[str], kind: TokenizerKind, vocab_size: int, seed: int = 0) -> bytes:
    """Train on `texts` and return the bytes of a sentencepiece .model; the same texts in order give the same bytes.

    Ids: schema.SPECIAL_TOKENS at 0 to 68, then 256 byte pieces, then text pieces. `vocab_size` counts all of them; with
    characters it is the most that there may be.
    `seed` sets sentencepiece's own generator; as all of the texts are used, it draws nothing from it.
    Raises UserError when the texts are empty or support fewer pieces than that (the message names the largest number).
    """
    output = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_blocks(texts, kind), model_writer=output, **_settings(kind, vocab_size))
    except RuntimeError as error:
        raise _user_error(str(error), vocab_size) or error from error
    model = sp_proto.ModelProto.FromString(output.getvalue())
    assert tuple(piece.piece for piece in model.pieces[: len(SPECIAL_TOKENS)]) == SPECIAL_TOKENS
    if kind == "unigram":
        _round_scores(model)
    model.trainer_spec.pretokenization_delimiter = LINE_DELIMITER  # says that no piece crosses a line end
    return model.SerializeToString(deterministic=True)


def _settings(kind: TokenizerKind, vocab_size: int) -> dict[str, Any]:
    pad, bos, eos, unk, *control = SPECIAL_TOKENS
    own = dict(hard_vocab_limit=False) if kind == "char" else dict(pretokenization_delimiter=LINE_DELIMITER)
    return own | dict(
        model_type=kind, vocab_size=vocab_size, control_symbols=control,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece=pad, bos_piece=bos, eos_piece=eos, unk_piece=unk,
        byte_fallback=True, split_digits=True,
        # The rarest 0.01 % of characters become bytes; full coverage would spend a small vocabulary on stray symbols.
        character_coverage=0.9999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        # Four bytes per character and a delimiter behind every character at worst; longer blocks are dropped silently.
        max_sentence_length=8 * SEGMENT_CHARS,
        num_threads=1,  # the sums of unigram's EM depend on how threads share the work
        minloglevel=2,
    )


def _blocks(texts: Iterable[str], kind: TokenizerKind) -> Iterator[str]:
    """Blocks of escaped text below max_sentence_length, with the delimiter behind every run of line ends.

    A piece of one character ends there anyway, and sentencepiece takes no delimiter then.
    """
    for text in texts:
        for block in segments(escape(_UNTRAINABLE.sub("", text))):
            # The delimiter also keeps sentencepiece from stripping the line end of the block.
            yield block if kind == "char" else _LAST_LINE_END.sub("\n" + LINE_DELIMITER, block)


def _round_scores(model: ModelProto) -> None:
    """Round log probabilities to 1/128: sums over a segment are then exact in float32 and in float64 alike.

    SEGMENT_CHARS x 32 nat x 128 = 2^24, float32's mantissa. sentencepiece adds scores in float32, `tokenizers` in
    float64; without this they break ties (runs of spaces have many) and long sums differently.
    """
    for piece in model.pieces:
        if piece.type == piece.NORMAL:
            piece.score = max(round(piece.score * SCORES_PER_NAT) / SCORES_PER_NAT, -22.0)


def _user_error(message: str, vocab_size: int) -> UserError | None:
    """sentencepiece's words in ours, or None if the fault is not one of the sample."""
    if found := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return UserError(f"tokenizer.vocab_size={vocab_size} is more than the sample supports: use {found[1]} or less, "
                         "or more text (tokenizer.train_bytes)")
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(f"tokenizer.vocab_size={vocab_size} is smaller than the sample's alphabet with special and "
                         f"byte pieces: use at least {found[1]}")
    if "sentences_.empty()" in message:
        return UserError("the tokenizer's sample has no text: check data.sources and the filters of their presets")
    return None
