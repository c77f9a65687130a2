"""Which addresses are left out: listed domains, words and patterns (RefinedWeb, Penedo et al. 2023, arXiv:2306.01116,
appendix G.1, as datatrove codes it).

Addresses are compared in their canonical form (`filters.addresses`), so "www." and the scheme do not count.
- A listed domain stands for its subdomains too; a single label (xxx) for a whole top-level domain.
- A word of `blocked_words` drops a page where it stands between characters that are not alphanumeric, one of
  `blocked_substrings` anywhere, also across such characters, and words of `soft_words` from their number on.
- Percent-encoded characters are decoded for words. Characters beyond ASCII count as letters, and only ASCII letters
  match in either case.
Departures: words may be phrases ("free stuff" is in free-stuff and free_stuff), and there is no list of whole
addresses: a pattern can name one. A document without an address passes; its measures are NaN.

List files are UTF-8 with an entry per line. "#" at the beginning of a line or behind a blank begins a comment. Domain
lists may be in the format of hosts files (0.0.0.0 example.com).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.config.curation import UrlConfig
from pretrainer.data.compiled import kernel
from pretrainer.data.filters.addresses import canonical_host, canonical_url, canonical_urls
from pretrainer.data.filters.normalise import as_large_string, utf8_buffers
from pretrainer.data.filters.phrases import PhraseAutomaton, phrase_automaton
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, mix64
from pretrainer.errors import ConfigError

__all__ = ["canonical_url", "canonical_urls", "check_url_config", "url_stage"]

Read = Callable[[str], bytes]
BORDER = 32
MAX_COUNTED_WORDS = 64
"""More different words of a list than this are not counted in an address."""

_COLUMNS = ("url_blocked_domain", "url_blocked_words", "url_blocked_substrings", "url_soft_words")
_SCHEME = b"https://"
_PLAIN_HOST = r"^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$"
_COMMENT = re.compile(r"(?:^|\s)#.*")
_HOSTS_LINE = re.compile(r"(?:[0-9.]+|[0-9a-f]*:[0-9a-f:]*(?:%\w+)?)\s+(?=\S)")
_NOT_WORD = re.compile(r"[^a-z0-9\x80-\U0010ffff]+")


class _Tables(NamedTuple):
    domains: np.ndarray  # [D] uint64, hashes in order: 8 bytes per domain
    words: PhraseAutomaton
    substrings: PhraseAutomaton
    soft_words: PhraseAutomaton


def url_stage(config: UrlConfig, read: Read) -> Stage:
    """The stage of a config; `read` gives the bytes of a list that it names."""
    tables = _read_tables(config, read)

    def measure(docs: pa.Table) -> Measured:
        return _measures(docs.column("url"), tables, config.blocked_patterns), docs

    blocked = [Rule(name, name, most=0) for name in (*_COLUMNS[:3], "url_blocked_pattern")]
    return Stage("url", measure, (*blocked, Rule("url_soft_words", "url_soft_words", most=config.max_soft_words)))


def check_url_config(config: UrlConfig, read: Read | None = None) -> None:
    """ConfigError about a pattern that RE2 does not know and, given the lists, about a line that is no entry."""
    for pattern in config.blocked_patterns:
        try:
            pc.match_substring_regex(pa.array([""]), pattern)
        except pa.ArrowInvalid as error:
            raise ConfigError(
                f"data.url.blocked_patterns={pattern!r} is not possible: {error}; write it as RE2 knows it "
                "(without look-around and back references)"
            ) from None
    if read is not None:
        _read_tables(config, read)


def _measures(urls: pa.Array | pa.ChunkedArray, tables: _Tables, patterns: tuple[str, ...]) -> dict[str, np.ndarray]:
    array = as_large_string(urls)
    canonical = canonical_urls(array)
    data, offsets = utf8_buffers(canonical)
    counts = np.zeros((len(canonical), len(_COLUMNS)), np.int64)
    _match(data, offsets, tables.domains, *tables.words, *tables.substrings, *tables.soft_words, counts)
    hits = [pc.match_substring_regex(canonical, pattern).to_numpy(zero_copy_only=False) for pattern in patterns]
    found = dict(zip(_COLUMNS, counts.T.astype(np.float64), strict=True))
    found["url_blocked_pattern"] = np.sum(hits, axis=0, dtype=np.float64) if hits else np.zeros(len(canonical))
    nowhere = np.diff(offsets) == 0
    return {name: np.where(nowhere, np.nan, values) for name, values in found.items()}


def _read_tables(config: UrlConfig, read: Read) -> _Tables:
    hashes = [_hash_domains(*_lines(uri, read, "blocked_domains")) for uri in config.blocked_domains]
    words, substrings, soft = (
        [_word(*entry) for uri in getattr(config, name) for entry in _entries(*_lines(uri, read, name))]
        for name in ("blocked_words", "blocked_substrings", "soft_words")
    )
    return _Tables(
        np.unique(np.concatenate([np.empty(0, np.uint64), *hashes])),
        phrase_automaton(f" {word} " for word in words),
        phrase_automaton(word.replace(" ", "") for word in substrings),
        phrase_automaton(f" {word} " for word in soft),
    )


def _lines(uri: str, read: Read, field: str) -> tuple[pa.LargeStringArray, str]:
    """(lines, name of the list for messages). Raises ConfigError where the file is no UTF-8."""
    where = f"data.url.{field}: {uri}"
    try:
        text = read(uri).decode("utf-8-sig").replace("\r", "")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): convert the list") from None
    return pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten(), where


def _entries(lines: pa.LargeStringArray, where: str, numbers: Iterable[int] | None = None) -> Iterator[tuple[str, str]]:
    """(entry, where it stands) of the lines with these numbers, or of all."""
    for number in range(len(lines)) if numbers is None else numbers:
        line = lines[number].as_py()
        entry = _COMMENT.sub("", line).strip()
        if entry:
            yield entry, f"{where}, line {number + 1}"


def _hash_domains(lines: pa.LargeStringArray, where: str) -> np.ndarray:
    """[D] uint64. Lines that are hosts as they stand, nearly all of a list, become no Python objects."""
    plain = pc.and_not(pc.match_substring_regex(lines, _PLAIN_HOST), pc.starts_with(lines, "www."))
    others = np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
    hosts = [_domain(*entry) for entry in _entries(lines, where, others)]
    return np.concatenate([_hashes(lines.filter(plain)), _hashes(pa.array(hosts, pa.large_string()))])


def _hashes(hosts: pa.LargeStringArray) -> np.ndarray:
    data, offsets = utf8_buffers(hosts)
    out = np.empty(len(hosts), np.uint64)
    _hash_backwards(data, offsets, out)
    return out


def _domain(entry: str, where: str) -> str:
    host = canonical_host(_HOSTS_LINE.sub("", entry, count=1).removeprefix("*").removeprefix("."))
    if host is None:
        raise ConfigError(f"{where}: {entry!r} is no domain: write one per line, for example example.com")
    return host


def _word(entry: str, where: str) -> str:
    """Letters and digits of an entry, with one blank in the place of what stands between them."""
    word = _NOT_WORD.sub(" ", entry.lower()).strip()
    if not word:
        raise ConfigError(f"{where}: {entry!r} has neither letters nor digits: remove the line")
    return word


@kernel()
def _hash_backwards(data: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """FNV-1a from the last byte to the first: the hashes of all suffixes of a host come in one pass."""
    for i in range(offsets.size - 1):
        h = FNV_OFFSET
        for at in range(offsets[i + 1] - 1, offsets[i] - 1, -1):
            h = (h ^ np.uint64(data[at])) * FNV_PRIME
        out[i] = mix64(h)


@kernel()
def _begins_with_scheme(url: np.ndarray) -> bool:
    for i in range(len(_SCHEME)):
        if url[i] != _SCHEME[i]:
            return False
    return True


@kernel()
def _is_listed(url: np.ndarray, table: np.ndarray) -> bool:
    """Whether the host of a canonical address, or a suffix of its labels, is in a table of hashes."""
    begin = len(_SCHEME)
    if not (url.size > begin and _begins_with_scheme(url)):
        return False
    end = begin
    while end < url.size and url[end] != 0x2F and url[end] != 0x3A and url[end] != 0x3F:
        end += 1
    h = FNV_OFFSET
    for at in range(end - 1, begin - 1, -1):
        h = (h ^ np.uint64(url[at])) * FNV_PRIME
        if at == begin or url[at - 1] == 0x2E:
            found = mix64(h)
            place = np.searchsorted(table, found)
            if place < table.size and table[place] == found:
                return True
    return False


@kernel()
def _hex(byte: int) -> int:
    """Value of a hexadecimal digit, -1 for another character."""
    if 0x30 <= byte <= 0x39:
        return byte - 0x30
    low = byte | 0x20
    return low - 0x57 if 0x61 <= low <= 0x66 else -1


@kernel()
def _to_words(url: np.ndarray, out: np.ndarray) -> int:
    """Letters and digits of an address, percent-encoding undone, a BORDER at both ends and between them: its length."""
    out[0], size, i = BORDER, 1, 0
    while i < url.size:
        byte = np.int64(url[i])
        i += 1
        if byte == 0x25 and i + 1 < url.size and _hex(url[i]) >= 0 and _hex(url[i + 1]) >= 0:
            byte, i = _hex(url[i]) * 16 + _hex(url[i + 1]), i + 2
        if byte >= 0x80 or 0x30 <= byte <= 0x39 or 0x61 <= (byte | 0x20) <= 0x7A:
            out[size], size = byte, size + 1
        elif out[size - 1] != BORDER:
            out[size], size = BORDER, size + 1
    if out[size - 1] != BORDER:
        out[size], size = BORDER, size + 1
    return size


@kernel()
def _count_phrases(
    text: np.ndarray, classes: np.ndarray, moves: np.ndarray, phrase: np.ndarray, shorter: np.ndarray,
    seen: np.ndarray, borders: bool,
) -> int:  # fmt: skip
    """How many different phrases are in a text, up to seen.size; without its borders where `borders` is false."""
    state, count = 0, 0
    for byte in text:
        if byte == BORDER and not borders:
            continue
        state = moves[state, classes[byte]]
        spelt = state if phrase[state] >= 0 else shorter[state]
        while spelt > 0 and count < seen.size:
            known = False
            for other in seen[:count]:
                known |= other == phrase[spelt]
            if not known:
                seen[count], count = phrase[spelt], count + 1
            spelt = shorter[spelt]
    return count


@kernel()
def _match(
    data: np.ndarray, offsets: np.ndarray, domains: np.ndarray,
    classes: np.ndarray, moves: np.ndarray, phrase: np.ndarray, shorter: np.ndarray,
    sub_classes: np.ndarray, sub_moves: np.ndarray, sub_phrase: np.ndarray, sub_shorter: np.ndarray,
    soft_classes: np.ndarray, soft_moves: np.ndarray, soft_phrase: np.ndarray, soft_shorter: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """out [N, 4]: the columns of _COLUMNS."""
    words, seen = np.empty(1024, np.uint8), np.empty(MAX_COUNTED_WORDS, np.int32)
    for i in range(offsets.size - 1):
        url = data[offsets[i] : offsets[i + 1]]
        if url.size + 2 > words.size:
            words = np.empty(2 * url.size + 2, np.uint8)
        text = words[: _to_words(url, words)]
        out[i, 0] = _is_listed(url, domains)
        out[i, 1] = _count_phrases(text, classes, moves, phrase, shorter, seen, True)
        out[i, 2] = _count_phrases(text, sub_classes, sub_moves, sub_phrase, sub_shorter, seen, False)
        out[i, 3] = _count_phrases(text, soft_classes, soft_moves, soft_phrase, soft_shorter, seen, True)
