"""A tokenizer with further tokens: texts that become one id each, behind all ids that were there.

Old ids keep their meaning; a text without one of the new tokens has the same ids as before. A sentencepiece model
becomes the tokenizer.json that gives its ids (hf.py), because sentencepiece's own user-defined pieces are not exported
with the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken

from pretrainer.data.tokenizer.hf import to_tokenizers
from pretrainer.data.tokenizer.tokenizer import HF_ROLES, HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from pretrainer.errors import require

FIELD = "init.add_tokens"


def extend(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer with an id more for each text, in their order; raises ConfigError for a text that cannot be one."""
    if not texts:
        return tokenizer
    plain = _plain(tokenizer)
    vocab = plain.get_vocab(with_added_tokens=True)
    for text in texts:
        require(text not in vocab, FIELD, text, f"the tokenizer has it already, as id {vocab.get(text)}: leave it out")
        special = any(text in names for names in HF_ROLES.values())
        require(not special, FIELD, text, "it is a usual name of a special token, which no text may give: use another")
        require(text == text.strip(), FIELD, text, "leave out the spaces around it: they belong to the text beside it")
    plain.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    extended = HuggingFaceTokenizer(plain.to_str(pretty=True).encode())
    _check(tokenizer, extended, texts)
    return extended


def pieces_before(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The ids that each text had before it was added."""
    return tuple(tuple(int(i) for i in tokenizer.encode(text)) for text in texts)


def _plain(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return to_tokenizers(tokenizer)
    return tokenizers.Tokenizer.from_str(tokenizer.data.decode())


def _check(before: Tokenizer, after: Tokenizer, texts: Sequence[str]) -> None:
    """Each text has its new id, alone and among others, and nothing is lost."""
    for number, text in enumerate(texts):
        among = f"a{text}b"
        ids = after.encode(among).tolist()
        found = after.encode(text).tolist() == [before.vocab_size + number] and before.vocab_size + number in ids
        kept = after.decode(ids) == before.decode(before.encode(among))
        require(found and kept, FIELD, text, "this tokenizer cannot have it as a token of its own: use another text")
