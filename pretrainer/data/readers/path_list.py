"""Shards that are named by a list, where the store cannot be listed, as with Common Crawl.

    paths+https://data.commoncrawl.org/crawl-data/CC-MAIN-2025-05/warc.paths.gz
    paths+~/my.paths?prefix=s3://commoncrawl
    paths+~/my.paths?prefix=s3://bucket/folder?region=us-east-1%26anonymous=true

The list has one path per line and may be compressed; blank lines and lines beginning with # are skipped. Paths are
below `prefix`, or without one below the bucket or server (for a local list: the folder) that the list is on. Sizes come
from asking for each shard, REQUESTS at a time, and only for as many as `max_bytes` lets in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import unquote

from pretrainer.data.readers.decompress import CorruptStreamError, decompressed
from pretrainer.data.readers.units import COMPRESSIONS
from pretrainer.errors import SourceError
from pretrainer.storage import Entry, Store, redact

SCHEME = "paths+"
PREFIX = "prefix="
REQUESTS = 32


def listed_shards(uri: str, suffixes: Sequence[str], max_bytes: int | None) -> tuple[str, list[Entry]]:
    """(root, shards sorted by path) of a paths+ URI; none where `suffixes` (all if empty) leaves none."""
    place, root = split_uri(uri)
    paths = [path for path in read_list(place) if not suffixes or path.endswith(tuple(suffixes))]
    return root.uri, list(_found(place, root, sorted(set(paths)), max_bytes))


def split_uri(uri: str) -> tuple[Store, Store]:
    """(the list, where its paths are below)."""
    rest = uri.removeprefix(SCHEME)
    for mark in ("?", "&"):
        place, found, prefix = rest.partition(mark + PREFIX)
        if found:
            return Store(place), Store(unquote(prefix))
    store = Store(rest)
    where = store.location
    root = where.path.rpartition("/")[0] if where.scheme == "file" else where.path.partition("/")[0]
    return store, Store(type(where)(where.scheme, root or "/", where.query).uri)


def read_list(store: Store) -> list[str]:
    """The paths of a list in its order."""
    compression = COMPRESSIONS.get(store.location.path.rpartition(".")[2])
    try:
        data = b"".join(decompressed(iter([store.read()]), compression))
        lines = [line.strip() for line in data.decode("utf-8").splitlines()]
    except FileNotFoundError:
        raise SourceError(f"the list of paths {redact(store.uri)} does not exist: check its address") from None
    except (CorruptStreamError, UnicodeDecodeError) as error:
        raise SourceError(f"the list of paths {redact(store.uri)} cannot be read ({error}): get it again") from None
    paths = [line for line in lines if line and not line.startswith("#")]
    for path in paths:
        if "://" in path or path.startswith("/") or ".." in path.split("/"):
            raise SourceError(f"the list of paths {redact(store.uri)} has {redact(path)!r}: paths must be relative, "
                              "what stands before all of them goes into ?prefix=…")
    return paths


def _found(place: Store, root: Store, paths: Sequence[str], max_bytes: int | None) -> Iterator[Entry]:
    total = 0
    with ThreadPoolExecutor(REQUESTS) as pool:
        for begin in range(0, len(paths), REQUESTS):
            asked = paths[begin : begin + REQUESTS]
            for path, entry in zip(asked, pool.map(partial(_stat, root), asked), strict=True):
                if entry is None:
                    raise SourceError(f"{redact(root.uri)} has no {path}, which the list of paths {redact(place.uri)} "
                                      "names: mend the list or its ?prefix=…")
                yield entry
                total += entry.size
            if max_bytes is not None and total > max_bytes:
                return


def _stat(root: Store, path: str) -> Entry | None:
    try:
        return root.stat(path)
    except FileNotFoundError:
        return None
