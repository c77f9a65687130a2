"""Texts to token ids as lm-evaluation-harness 0.4.13 encodes them (`TemplateLM`, `HFLM`), left truncation included.

Departures: names of special tokens inside a text are text; where nothing of a continuation would be left, because the
tokenizer joins it with the context, it is encoded alone (the harness stops there); and a text that is scored whole has
one token before it, not two where the tokenizer adds bos (the harness with `add_bos_token=False`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class TextTokenizer(Protocol):
    """What is needed of a tokenizer; `pretrainer.data.tokenizer` has one."""

    bos_id: int  # eos where there is none
    eos_id: int

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What transformers puts before every text with this tokenizer: bos, or nothing."""

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...


class Request(NamedTuple):
    """How likely is the continuation behind the context? Both have at least one id."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def inputs(self, max_tokens: int) -> tuple[int, ...]:
        """What the model reads: the end of it where it is too long, and never the last token."""
        return (*self.context, *self.continuation)[-(max_tokens + 1) :][:-1]


def encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    """As transformers encodes a text by default."""
    return [*tokenizer.prefix_ids, *_ids(tokenizer, text)]


def encode_pair(tokenizer: TextTokenizer, context: str, continuation: str) -> Request:
    """Spaces at the end of the context belong to the continuation, and both are encoded as one text, then cut."""
    if not context:
        return Request((tokenizer.bos_id,), tuple(_ids(tokenizer, continuation)))
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    before, whole = encode(tokenizer, context), encode(tokenizer, context + continuation)
    after = whole[len(before) :] or _ids(tokenizer, continuation)
    return Request(tuple(before) or (tokenizer.bos_id,), tuple(after))


def encode_windows(tokenizer: TextTokenizer, text: str, max_tokens: int) -> Iterator[Request]:
    """Every token of a text once, in windows of max_tokens behind bos or the token before them; the last window reaches
    back as far as the model reads."""
    ids = [tokenizer.bos_id, *_ids(tokenizer, text)]
    for first in range(1, len(ids), max_tokens):
        end = min(first + max_tokens, len(ids))
        start = max(0, end - max_tokens - 1)
        yield Request(tuple(ids[start:first]), tuple(ids[first:end]))


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text)]
