"""MediaWiki dumps and wikitext: what is a document, damage, hostile XML, borders, resume, time linear in length."""

from __future__ import annotations

import bz2
import json
import tracemalloc
from collections.abc import Callable, Sized
from dataclasses import asdict
from pathlib import Path
from random import Random
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import SourceConfig
from pretrainer.data.readers import wikitext
from pretrainer.data.readers.formats import read_unit
from pretrainer.data.readers.reading import BEGINNING, Resume
from pretrainer.data.readers.units import Piece
from pretrainer.data.readers.wikitext import clean_wikitext
from tests.data.compress import COMPRESS
from tests.work import Work, count_patterns, lines_run

HEAD = b"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <namespaces>
      <namespace key="-2" case="first-letter">Medium</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
END = b"</mediawiki>\n"
Chunk = tuple[list[dict], dict, bool]


def page(number: int, text: str, title: str = "", ns: int = 0, extra: str = "", model: str = "wikitext") -> bytes:
    return f"""  <page>
    <title>{escape(title or f"Page {number}")}</title>
    <ns>{ns}</ns>
    <id>{number}</id>{extra}
    <revision>
      <id>{number * 1000}</id>
      <contributor><username>U</username><id>7</id></contributor>
      <model>{model}</model>
      <text bytes="1" xml:space="preserve">{escape(text)}</text>
    </revision>
  </page>
""".encode()


def chunks(
    folder: Path, name: str, data: bytes, chunk_bytes: int = 10**9, block_bytes: int = 1000, first: int = 0,
    resume: Resume = BEGINNING, limit: int = 5000,
) -> list[Chunk]:  # fmt: skip
    (folder / name).write_bytes(data)
    source = SourceConfig(name="wiki", uris=("unused",), format="wikipedia")
    pieces = [Piece(0, str(folder), name, len(data))]
    found = read_unit(pieces, source, chunk_bytes, limit, block_bytes, first, resume)
    return [(docs.to_pylist(), asdict(report), last) for docs, report, last in found]


def read(folder: Path, data: bytes, limit: int = 5000) -> tuple[list[dict], dict]:
    ((docs, report, _),) = chunks(folder, "a.xml", data, limit=limit)
    assert report["read"] == len(docs) + len(report["dead_letters"]) + sum(report["dropped"].values())
    return docs, report


# ---------------------------------------------------------------------------------------------------------- dumps


def test_articles_ids_and_addresses(tmp_path: Path) -> None:
    text = "'''A''' &amp; [[Datei:x.jpg|mini|[[B]]]] < b\n[[Kategorie:X]]"
    docs, report = read(tmp_path, HEAD + page(12, text, "Größe & Maß (Physik)/a") + page(13, "b") + END)
    assert [{name: doc[name] for name in ("id", "row", "text", "url", "language")} for doc in docs] == [
        {"id": "12", "row": 0, "text": "A & < b", "language": "de",
         "url": "https://de.wikipedia.org/wiki/Gr%C3%B6%C3%9Fe_%26_Ma%C3%9F_(Physik)/a"},
        {"id": "13", "row": 1, "text": "b", "language": "de", "url": "https://de.wikipedia.org/wiki/Page_13"},
    ]  # fmt: skip
    assert not report["dropped"] and not report["dead_letters"]


@pytest.mark.parametrize(("data", "reason"), [
    (page(1, "#REDIRECT [[X]]", extra='<redirect title="X" />'), "wikipedia_redirect"),
    (page(1, "talk", ns=1), "wikipedia_namespace"),
    (page(1, "t", ns=10, extra='<redirect title="X" />'), "wikipedia_namespace"),
    (page(1, "{}", model="json"), "wikipedia_model"),
    (page(1, "{{stub}}\n[[Category:X]]"), "extraction_empty"),
    (page(1, ""), "extraction_empty"),
])  # fmt: skip
def test_each_counted_drop(data: bytes, reason: str, tmp_path: Path) -> None:
    docs, report = read(tmp_path, HEAD + page(0, "before") + data + page(2, "after") + END)
    assert [(doc["row"], doc["text"]) for doc in docs] == [(0, "before"), (2, "after")]
    assert report["dropped"] == {reason: 1} and not report["dead_letters"]


def test_of_several_revisions_the_last_one_counts(tmp_path: Path) -> None:
    two = page(1, "old").replace(b"</page>", b"<revision><text>new</text></revision></page>")
    assert [doc["text"] for doc in read(tmp_path, HEAD + two + END)[0]] == ["new"]


@pytest.mark.parametrize("inner", [b"<b>", b"&nbsp;", b"&lol9;", b"\xff", b"\0", b"<![CDATA[", b"</revision>"])
def test_a_page_of_bad_xml_is_one_dead_letter(inner: bytes, tmp_path: Path) -> None:
    bad = page(1, "bad").replace(b"bad", inner)
    docs, report = read(tmp_path, HEAD + page(0, "before") + bad + page(2, "after") + END)
    assert [doc["row"] for doc in docs] == [0, 2]
    assert [(letter["row"], letter["reason"]) for letter in report["dead_letters"]] == [(1, "bad_xml")]


@pytest.mark.parametrize("head", [
    b'<!DOCTYPE x [<!ENTITY lol "lol"><!ENTITY l2 "&lol;&lol;">]>' + HEAD,
    HEAD.replace(b"<siteinfo>", b"<!ENTITY a 'b'>"), b"<html>", b"", b"x" * 2**21,
    HEAD.replace(b"<mediawiki", b"<other"),
])  # fmt: skip
def test_hostile_or_foreign_heads_are_refused(head: bytes, tmp_path: Path) -> None:
    docs, report = read(tmp_path, head + page(1, "a &l2; b") + END)
    assert not docs and [letter["reason"] for letter in report["dead_letters"]] == ["corrupt_shard"]


@pytest.mark.parametrize(("rest", "says"), [
    (page(2, "cut")[:-60], "has no end"), (b"", "neither a page nor the end"),
    (b"<x>" + page(2, "b"), "neither a page"),
])  # fmt: skip
def test_damage_keeps_what_is_before_and_names_its_place(rest: bytes, says: str, tmp_path: Path) -> None:
    good = HEAD + page(0, "one") + page(1, "two")
    docs, report = read(tmp_path, good + rest)
    assert [doc["text"] for doc in docs] == ["one", "two"]
    (letter,) = report["dead_letters"]
    assert (letter["row"], letter["reason"]) == (2, "corrupt_shard") and says in letter["detail"]
    place = len(good) + len(rest) - len(rest.lstrip())
    assert f"from decompressed byte {place:,} on" in letter["detail"]


def test_a_dump_without_pages(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + END)[1]["read"] == 0


def test_the_limit_and_a_giant_page_without_loading_it(tmp_path: Path) -> None:
    data = HEAD + page(0, "one") + page(1, "x" * 30_000_000) + page(2, "two") + END
    size = len(page(2, "two").strip())
    packed = bz2.compress(data)
    tracemalloc.start()
    ((docs, report, _),) = chunks(tmp_path, "a.xml.bz2", packed, limit=size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [doc["row"] for doc in docs] == [0, 2] and report["dead_letters"][0]["reason"] == "too_long"
    assert report["bytes_read"] > 30_000_000 and peak < 8_000_000
    _, report = read(tmp_path, HEAD + page(2, "two") + END, limit=size - 1)
    assert [letter["reason"] for letter in report["dead_letters"]] == ["too_long"]


def _dump(suffix: str, is_multistream: bool) -> bytes:
    redirects = ("<redirect/>" if i % 7 == 4 else "" for i in range(120))
    pages = [page(i, f"text {i} " * (i % 60), ns=i % 5 == 3, extra=extra) for i, extra in enumerate(redirects)]
    groups = [HEAD, *(b"".join(pages[i : i + 10]) for i in range(0, 120, 10)), END]
    return b"".join(map(COMPRESS[suffix], groups)) if is_multistream else COMPRESS[suffix](b"".join(groups))


@pytest.mark.parametrize("suffix", ["", ".bz2", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["one", "multistream", "truncated"])
def test_chunks_depend_on_content_alone_and_every_cut_goes_on(suffix: str, kind: str, tmp_path: Path) -> None:
    data = _dump(suffix, kind != "one")
    data = data[: len(data) * 3 // 4] if kind == "truncated" else data
    name = f"a.xml{suffix}"
    whole = chunks(tmp_path, name, data, 3000)
    assert len(whole) > 4
    assert all(chunks(tmp_path, name, data, 3000, block_bytes) == whole for block_bytes in (97, 2**20))
    if kind != "truncated":
        twin = chunks(tmp_path, "a.xml", _dump("", False), 3000)
        assert [[doc["text"] for doc in docs] for docs, *_ in whole] == [[d["text"] for d in docs] for docs, *_ in twin]
    for first in range(1, len(whole)):
        place = json.loads(json.dumps(whole[first - 1][1]["next"]))  # as the ledger keeps it
        assert chunks(tmp_path, name, data, 3000, first=first, resume=Resume(**place)) == whole[first:]


# ------------------------------------------------------------------------------------------------------- wikitext


@pytest.mark.parametrize(("text", "expected"), [
    ("'''bold''' and ''italic'' and '''''both'''''", "bold and italic and both"),
    ("[[Link]], [[target|label]], [[bus]]es, [[A (b)|]], [[A#B|c]]", "Link, label, buses, A (b), c"),
    ("a {{tpl|x={{in}}|y=[[z]]}} b", "a b"),
    ("x {{convert|5|km|mi}} {{lang|fr|oui}} {{nowrap|a b}} {{Nowrap|1={{x}}}}", "x 5 km oui a b"),
    ("{{{param|default}}} a {{{{{x}}}|y}} b", "a b"),
    ("a<ref>{{cite|[[b]]}}</ref> b<ref name=\"x\" /> c<ref name=y>d</ref>.", "a b c."),
    ("a <!-- hidden [[ {{ --> b <!-- to the end", "a b"),
    ("[[File:a.jpg|thumb|A [[caption]] {{x}}]]text [[Image:b.png]]", "text"),
    ("[[Category:X]]a[[:Category:Y]] [[fr:Z]] [[wikt:w|w]]", "aCategory:Y w"),
    ("before\n{| class=x\n! h\n|-\n| a || {{b}}\n{|\n| inner\n|}\n|}\nafter", "before\n\nafter"),
    ("{{infobox|\n{|\n|x\n|}\n}}text", "text"),
    ("[http://x.org a label] [https://y.org] http://z.org", "a label http://z.org"),
    ("<nowiki>[[a]] ''b'' {{c}}</nowiki> <code>x = {1}</code>", "[[a]] ''b'' {{c}} x = {1}"),
    ("<syntaxhighlight lang=c>\n* p = a[b[0]];\n# x\n</syntaxhighlight>", "* p = a[b[0]];\n# x"),
    ("<math>\\frac{a}{b}</math>", "\\frac{a}{b}"),
    ("H<sub>2</sub>O<br/>next<span class='x'>!</span>", "H2O\nnext!"),
    ("* one\n** two\n# three\n: four\n; five\n*", "- one\n- two\n- three\nfour\nfive"),
    ("== A ==\ntext\n== Empty ==\n=== B ===\nmore\n=== C ===\n== References ==\n{{reflist}}",
     "A\ntext\nEmpty\nB\nmore"),
    ("= not a heading\n==\na = b", "= not a heading\n==\na = b"),
    ("a&nbsp;b &lt;tag&gt; &amp;amp; &eacute;", "a b <tag> &amp; é"),
    ("Foo ({{IPA|x}}; born 1900) ({{x}}) calls main() __NOTOC__", "Foo (born 1900) calls main()"),
    ("stray }} ]] {{ a [[ b\n\n[[c|d]] {{e}}", "stray a b\n\nd"),
    ("a [[ b\n\n" * 9 + "[[c|d]]", "a b\n\n" * 9 + "d"),
    ("<gallery>\nFile:a.jpg|x\n</gallery>a<references/>", "a"),
    ("a\n\n\n\n\nb\n----\nc", "a\n\nb\n\nc"),
    ("", ""),
])  # fmt: skip
def test_wikitext(text: str, expected: str) -> None:
    assert clean_wikitext(text) == expected


def test_file_and_category_have_the_names_of_the_site() -> None:
    assert clean_wikitext("a[[Datei:x|y]][[Kategorie:z]]b", frozenset({"datei", "kategorie"})) == "ab"


MARKS = ["{{", "}}", "{{{", "[[", "]]", "{|", "|}", "|", "\n", "\n\n", "<ref>", "</ref>", "<ref/>", "<!--", "-->",
         "=", "''", "<nowiki>", "</nowiki>", "<b>", "[http://", "]", "File:", "a", " ", "*", "&lt;", "__TOC__", "<"]


@given(st.lists(st.sampled_from(MARKS), max_size=40).map("".join) | st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_wikitext_has_a_text(text: str) -> None:
    found = clean_wikitext(text)
    assert found == found.strip() and "\n\n\n" not in found
    assert len(found) <= 2 * len(text)


def hard_texts(n: int) -> list[str]:
    random = Random(0)
    return [
        "[[" * n, "{{" * n + "}}" * n, "[[a|" * n + "]]" * n, "<ref>" * n, "{{[[" * n + "]]}}" * n, "<!--" * n,
        "<nowiki>" * 4 * n, "[http://" * n, "(" * n + " " * n, "<a " * n, "{|\n" * n + "|}\n" * n, "=" * n, ":" * n,
        "{{{" * n + "}}" * n, "{{x]]" * n + "[[y}}" * n, "[[File:a|[[b|c]]" * n, "== a ==\n" * n, "\n" * n, "'" * n,
        "<math>" * n + "</code>" * n, ("[[a|" + "b" * 99) * 2 * n + "]]" * 2 * n, "[http://" + "a" * 4 * n,
        "[http://a" + " " * 4 * n, "[http://a" + " b" * 2 * n, "[[a|" * 7 + "]][[a|" * n, "<br" * n, "__A" * n,
        "".join(random.choices(MARKS, k=4 * n)),
    ]  # fmt: skip


def count_copies(function: Callable[..., str], work: Work) -> Callable[..., str]:
    """The function, of which each call counts the characters or parts that it is given."""

    def counted(inner: Sized, *arguments: object) -> str:
        work.done += len(inner)
        return function(inner, *arguments)

    return counted


def test_work_is_linear_in_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times a text takes about four times the work: each mark opened, closed, crossed, repeated, never closed."""
    small, large = hard_texts(40), hard_texts(160)
    lines = [[lines_run(wikitext, lambda text=one: clean_wikitext(text)) for one in texts] for texts in (small, large)]
    work = Work()
    count_patterns(monkeypatch, wikitext, work)
    for name in ("_label", "_template"):
        monkeypatch.setattr(wikitext, name, count_copies(getattr(wikitext, name), work))
    steps = [[work.of(lambda text=text: clean_wikitext(text)) for text in texts] for texts in (small, large)]
    for counts in (lines, steps):
        for text, of_small, of_large in zip(small, *counts, strict=True):
            assert of_large < 5 * of_small + 500, text[:40]
