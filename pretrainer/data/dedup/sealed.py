"""Indexes of prepared sources: last month's crawl, another source. What they kept precedes everything of this stream.

A prepared run's decision segments are its index: nothing has to be exported. `data.dedup.sealed` names a run's data
folder (then every source in it counts, by name) or one ledger in it. They serve exact, near and, where it was prepared
with URLs, URL dedup; lines and repeated spans are compared inside the source alone.

Which segments count is frozen in the ledger of the source (`sealed.json`, created once), so that a sealed source that
goes on growing changes nothing for a run that has begun: it reads up to the same chunk after every restart.

Memory and time: as for documents of the stream (`memory`), in tables made for exactly so many; a restart reads all
their pages again, 4 B + sketch + 28 bytes per kept document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.dedup import DedupIndex, scheme_of, sealed_position
from pretrainer.data.ledger.pages import START, ChunkKey
from pretrainer.data.ledger.segments import IndexPart, SegmentLog, index_part
from pretrainer.errors import ConfigError, SourceError
from pretrainer.schema import from_ipc
from pretrainer.storage import Store

FROZEN = "sealed.json"


class Sealed(NamedTuple):
    """A ledger up to its chunk `end`; its kept documents and the words of their sketches."""

    uri: str
    end: str
    documents: int
    words: int

    def parts(self) -> Iterator[IndexPart]:
        """Index entries, some chunks at a time, in order."""
        end = ChunkKey.parse(self.end)
        yield from (part for part in _parts(Store(self.uri)) if part.segments[0].key <= end)


def _parts(root: Store) -> Iterator[IndexPart]:
    """Index entries of the segments of a ledger without a gap from the first on."""
    log, newest = SegmentLog(root), START
    for span in log.pages.refresh():
        newest = span.end
    # One chunk a part, because a page that is written later must not change where `end` cuts.
    for page in log.paged_index():
        yield from _chunks_of(page)
    for key, data in log.behind(newest.key):
        if not key.follows(*newest):
            return
        part = index_part(key, from_ipc(data))
        newest = newest._replace(key=key, last=part.segments[0].last)
        yield part


def _chunks_of(page: IndexPart) -> Iterator[IndexPart]:
    first = 0
    for info in page.segments:
        rows = slice(first, first + info.kept)
        yield IndexPart([info], page.positions[rows], page.sketches.select(rows))
        first += info.kept


def ledgers_at(uri: str) -> list[str]:
    """The ledgers that a URI of `data.dedup.sealed` names, by source; SourceError where there is none or a doubt."""
    store = Store(uri)
    if store.list("segments"):
        return [store.uri]
    names = sorted({entry.path.split("/")[1] for entry in store.list("ledger") if entry.path.count("/") > 1})
    sources = [name.rpartition("-")[0] for name in names]
    if not names:
        raise SourceError(f"data.dedup.sealed={uri!r}: no ledger here; name the data folder of a prepared run")
    if len(set(sources)) < len(sources):
        raise SourceError(
            f"data.dedup.sealed={uri!r}: a source was prepared with more than one config; name one of "
            f"{', '.join(store.child(f'ledger/{name}').uri for name in names)}"
        )
    return [store.child(f"ledger/{name}").uri for name in names]


def survey(config: DedupConfig) -> list[Sealed]:
    """The sealed indexes as they are now; ConfigError where one does not compare with this config."""
    return [_survey(uri, config) for named in config.sealed for uri in ledgers_at(named)]


def _survey(uri: str, config: DedupConfig) -> Sealed:
    end, documents, words = START.key, 0, 0
    for part in _parts(Store(uri)):
        _refuse_other_scheme(uri, part, config)
        end = part.segments[0].key
        documents += len(part.sketches)
        words += len(part.sketches.sketch.values) if part.sketches.sketch is not None else 0
    return Sealed(uri, end.name, documents, words)


def _refuse_other_scheme(uri: str, part: IndexPart, config: DedupConfig) -> None:
    ours, theirs = scheme_of(config), part.sketches.scheme
    if ours != theirs:
        raise ConfigError(
            f"data.dedup.sealed={uri!r} was prepared with the scheme {theirs}, this run has {ours}: use the data.dedup "
            "settings that it was prepared with, or prepare it again"
        )
    if config.url and part.sketches.urls is None:
        raise ConfigError(
            f"data.dedup.sealed={uri!r} was prepared without data.dedup.url=true, so its addresses are not known: "
            "prepare it again with it, or set data.dedup.url=false"
        )


def freeze(config: DedupConfig, ledger: Store) -> list[Sealed]:
    """The sealed indexes of a source, as they were when it first asked."""
    if not config.sealed:
        return []
    if not ledger.exists(FROZEN):
        ledger.create(FROZEN, json.dumps([*survey(config)], indent=1).encode())
    return [Sealed(*values) for values in json.loads(ledger.read(FROZEN))]


def insert_sealed(index: DedupIndex, sealed: Sequence[Sealed]) -> None:
    """Put sealed indexes into an index, in their order."""
    index.reserve(sum(each.documents for each in sealed), sum(each.words for each in sealed))
    for number, each in enumerate(sealed):
        done = 0
        for part in each.parts():
            numbers = range(done, done + len(part.sketches))
            index.insert(np.array([sealed_position(number, i) for i in numbers], np.int64), part.sketches)
            done += len(part.sketches)
