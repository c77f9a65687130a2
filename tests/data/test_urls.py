"""Canonical addresses and the URL filter: every rule, one address per drop reason, broken lists, any text.

python -m pytest -q tests/data/test_urls.py
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config.curation import UrlConfig
from pretrainer.data.filters.phrases import phrase_automaton
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.data.filters.urls import canonical_url, canonical_urls, check_url_config, url_stage
from pretrainer.errors import ConfigError

FILES = {
    "domains": (
        "# adult\nbad.org\nwww.worse.org\n*.worst.org\n0.0.0.0 ads.net # hosts\nxxx\n\nbücher.de\r\n10.0.0.1\n"
    ).encode(),
    "words": b"porn\nFree-Stuff # two words\n\xd1\x81\xd0\xb5\xd0\xba\xd1\x81\n",
    "pieces": b"xyzzy\n",
    "soft": b"hot\nsexy\nhot\nred light\n",
}
CONFIG = UrlConfig(
    blocked_domains=("domains",),
    blocked_words=("words",),
    blocked_substrings=("pieces",),
    soft_words=("soft",),
    blocked_patterns=(r"/tag/\d+$", r"^https://[a-z]+\.test/"),
)


def documents(urls: list[str]) -> pa.Table:
    return pa.table({"url": pa.array(urls, pa.large_string())})


def run(urls: list[str], config: UrlConfig = CONFIG, files: dict[str, bytes] = FILES) -> Verdict:
    return run_stages(documents(urls), [url_stage(config, files.__getitem__)], annotate=("url",))


CANONICAL = [
    ("HTTP://WWW.Example.COM/A", "https://example.com/A"),
    ("http://example.com:80", "https://example.com/"),
    ("https://example.com:443/", "https://example.com/"),
    ("https://example.com:08080/a", "https://example.com:8080/a"),
    ("https://user:p@ss@example.com./a", "https://example.com/a"),
    ("//example.com/a", "https://example.com/a"),
    ("www.example.com/a", "https://example.com/a"),
    ("http://www.com/", "https://www.com/"),
    ("http://www2.example.com/", "https://www2.example.com/"),
    ("http://BÜCHER.de/", "https://xn--bcher-kva.de/"),
    ("http://xn--bcher-kva.de/", "https://xn--bcher-kva.de/"),
    ("https://a.com/./b/../c/%2e%2E/d/.", "https://a.com/d"),
    ("https://a.com/../..", "https://a.com/"),
    ("https://a.com/%7euser/%c3%a9/é/%/a b", "https://a.com/~user/%C3%A9/%C3%A9/%25/a%20b"),
    ("https://a.com/%2F", "https://a.com/%2F"),
    ("https://a.com/b//c//", "https://a.com/b//c"),
    ("https://a.com/b;jsessionid=0A?x=1", "https://a.com/b?x=1"),
    ("https://a.com/?b=2&a=1&b=1", "https://a.com/?a=1&b=2&b=1"),
    ("https://a.com/?utm_source=x&UTM_Medium=y&gclid=1&fbclid=2&PHPSESSID=3&sessionid=4&id=5", "https://a.com/?id=5"),
    ("https://a.com/?a=1&amp;utm_source=x&amp;b=2", "https://a.com/?a=1&b=2"),
    ("https://a.com/?&&#top", "https://a.com/"),
    ("https://a.com?q=A+b%20C", "https://a.com/?q=A+b%20C"),
    (" https://a.com/b\n/c\t ", "https://a.com/b/c"),
    # No address of the web: as it is.
    ("", ""),
    ("ftp://A.com/", "ftp://A.com/"),
    ("Makefile.In", "Makefile.In"),
    ("mailto:a@b.c", "mailto:a@b.c"),
    ("http://", "http://"),
    ("http://a..b/", "http://a..b/"),
    ("http://a b.com/", "http://a b.com/"),
    ("http://a.com:x/", "http://a.com:x/"),
    ("http://[::1]/", "http://[::1]/"),
    ("http://ａ／b.com/", "http://ａ／b.com/"),
]


@pytest.mark.parametrize(("url", "canonical"), CANONICAL)
def test_canonical_form(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical


def test_canonical_column() -> None:
    urls, expected = zip(*CANONICAL, strict=True)
    found = canonical_urls(pa.chunked_array([pa.array(urls[:9]), pa.array(urls[9:])]))
    assert found.type == pa.large_string() and found.to_pylist() == list(expected)


PIECES = st.sampled_from(
    [
        "http:",
        "HTTPS:",
        "//",
        "/",
        "www.",
        "a",
        "B.com",
        "ü",
        ".",
        "..",
        "%2e",
        "%2F",
        "%",
        "%zz",
        "?",
        "&",
        "=",
        "amp;",
    ]
    + [
        "utm_x=1",
        ";jsessionid=",
        ";",
        ":",
        ":80",
        "@",
        "#",
        " ",
        "\n",
        "\0",
        "。",
        "ß",
        "ａ",
        "İ",
        "xn--",
        "+",
        "\ud800",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=30).map("http://".__add__), st.text()))
def test_canonical_form_is_stable(url: str) -> None:
    once = canonical_url(url)
    assert canonical_url(once) == once


def test_long_and_hostile_addresses_take_linear_time() -> None:
    for piece in ("a.", "ü", "/a/..", "/", "&a=;", "%41", "@", ";jsessionid=", "#", "\t"):
        for begin in ("http://", "http://a.com/", "http://a.com/?"):
            once = canonical_url(begin + piece * 30_000)
            assert canonical_url(once) == once
    assert run(["http://a.com/" + "porn/" * 2_000_000]).reasons == ["url_blocked_words"]


# (reason, last address that passes, first that does not)
LIMITS = [
    ("url_blocked_domain", "https://notbad.org/", "https://bad.org/"),
    ("url_blocked_domain", "https://bad.org.com/", "http://www.a.b.bad.org:81/x?y"),
    ("url_blocked_domain", "https://a.com/bad.org", "https://bad.org?x"),
    ("url_blocked_domain", "https://worse.com/", "https://worse.org/"),
    ("url_blocked_domain", "https://notworst.org/", "https://www.worst.org/"),
    ("url_blocked_domain", "https://0.0.0.0/", "https://ads.net"),
    ("url_blocked_domain", "https://xxx.com/", "https://a.xxx/"),
    ("url_blocked_domain", "https://bucher.de/", "https://bücher.de/"),
    ("url_blocked_domain", "https://210.0.0.1/", "https://10.0.0.1/"),
    ("url_blocked_domain", "bad.org", "www.bad.org"),
    ("url_blocked_words", "https://a.com/pornography", "https://a.com/x-PORN.html"),
    ("url_blocked_words", "https://aporn.com/", "https://porn.com/"),
    ("url_blocked_words", "https://a.com/free/my/stuff", "https://a.com/free_stuff"),
    ("url_blocked_words", "https://a.com/%70ornx", "https://a.com/?q=a%20%70orn"),
    ("url_blocked_words", "https://a.com/секса", "https://a.com/секс"),
    ("url_blocked_substrings", "https://a.com/xyzy", "https://axyz-zyb.com/"),
    ("url_soft_words", "https://hot.com/hot/hots", "https://hot.com/sexy"),
    ("url_soft_words", "https://a.com/red/lights/hot", "https://a.com/red/light/hot"),
    ("url_blocked_pattern", "https://a.com/tag/1a", "https://a.com/tag/12/"),
    ("url_blocked_pattern", "https://a.b.test/", "http://a.test"),
]


@pytest.mark.parametrize(("reason", "passes", "fails"), LIMITS)
def test_limits(reason: str, passes: str, fails: str) -> None:
    assert run([passes, fails]).reasons == [None, reason]


def test_measures_count_and_documents_without_address_pass() -> None:
    verdict = run(["", "https://a.com/porn/free/stuff/porn/hot", "ftp://porn"])
    assert verdict.reasons == [None, "url_blocked_words", "url_blocked_words"]
    assert np.isnan([values[0] for values in verdict.measures.values()]).all()
    assert verdict.measures["url_blocked_words"][1:].tolist() == [2, 1]
    assert verdict.measures["url_soft_words"][1:].tolist() == [1, 0]


def test_soft_limit_is_the_configured_one() -> None:
    for most, reason in ((0, "url_soft_words"), (1, None)):
        assert run(["https://a.com/hot"], UrlConfig(soft_words=("soft",), max_soft_words=most)).reasons == [reason]


def test_words_that_end_together_all_count() -> None:
    files = {"list": b"red light\nlight\nd lig\n"}
    measures = run(["https://a.com/red-light"], UrlConfig(soft_words=("list",)), files).measures
    assert measures["url_soft_words"].tolist() == [2]


def test_batches_do_not_matter() -> None:
    urls = ["", *(url for _reason, *pair in LIMITS for url in pair)]
    whole = run(urls).measures
    for i, url in enumerate(urls):
        one = run([url]).measures
        assert all(np.array_equal(one[name], whole[name][i : i + 1], equal_nan=True) for name in whole)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(), max_size=4))
def test_any_text_is_measured(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert len(run(texts).reasons) == len(texts)


def test_many_domains() -> None:
    names = [f"site{i}.{end}" for i in range(2_000) for end in ("com", "co.uk")]
    config, files = UrlConfig(blocked_domains=("list",)), {"list": "\n".join(names).encode()}
    urls = [f"https://{prefix}site{i}.{end}/" for i in (0, 7, 1_999, 2_000) for end in ("com", "co.uk", "org")
            for prefix in ("", "a.b.", "a")]  # fmt: skip
    expected = [any(url[8:-1] == name or url[8:-1].endswith("." + name) for name in names) for url in urls]
    found = run(urls, config, files).measures["url_blocked_domain"]
    assert found.tolist() == [float(blocked) for blocked in expected] and 0 < sum(expected) < len(urls)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abAB", min_size=1, max_size=4), max_size=8), st.text("abABc", max_size=20))
def test_phrase_automaton_finds_what_a_search_finds(phrases: list[str], text: str) -> None:
    classes, moves, spelt, shorter = phrase_automaton(phrases)
    state, found = 0, set()
    for byte in text.encode():
        state = moves[state, classes[byte]]
        end = state
        while end:
            found |= {phrases[spelt[end]].lower()} if spelt[end] >= 0 else set()
            end = shorter[end]
    assert found == {phrase.lower() for phrase in phrases if phrase.lower() in text.lower()}


@pytest.mark.parametrize("pattern", ["(", r"(?=a)", r"(a)\1"])
def test_bad_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.url\.blocked_patterns=.* is not possible: .*RE2"):
        check_url_config(UrlConfig(blocked_patterns=("fine", pattern)))


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        (
            "blocked_domains",
            b"a.com\nhttp://b.com/\n",
            r"data\.url\.blocked_domains: list, line 2: 'http://b.com/' is no",
        ),
        ("blocked_domains", b"a.com b.com", "line 1: 'a.com b.com' is no domain"),
        ("blocked_words", b"a\n\n---\n", "line 3: '---' has neither letters nor digits"),
        ("soft_words", b"a\xff", "soft_words: list is not UTF-8 .* at byte 1"),
    ],
)
def test_bad_list_is_refused(field: str, content: bytes, message: str) -> None:
    lists: dict[str, Any] = {field: ("list",)}
    config = UrlConfig(**lists)
    check_url_config(config)
    with pytest.raises(ConfigError, match=message):
        check_url_config(config, {"list": content}.__getitem__)


def test_sound_config_is_accepted() -> None:
    check_url_config(CONFIG, FILES.__getitem__)
    assert CONFIG.is_on and not UrlConfig().is_on
    assert sorted(CONFIG.files) == sorted(FILES)


def test_counting_stops_somewhere() -> None:
    """64 different words are enough for every limit that makes sense."""
    letters = [a + b for a in string.ascii_lowercase for b in "xyz"]
    config, files = UrlConfig(soft_words=("list",)), {"list": "\n".join(letters).encode()}
    assert run(["https://a.com/" + "/".join(letters)], config, files).measures["url_soft_words"].tolist() == [64]
