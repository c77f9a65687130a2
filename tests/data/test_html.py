"""HTML to text: the process that may be killed, the counted limits in front of it, the methods, and the reader."""

from __future__ import annotations

import gzip
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import ExtractConfig, SourceConfig
from pretrainer.data.readers import extract, prescan
from pretrainer.data.readers.charset import codec_of, decode_page
from pretrainer.data.readers.extract import Extractor, Verdict, extract_pages
from pretrainer.data.readers.extract_worker import METHODS, by_both, by_resiliparse, by_trafilatura
from pretrainer.data.readers.formats import read_unit
from pretrainer.data.readers.prescan import measure_page
from pretrainer.data.readers.units import Piece
from pretrainer.errors import ConfigError, UserError
from pretrainer.schema import ChunkReport
from tests.work import CountedBytes, Work, interpret_kernels

HOSTILE = "tests.data.hostile_extractor"
QUICK = ExtractConfig(timeout_s=0.3, memory_bytes=2**29)
PARAGRAPHS = (f"<p>Paragraph {i} of the text says something that is worth it.</p>" for i in range(9))
ARTICLE = f"<h1>A title</h1>{''.join(PARAGRAPHS)}"
NAV = "<ul>" + "".join(f"<li><a href='/{i}'>A link to page {i}</a></li>" for i in range(30)) + "</ul>"


@pytest.fixture
def hostile() -> Iterator[Extractor]:
    extractor = Extractor(QUICK, HOSTILE)
    yield extractor
    extractor.close()


def answers(extractor: Extractor, *pages: str) -> list[str]:
    """Text or reason of each page."""
    return [verdict.reason or verdict.text or "" for verdict in extractor.extract([page.encode() for page in pages])]


# ----------------------------------------------------------------------------------------------------- the process


def test_answers_come_in_order_and_one_process_serves_all(hostile: Extractor) -> None:
    assert answers(hostile, "a", "zwölf €", "empty", "b") == ["a", "zwölf €", "extraction_empty", "b"]
    assert answers(hostile, "count") == ["5"] and hostile.starts == 1
    assert hostile.extract([]) == []


@pytest.mark.parametrize(("page", "reason", "says"), [
    ("loop", "extraction_timeout", "more than 0.3 s of CPU time"),
    ("eat", "extraction_memory", "536,870,912 bytes"),
    ("crash", "extraction_crashed", "SIGSEGV"),
    ("exit", "extraction_crashed", "exit code 3"),
])  # fmt: skip
def test_the_guilty_page_is_named_and_its_neighbours_are_not(
    page: str, reason: str, says: str, hostile: Extractor
) -> None:
    verdicts = hostile.extract([b"before", page.encode(), b"after"])
    assert [verdict.text for verdict in verdicts] == ["before", None, "after"]
    assert verdicts[1].reason == reason and says in verdicts[1].detail
    assert hostile.starts == 3  # in the batch, alone, and for the page behind it


def test_an_error_of_the_extractor_costs_no_process(hostile: Extractor) -> None:
    verdicts = hostile.extract([b"raise some reason", b"after"])
    assert verdicts == [Verdict(None, "extraction_failed", "RuntimeError: some reason"), Verdict("after")]
    assert hostile.starts == 1


def test_what_a_library_prints_is_no_answer(hostile: Extractor) -> None:
    assert answers(hostile, "print", "after") == ["print", "after"]


def test_a_process_that_hangs_without_using_cpu_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "WALL_TIMES", 2)
    extractor = Extractor(ExtractConfig(timeout_s=0.5), HOSTILE)
    assert answers(extractor, "a", "sleep", "b") == ["a", "extraction_timeout", "b"]
    extractor.close()


@pytest.mark.parametrize(("times", "answer"), [(1, "killed"), (3, "killed"), (4, "extraction_memory")])
def test_a_kill_by_the_system_is_forgiven_before_the_page_is_blamed(
    times: int, answer: str, hostile: Extractor, tmp_path: Path
) -> None:
    (tmp_path / "left").write_bytes(b"x" * times)
    found = answers(hostile, "a", f"killed {tmp_path / 'left'}", "b")
    assert found[0] == "a" and found[2] == "b" and found[1].startswith(answer)


def test_a_leak_of_earlier_pages_is_not_blamed_on_a_page(hostile: Extractor) -> None:
    assert answers(hostile, "a", "leak", "b") == ["a", "leak", "b"] and hostile.starts == 2


def test_the_process_is_replaced_after_so_many_pages() -> None:
    extractor = Extractor(ExtractConfig(recycle_pages=3), HOSTILE)
    assert answers(extractor, *["count"] * 8) == ["1", "2", "3", "1", "2", "3", "1", "2"]
    assert extractor.starts == 3
    extractor.close()


def test_a_process_that_died_between_batches_is_replaced(hostile: Extractor) -> None:
    (pid,) = answers(hostile, "pid")
    os.kill(int(pid), signal.SIGKILL)
    assert answers(hostile, "a", "b") == ["a", "b"]


def test_the_process_ends_with_its_owner(hostile: Extractor) -> None:
    (pid,) = answers(hostile, "pid")
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
    process = hostile._process
    assert process is not None and process.stdin is not None
    process.stdin.close()  # as when the owner is killed
    assert process.wait(60) == 0


@pytest.mark.parametrize(("config", "worker", "says"), [
    (ExtractConfig(), "tests.data.no_such_module", "exit code 1"),
    (ExtractConfig(memory_bytes=2**28), "tests.data.no_memory", ""),
])  # fmt: skip
def test_a_process_that_cannot_start_is_no_verdict(config: ExtractConfig, worker: str, says: str) -> None:
    with pytest.raises(UserError, match=f"does not start .*{says}"):
        Extractor(config, worker).extract([b"a"])


def test_bad_limits_are_refused() -> None:
    for name, value in (("timeout_s", 0), ("memory_bytes", 1000), ("recycle_pages", 0), ("max_depth", 0)):
        with pytest.raises(ConfigError, match=f"data.extract.{name}"):
            ExtractConfig(**{name: value})  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- what no parser sees


@pytest.mark.parametrize(("page", "nodes", "depth"), [
    ("", 0, 0),
    ("text < 3 and <3 > 2", 0, 0),
    ("<div><div>x</div></div><div>", 3, 2),
    ("<DIV><Div></dIV>", 2, 2),
    ("<div>" * 200, 200, 200),
    ("<p>a<p>b<br><img src=x><hr/>", 5, 0),
    ("<ul><li>a<li>b<ul><li>c</ul><li>d</ul>", 6, 4),
    ("<table><tr><td>a<td>b<tr><td>c</table>", 6, 2),
    ("<table><tr><td><table><tr><td>x", 6, 4),
    ("<td>" * 90, 90, 1),
    ("<select><option>a<option>b</select>", 3, 2),
    ("<dl><dt>a<dd>b<dt>c</dl>", 4, 2),
    ("<b><i></b></i><b>", 3, 2),
    ("<b></i>" * 50, 50, 50),
    ("</div></div><div>", 1, 1),
    ("<script>if (a<b) '<div><div>'</script><p>", 2, 0),
    ("<script>never closed <div><div>", 1, 0),
    ("<style>a>b</style><title><div></title>", 2, 0),
    ("<!-- <div> --><!DOCTYPE html><?x <div>?>", 3, 0),
    ("<!-- never closed <div>", 1, 0),
    ("<a title='<div>' href=\"<p><div>\">x</a>", 1, 1),
    ("<a title=<div>x</a>", 1, 1),
    ("<div never closed", 1, 1),
    ("<svg>" + "<path d='M0'/>" * 9 + "<g><path></path></g></svg><div>", 13, 3),
    ("<div/><div/>", 2, 2),
])  # fmt: skip
def test_shape_of_a_page(page: str, nodes: int, depth: int) -> None:
    assert measure_page(page.encode(), 10**6, 10**4) == (nodes, depth)


def test_depth_is_that_of_a_parser() -> None:
    """Against lxml, where every element is closed: the two differ by <html>, <body> and elements that hold none."""
    from lxml import etree

    page = "<div><div>" + ARTICLE + "<section><ul><li>a</li><li><b>b</b></li></ul></section></div></div>"
    root = etree.HTML(page)
    depths = [sum(1 for _ in element.iterancestors()) + 1 for element in root.iter()]
    shape = measure_page(page.encode(), 10**6, 10**4)
    assert shape.nodes == len(depths) - 2 and shape.depth == max(depths) - 2


HUGE = {
    "page_too_deep": b"<div>" * 100_000,
    "page_too_many_nodes": b"<table>" + b"<tr>" + b"<td>x" * 200_000,
    "page_too_long": b"<p>" + b"x" * 5_000_000,
}


@pytest.mark.parametrize("reason", list(HUGE))
def test_each_counted_limit(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is asked, so that neither a clock nor a memory limit can decide."""
    monkeypatch.setattr(extract, "_extractor", None)
    (verdict,) = extract_pages([HUGE[reason]], ExtractConfig())
    assert verdict.text is None and verdict.reason == reason


@pytest.mark.parametrize(("field", "inside", "above"), [
    ("max_depth", "<b>" * 7, "<b>" * 8), ("max_nodes", "<br>" * 7, "<br>" * 8), ("max_page_bytes", "x" * 7, "x" * 8),
])  # fmt: skip
def test_limits_are_exact(field: str, inside: str, above: str) -> None:
    config = ExtractConfig(**{field: 7})  # type: ignore[arg-type]
    assert extract.refusal(inside.encode(), config) is None
    assert extract.refusal(above.encode(), config) is not None


@given(st.text("<>/!-='\"ab pdiv\n", max_size=80) | st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_shape(page: str) -> None:
    nodes, depth = measure_page(page.encode("utf-8", "replace"), 50, 20)
    assert 0 <= depth <= nodes <= 51 and nodes <= page.count("<")


def test_the_scan_reads_each_byte_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages made to be slow: a scan that began anew at every tag would read each byte once for every tag before it."""
    n = 1000
    pages = (b"<!--" * n, b"<textarea>" + b"</textare " * n, b"<a b='" * n, b"</x>" * n, b"<" * n,
             b"<div>" * 500 + b"</x>" * n, b"<!>" * n, b"<title></titl" * n, b"<a b" * n)  # fmt: skip
    shapes = [measure_page(page, 10**7, 512) for page in pages]
    interpret_kernels(monkeypatch, prescan)
    find, compared = prescan._find, Work()
    monkeypatch.setattr(prescan, "_find", lambda stack, *rest: find(CountedBytes(stack, compared), *rest))
    for page, shape in zip(pages, shapes, strict=True):
        reads, compared.done = Work(), 0
        assert prescan._scan(CountedBytes(page, reads), 10**7, 512) == shape
        assert reads.done <= 6 * len(page) and compared.done <= 512 * page.count(b"<")


# ------------------------------------------------------------------------------------------------------ the methods


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("page", ["", " ", "<html>", "<html></html>", "<", "\0", "&#0;&#xD800;", "<p>", "x" * 10])
def test_no_method_fails_on_next_to_nothing(method: str, page: str) -> None:
    assert isinstance(METHODS[method](page), str)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_finds_the_article(method: str) -> None:
    page = f"<html><body><nav>{NAV}</nav><article>{ARTICLE}</article><footer>{NAV}</footer></body></html>"
    text = METHODS[method](page)
    assert text.count("worth it") == 9 and "A link to page" not in text


def test_auto_is_resiliparse_on_a_clean_page_and_trafilatura_where_links_are_left() -> None:
    clean = f"<html><body><nav>{NAV}</nav><article>{ARTICLE}</article></body></html>"
    assert by_both(clean) == by_resiliparse(clean) != by_trafilatura(clean, fast=True)
    cards = "".join(f"<div><a href='/{i}'>Another story {i} that you may like to read</a></div>" for i in range(9))
    left = f"<html><body><div><div>{ARTICLE}</div><div>{cards}</div></div></body></html>"
    assert "Another story" in by_resiliparse(left)
    assert by_both(left) == by_trafilatura(left, fast=True) and "Another story" not in by_both(left)


def test_auto_asks_trafilatura_where_the_main_text_was_missed() -> None:
    page = f"<html><body><main><p>Short.</p></main><div class='sidebar'>{ARTICLE}</div></body></html>"
    assert len(by_resiliparse(page)) < 50 and by_both(page) != by_resiliparse(page)


def test_auto_falls_back_to_what_there_is() -> None:
    page = "<html><body><p><a href='/'>Only a link in a paragraph</a></p></body></html>"
    assert by_trafilatura(page, fast=True) == "" and by_both(page) == by_resiliparse(page) != ""
    items = f"<html><body><ul>{'<li>An item of a list that has no links</li>' * 30}</ul></body></html>"
    assert by_trafilatura(items, fast=True) == by_resiliparse(items) == ""
    assert by_both(items) == by_trafilatura(items) != ""


def test_the_text_of_a_page_does_not_depend_on_the_pages_before_it() -> None:
    """trafilatura's own deduplication drops what it has seen in the process three times."""
    page = f"<html><body><article>{ARTICLE}</article></body></html>"
    assert len({by_trafilatura(page) for _ in range(6)}) == 1 and "Paragraph 3" in by_trafilatura(page)


# ------------------------------------------------------------------------------------------------------- the reader


def read(folder: Path, files: dict[str, bytes], limit: int = 10**6) -> tuple[list[dict], ChunkReport]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    pieces = [Piece(i, str(folder), name, len(data)) for i, (name, data) in enumerate(files.items())]
    source = SourceConfig(name="web", uris=("unused",))
    (docs, report, last), = read_unit(pieces, source, 10**9, limit, 1000, extract=ExtractConfig(max_depth=100))
    assert last
    return docs.to_pylist(), report


def test_one_page_per_file(tmp_path: Path) -> None:
    page = f"<html><head><meta charset='iso-8859-1'></head><body>{ARTICLE}<p>Größe zählt ja doch.</p></body></html>"
    data = page.encode("latin-1")
    docs, report = read(tmp_path, {
        "a.html": data, "b.htm.gz": gzip.compress(data), "c.html": b"", "d.html": b"<div>" * 200,
        "e.html": b"x" * 10**6 + b"y", "f.html.gz": gzip.compress(b"x" * 2_000_000),
        "g.html.gz": gzip.compress(data)[:99], "h.html": b"y" * 10**6,
    })  # fmt: skip
    assert [(doc["id"], doc["row"], doc["url"]) for doc in docs] == [("a.html#0", 0, ""), ("b.htm.gz#0", 0, ""),
                                                                     ("h.html#0", 0, "")]  # fmt: skip
    assert docs[0]["text"] == docs[1]["text"] and "Größe" in docs[0]["text"] and "Paragraph 8" in docs[0]["text"]
    assert report.dropped == {"extraction_empty": 1}
    assert [(letter.shard, letter.reason) for letter in report.dead_letters] == [
        ("d.html", "page_too_deep"), ("e.html", "too_long"), ("f.html.gz", "too_long"), ("g.html.gz", "corrupt_shard")]
    assert report.read == 8 and report.bytes_read > 2 * len(data) + 4_000_000


@given(st.binary(max_size=60), st.sampled_from(["utf-8", "latin-1", "gb2312", "hz-gb-2312", "x", "", "\udc80", None]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_have_a_text(data: bytes, declared: str | None) -> None:
    decode_page(data, declared).encode()


@pytest.mark.parametrize(("name", "codec"), [
    ("ISO-8859-1", "cp1252"), ("'utf8'", "utf-8"), ("x-sjis", "cp932"), ("gb2312", "gb18030"), ("euc-kr", "cp949"),
    ("hz-gb-2312", "hz"), ("nonsense", None), ("rot13", None), ("zip", None), ("", None),
])  # fmt: skip
def test_names_of_charsets_are_those_of_the_web(name: str, codec: str | None) -> None:
    assert codec_of(name) == codec
