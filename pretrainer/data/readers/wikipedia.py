"""Reader of MediaWiki's XML dumps, such as enwiki-20240101-pages-articles.xml.bz2.

The bytes from <page> to </page> are one record: they cannot stand in a text, where < is written &lt;. So memory is
bounded by one page, a page that is broken XML is one dead letter, and reading can begin at any page. Documents are the
pages of namespace 0; their text is cleaned by `wikitext`. Other pages are counted and dropped:

| reason | meaning |
|---|---|
| wikipedia_redirect | the page only points to another one |
| wikipedia_namespace | a talk page, a template, a user's page … |
| wikipedia_model | no wikitext (JSON, Lua, CSS) |
| extraction_empty | no text is left once it is cleaned, for example of a page that is one template |
"""

from __future__ import annotations

import html
import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote
from xml.parsers import expat

from pretrainer.data.readers.decompress import decompressed
from pretrainer.data.readers.reading import Reading, Record
from pretrainer.data.readers.wikitext import DEFAULT_PREFIXES, clean_wikitext
from pretrainer.data.readers.window import Window
from pretrainer.storage import RetryingFile

HEAD_BYTES = 2**20
"""<siteinfo>, in front of the first page, is shorter."""
SKIP_BYTES = 2**20
BLANKS = b" \t\r\n"
TITLE_MARKS = "/:@!$*(),;~'"
"""What MediaWiki leaves as it is in the address of a page."""
PAGE, PAGE_END, END = b"<page>", b"</page>", b"</mediawiki>"
DROPPED_NAMESPACES = ("-2", "6", "14")
"""Media, files and categories: links to them are not text."""
_BASE = re.compile(r"<base>([^<]*)/[^</]*</base>")
_LANGUAGE = re.compile(r'<mediawiki\b[^<>]*\bxml:lang="([\w-]{1,20})"')
_NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^<>]*>([^<]*)</namespace>')


class _MalformedError(Exception):
    """The next page cannot be found; never leaves this module."""


class Site(NamedTuple):
    """What the head of a dump says."""

    base: str  # address of a page without its title
    language: str
    dropped_prefixes: frozenset[str]


@dataclass
class WikiPage:
    """Text of the elements of <page> by their path below it, and whether it is a redirect."""

    fields: dict[str, str] = field(default_factory=dict)
    is_redirect: bool = False


def read_wikipedia(reading: Reading) -> Generator[Record, None, int]:
    """Rows are numbers of pages in the dump, from 0, of all kinds; the id is the id of the page."""
    with reading.open() as file:
        window = Window(reading.content(file), reading.resume.offset)
        row = reading.resume.row
        try:
            site = parse_head(_take_head(window) if reading.resume.offset == 0 else _head_again(reading, file))
            while _begins_page(window):
                yield _next_page(reading, window, row, site)
                row += 1
        except _MalformedError as error:
            start, reason = window.position, window.broken or error
            yield reading.refused(start, 0, row, "corrupt_shard", f"from decompressed byte {start:,} on: {reason}")
        return window.position


def parse_head(head: bytes) -> Site:
    text = head.decode("utf-8", "replace")
    base, language = _BASE.search(text), _LANGUAGE.search(text)
    names = {html.unescape(name).lower() for key, name in _NAMESPACE.findall(text) if key in DROPPED_NAMESPACES}
    prefixes = DEFAULT_PREFIXES | (names - {""})
    return Site(html.unescape(base[1]) if base else "", language[1] if language else "", prefixes)


def parse_page(data: bytes) -> WikiPage:
    """expat.ExpatError where it is no XML. No entity can be declared here, so only the five of XML are known."""
    page, path, texts = WikiPage(), list[str](), list[str]()

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        texts.clear()
        page.is_redirect |= path == ["page", "redirect"]

    def end(name: str) -> None:
        # Of several revisions the last one counts.
        page.fields["/".join(path[1:])] = "".join(texts)
        path.pop()
        texts.clear()

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, texts.append
    parser.Parse(data, True)
    return page


def _take_head(window: Window) -> bytes:
    size = window.find(PAGE, HEAD_BYTES)
    if size < 0:
        size = max(0, window.find(END, HEAD_BYTES))
    head = window.peek(size)
    if b"<mediawiki" not in head or b"<!DOCTYPE" in head or b"<!ENTITY" in head:
        raise _MalformedError("no dump of MediaWiki begins here (DOCTYPE and entities are refused)")
    window.skip(size)
    return head


def _head_again(reading: Reading, file: RetryingFile) -> bytes:
    """The head of a dump in whose middle reading goes on."""
    blocks = file.blocks(0, None, min(reading.block_bytes, 65_536))
    return _take_head(Window(decompressed(blocks, reading.compression), 0))


def _begins_page(window: Window) -> bool:
    """False at the end of the dump."""
    window.skip_bytes_of(BLANKS)
    if window.peek(len(PAGE)) == PAGE:
        return True
    if window.peek(len(END)) != END:
        raise _MalformedError("neither a page nor the end of the dump begins here")
    return False


def _next_page(reading: Reading, window: Window, row: int, site: Site) -> Record:
    start, limit = window.position, reading.max_document_bytes
    size = window.find(PAGE_END, limit) + len(PAGE_END)
    if size < len(PAGE_END):
        size = _skip_page(window)
        return reading.refused(start, size, row, "too_long", f"a page of {size:,} bytes, at most {limit:,}")
    data = window.take(size)
    try:
        page = parse_page(data)
    except expat.ExpatError as error:
        return reading.refused(start, size, row, "bad_xml", expat.ErrorString(error.code))
    return _document(reading, start, size, row, page, site)


def _skip_page(window: Window) -> int:
    """Move behind the end of a page that is too long to be kept; returns its bytes."""
    begin = window.position
    while (size := window.find(PAGE_END, SKIP_BYTES)) < 0:
        if not window.has(SKIP_BYTES):
            raise _MalformedError(f"the page that begins at byte {begin:,} has no end")
        window.skip(SKIP_BYTES - len(PAGE_END) + 1)
    window.skip(size + len(PAGE_END))
    return window.position - begin


def _document(reading: Reading, start: int, size: int, row: int, page: WikiPage, site: Site) -> Record:
    fields = page.fields
    if fields.get("ns") != "0":
        return reading.dropped(start, size, row, "wikipedia_namespace")
    if page.is_redirect:
        return reading.dropped(start, size, row, "wikipedia_redirect")
    if fields.get("revision/model", "wikitext") != "wikitext":
        return reading.dropped(start, size, row, "wikipedia_model")
    text = clean_wikitext(fields.get("revision/text", ""), site.dropped_prefixes)
    if not text:
        return reading.dropped(start, size, row, "extraction_empty")
    title = fields.get("title", "").replace(" ", "_")
    url = f"{site.base}/{quote(title, safe=TITLE_MARKS)}" if site.base and title else ""
    name = fields.get("id") or reading.default_id(row)
    return Record(reading.base + start, size, row, name, text, url=url, language=site.language)
