"""Two rules on top of sentencepiece that make tokenization lossless and exportable: escapes and segments.

Escapes. sentencepiece writes a space as U+2581 and decodes every U+2581 to a space, so a real U+2581 would be lost:
text is encoded with U+0010 -> U+0010 "0" and U+2581 -> U+0010 "1", and decoding undoes it.

Segments. Long text is cut behind line ends, which no piece of a model trained here crosses (`train`), so
the ids are those of the whole text; a line longer than SEGMENT_CHARS is cut hard. This bounds memory per document, and
keeps a unigram path inside what float32 adds exactly. Models trained elsewhere are not cut: their pieces may cross.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from sentencepiece import sentencepiece_model_pb2

# protobuf builds its classes at run time, where type checkers do not see them.
sp_proto: Any = sentencepiece_model_pb2
ModelProto: TypeAlias = Any

SPACE_MARK = "\u2581"
ESCAPE = "\x10"
ESCAPES = ((ESCAPE, ESCAPE + "0"), (SPACE_MARK, ESCAPE + "1"))

# Record separator: a line end before it ends a piece. Only the training sample and the model's own settings hold it.
LINE_DELIMITER = "\x1e"
SEGMENT_CHARS = 4096
SEGMENT_PATTERN = rf"[\s\S]{{0,{SEGMENT_CHARS - 1}}}\n(?!\n)|[\s\S]{{1,{SEGMENT_CHARS}}}"
_SEGMENT = re.compile(SEGMENT_PATTERN)


def escape(text: str) -> str:
    """Make every U+2581 survive sentencepiece; the inverse is `unescape`."""
    if ESCAPE in text or SPACE_MARK in text:
        for plain, escaped in ESCAPES:
            text = text.replace(plain, escaped)
    return text


def unescape(text: str) -> str:
    """Undo `escape`; an escape character that `escape` cannot have written stays as it is."""
    if ESCAPE in text:
        for plain, escaped in reversed(ESCAPES):
            text = text.replace(escaped, plain)
    return text


def segments(text: str) -> list[str]:
    """Cut escaped text as the module docstring says; joined, the segments are the text again."""
    # Cuts behind line ends change no id, so short text, the common case, needs none.
    return [text] if len(text) <= SEGMENT_CHARS else _SEGMENT.findall(text)
