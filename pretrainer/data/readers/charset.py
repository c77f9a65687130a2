"""Bytes of a page to text: which charset they are in."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

META_BYTES = 4096
"""How far into a page a declaration in it is looked for; the HTML standard asks for it in the first 1024 bytes."""
DETECT_BYTES = 65_536
MAX_REPLACED_SHARE = 0.01
"""A declared charset in which more of the characters are not valid is not believed."""
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^<>]{0,500}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^<>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)
_SEVEN_BITS = {"iso-2022-jp": "iso2022_jp", "iso-2022-kr": "iso2022_kr", "hz-gb-2312": "hz"}
# Python's codecs know these characters under the name of the extended one only, as browsers do.
_EXTENDED = {"gbk": "gb18030", "gb2312": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "iso8859-11": "cp874"}


def decode_page(data: bytes, declared: str | None = None) -> str:
    """Text of an HTML or text page; `declared` is the charset of its HTTP header.

    In order: a byte order mark; UTF-8 where the bytes are valid UTF-8 with something beyond ASCII, which other charsets
    hardly ever are by chance while headers are often wrong; the HTTP header; the page's own declaration; a detector.
    Invalid bytes become U+FFFD; a character that is cut off at the end, as crawlers cut pages, is left out.
    """
    for mark, codec in BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], codec)
    names = [found for name in (declared, _in_page(data)) if name and (found := codec_of(name))]
    if names and names[0] in _SEVEN_BITS.values():
        return _decoded(data, names[0])
    for codec in _candidates(data, names):
        text = _decoded(data, codec)
        if text.count("\ufffd") <= max(1, MAX_REPLACED_SHARE * len(text)):
            return text
    return _decoded(data, names[0] if names else "utf-8")


def _decoded(data: bytes, codec: str) -> str:
    return codecs.getincrementaldecoder(codec)("replace").decode(data, False)


def codec_of(name: str) -> str | None:
    """Python's codec for a charset as the web means its name; None where there is none."""
    label = name.strip().strip("\"'").lower()
    if not label.isascii():
        return None
    if label in _SEVEN_BITS:
        return _SEVEN_BITS[label]
    mapped = map_encoding_to_html5(label, False)
    if mapped is None:
        return None
    try:
        return codecs.lookup(_EXTENDED.get(mapped, mapped)).name
    except LookupError:
        return None


def _candidates(data: bytes, names: list[str]) -> Iterator[str]:
    if _is_utf8(data):
        yield "utf-8"
    yield from names
    found = detect_encoding(data[:DETECT_BYTES])
    if found and (codec := codec_of(found)):
        yield codec


def _is_utf8(data: bytes) -> bool:
    """Valid but for a character cut off at the end."""
    try:
        codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def _in_page(data: bytes) -> str | None:
    head = data[:META_BYTES]
    found = _XML.search(head) or _META.search(head)
    return found[1].decode("ascii") if found else None
