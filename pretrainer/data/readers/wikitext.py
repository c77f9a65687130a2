"""Wikitext to plain text, in time linear in its length.

    clean_wikitext(text, DEFAULT_PREFIXES) -> text

One pass over the marks of the language ({{ }}, {| |}, [[ ]], tags) writes to one list of parts; what opens remembers
its place there, and what closes cuts the list back to it. So templates, tables and references vanish with all that is
in them, links become their labels, and a mark without its partner stays where it is until the end, where stray marks
are taken out. Templates are not expanded (that takes the whole wiki): what they would have written is missing, but for
the few in TEMPLATES that only wrap words of the text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Iterator

DROPPED_TAGS = ("ref", "references", "gallery", "timeline", "imagemap", "score", "templatedata", "mapframe", "graph")
LITERAL_TAGS = ("nowiki", "pre", "syntaxhighlight", "source", "math", "chem", "code")
"""What is in them is text, whatever it looks like."""
TEMPLATES = {"nowrap": (1,), "nobr": (1,), "lang": (2,), "abbr": (1,), "convert": (1, 2), "cvt": (1, 2), "small": (1,)}
"""Templates that are replaced by their arguments of these numbers."""
FILE_PREFIXES = ("file", "image", "media")
DEFAULT_PREFIXES = frozenset({*FILE_PREFIXES, "category"})
"""Namespaces in lower case whose links show a picture or sort the page instead of pointing somewhere."""
MAX_LINKS_OPEN = 8
"""A link may hold links where it is a picture with a caption; deeper ones are text, or closing them is quadratic."""
MAX_ARGUMENT_PARTS = 12

MAX_ARGUMENT_BYTES = 500
_LITERAL = re.compile(rf"<({'|'.join(LITERAL_TAGS)})\b[^<>]*>", re.IGNORECASE)
_LITERAL_ENDS = {tag: re.compile(rf"</{tag}\s*>", re.IGNORECASE) for tag in LITERAL_TAGS}
_MARK = re.compile(
    rf"\{{\{{+|\}}\}}+|^[ \t:]*\{{\||\|\}}(?!\}})|\[\[|\]\]|\n\n|</?(?:{'|'.join(DROPPED_TAGS)})\b[^<>]*>",
    re.IGNORECASE | re.MULTILINE,
)
_TAG_NAME = re.compile(r"[a-z]+", re.IGNORECASE)
# Possessive, because the label may hold what the address does: trying all borders between them would be quadratic.
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*+[ \t]*+([^\[\]\n]*+)\]", re.IGNORECASE)
_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_NOTHING = re.compile(r"'{2,}|__[A-Z]{3,}__|\{\{+|\}\}+|\[\[|\]\]|(?<=\()[ \t;,]+")
_EMPTY = re.compile(r"(?<=\s)\(\)")
_BLANKS = re.compile(r"[ \t\xa0]{2,}|\xa0")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]{2,12})?")
_MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "<>[]{}|'=*#:;_-!"})


def clean_wikitext(text: str, dropped_prefixes: Collection[str] = DEFAULT_PREFIXES) -> str:
    """Plain text of a page: paragraphs, headings that have text below them, and lists with '- ' before each entry."""
    text = _Marks(dropped_prefixes).run(_escaped_literals(_without_comments(text)))
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _EMPTY.sub("", _NOTHING.sub("", _EXTERNAL.sub(r"\1", text)))
    lines = _with_text_below(map(_plain_line, text.split("\n")))
    return html.unescape("\n".join(_single_blanks(lines))).replace("\xa0", " ").strip()


def _without_comments(text: str) -> str:
    parts, position = list[str](), 0
    while (begin := text.find("<!--", position)) >= 0:
        parts.append(text[position:begin])
        end = text.find("-->", begin + 4)
        if end < 0:
            return "".join(parts)
        position = end + 3
    return "".join(parts) + text[position:]


def _escaped_literals(text: str) -> str:
    """What stands in LITERAL_TAGS with every mark of the language as a character reference."""
    parts, position, endless = list[str](), 0, set[str]()
    while (found := _LITERAL.search(text, position)) is not None:
        tag = found[1].lower()
        end = None if found[0].endswith("/>") or tag in endless else _LITERAL_ENDS[tag].search(text, found.end())
        parts.append(text[position : found.start()])
        position = found.end()
        if end is not None:
            parts.append(text[position : end.start()].translate(_MARKUP))
            position = end.end()
        elif not found[0].endswith("/>"):
            endless.add(tag)  # searching for its end again and again would be quadratic
    return "".join(parts) + text[position:]


class _Frame:
    """Something open: { | [ or the name of a tag, its place in the parts, and how many braces it still needs."""

    __slots__ = ("kind", "start", "braces")

    def __init__(self, kind: str, start: int, braces: int) -> None:
        self.kind, self.start, self.braces = kind, start, braces


class _Marks:
    """The pass over the marks; `parts` is the text so far, in which each open mark is a part of its own."""

    def __init__(self, dropped_prefixes: Collection[str]) -> None:
        self.dropped_prefixes = dropped_prefixes
        self.parts: list[str] = []
        self.frames: list[_Frame] = []
        self.open: dict[str, int] = {}  # how many frames there are of a kind

    def run(self, text: str) -> str:
        position = 0
        for mark in _MARK.finditer(text):
            self.parts.append(text[position : mark.start()])
            self._pass(mark[0])
            position = mark.end()
        return "".join(self.parts) + text[position:]

    def _pass(self, mark: str) -> None:
        if mark.startswith("{{"):
            self._open("{", mark, len(mark))
        elif mark.startswith("}}"):
            self._close_braces(mark)
        elif mark == "[[":
            self._open("[", mark) if self.open.get("[", 0) < MAX_LINKS_OPEN else self.parts.append(mark)
        elif mark == "]]":
            self._close_link(mark)
        elif mark == "\n\n":
            self._end_paragraph(mark)
        elif mark.startswith("<"):
            self._tag(mark)
        elif mark == "|}":
            self._cut_from(self._closed("|"), mark)
        else:
            self._open("|", mark)

    def _open(self, kind: str, mark: str, braces: int = 0) -> None:
        self.frames.append(_Frame(kind, len(self.parts), braces))
        self.open[kind] = self.open.get(kind, 0) + 1
        self.parts.append(mark)

    def _pop(self) -> _Frame:
        frame = self.frames.pop()
        self.open[frame.kind] -= 1
        return frame

    def _closed(self, kind: str) -> _Frame | None:
        """The innermost open frame of a kind, taken off with those in it, which were never closed."""
        if not self.open.get(kind):
            return None
        while (frame := self._pop()).kind != kind:
            pass
        return frame

    def _cut_from(self, frame: _Frame | None, mark: str, replacement: str = "") -> None:
        """Replace what a frame holds; a mark that closes nothing is text."""
        if frame is None:
            self.parts.append(mark)
        else:
            self.parts[frame.start :] = [replacement]

    def _close_braces(self, mark: str) -> None:
        left = len(mark)
        while left >= 2 and (frame := self._closed("{")) is not None:
            used = min(left, frame.braces)
            left, frame.braces = left - used, frame.braces - used
            if frame.braces < 2:
                self._cut_from(frame, mark, _template(self.parts[frame.start + 1 :][: MAX_ARGUMENT_PARTS + 1]))
            else:
                del self.parts[frame.start :]
                self._open("{", "{" * frame.braces, frame.braces)

    def _close_link(self, mark: str) -> None:
        frame = self._closed("[")
        inner = "".join(self.parts[frame.start + 1 :]) if frame else ""
        self._cut_from(frame, mark, _label(inner, self.dropped_prefixes))

    def _end_paragraph(self, mark: str) -> None:
        """A link does not go on in the next paragraph; without this a few stray [[ would make text of all links."""
        while self.frames and self.frames[-1].kind == "[":
            self._pop()
        self.parts.append(mark)

    def _tag(self, mark: str) -> None:
        found = _TAG_NAME.search(mark)
        name = found[0].lower() if found else ""
        if mark.startswith("</"):
            self._cut_from(self._closed(name), "")
        elif not mark.endswith("/>"):
            self._open(name, mark)


def _template(inner: list[str]) -> str:
    """What is left of a template: nothing, but for TEMPLATES."""
    if len(inner) > MAX_ARGUMENT_PARTS or sum(map(len, inner)) > MAX_ARGUMENT_BYTES:
        return ""
    name, *arguments = (argument.strip() for argument in "".join(inner).split("|"))
    plain = [argument for argument in arguments if "=" not in argument]
    wanted = TEMPLATES.get(name.lower(), ())
    return " ".join(plain[number - 1] for number in wanted if number <= len(plain))


def _label(inner: str, dropped_prefixes: Collection[str]) -> str:
    """What a reader sees of [[inner]]."""
    target, _, label = inner.partition("|")
    if "\n" in target:
        return inner
    prefix = target.partition(":")[0].strip() if ":" in target else ""
    if prefix.lower() in dropped_prefixes or (prefix and not label and _LANGUAGE.fullmatch(prefix)):
        return ""
    return label.strip() or target.strip().removeprefix(":")


def _plain_line(line: str) -> tuple[int, str]:
    """(level of a heading, 0 for other lines; text)."""
    text = _BLANKS.sub(" ", line).strip()
    if text[:1] == "=" and text[-1:] == "=" and text.strip("="):
        level = min(len(text) - len(text.lstrip("=")), len(text) - len(text.rstrip("=")), 6)
        return level, text[level:-level].strip()
    if text[:1] in ("|", "!") or text.startswith(("{|", "----")):
        return 0, ""  # rows of a table without an end
    if text[:1] in ("*", "#", ":", ";"):
        entry = text.lstrip("*#:;").strip()
        return 0, f"- {entry}" if entry and text[0] in "*#" else entry
    return 0, text


def _with_text_below(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Without headings whose section lost all its text, such as References."""
    kept, below = list[str](), 0  # level of the line below: 0 where there is none, 7 for text
    for level, text in reversed(list(lines)):
        if level == 0 or below > level:
            kept.append(text)
            below = (level or 7) if text else below
    return reversed(kept)


def _single_blanks(lines: Iterable[str]) -> Iterator[str]:
    before = ""
    for line in lines:
        if line or before:
            yield line
        before = line
