"""From the URIs of a source to its shards, and the manifest that freezes them for a run.

The order of a source is the order of its shards sorted by path below the source root, so equal content at another
URI or on another store has the same order. Units, the pieces that read tasks get, are in `units`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pretrainer.config import SourceConfig
from pretrainer.data.readers import path_list
from pretrainer.data.readers.units import Permutation, Piece, UnitPlan, order_key, permute
from pretrainer.errors import SourceError
from pretrainer.schema import from_ipc, to_ipc
from pretrainer.storage import Entry, Store, redact

__all__ = ["Manifest", "Permutation", "Piece", "Shard", "UnitPlan", "list_shards", "order_key", "permute"]

log = logging.getLogger(__name__)

STDLIB_URI = "python-stdlib://"
STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "__pycache__", "lib-dynload"})
STDLIB_SUFFIXES = (".py", ".txt", ".rst", ".md")
"""What the built-in source reads when `include` is empty: installed Pythons also hold binary files."""
_MAGIC = re.compile(r"[*?\[]")

SHARDS = pa.schema([
    ("source", pa.int32()),
    ("root", pa.large_string()),
    ("path", pa.large_string()),
    ("size", pa.int64()),
    ("version", pa.large_string()),
])


@dataclass(frozen=True, slots=True)
class Shard:
    """One input object: posix path below `root`, size in bytes, version (etag or mtime), URI of the source root."""

    path: str
    size: int
    version: str
    root: str


def list_shards(source: SourceConfig) -> list[Shard]:
    """The shards of a source, by URI in the order given and sorted by path below each.

    A URI is a file, a folder (read recursively; names beginning with '.' or '_' are skipped, files and folders
    alike), a glob (`*`, `?`, `[…]` within a name, `**` across folders; names beginning with '.' are skipped),
    python-stdlib:// (the interpreter's standard library without installed packages) or a list of paths, see
    `path_list`. `include` keeps suffixes, `max_bytes` whole shards until the next one would pass it, but at least one.
    SourceError if nothing is left.
    """
    shards = [shard for uri in source.uris for shard in _shards_at(uri, source)]
    _refuse_repeats(source.name, shards)
    return _capped(shards, source.max_bytes)


def _refuse_repeats(source: str, shards: Sequence[Shard]) -> None:
    places = {root: Store(root).location for root in {shard.root: None for shard in shards}}
    seen: set[tuple[str, str, str]] = set()
    for shard in shards:
        place = places[shard.root]
        address = (place.scheme, place.query, f"{place.path.rstrip('/')}/{shard.path}")
        if address in seen:
            raise SourceError(f"source {source}: {redact(address[2])} is matched by two of its uris: name it in one")
        seen.add(address)


def _shards_at(uri: str, source: SourceConfig) -> list[Shard]:
    include = source.include or (STDLIB_SUFFIXES if uri.startswith(STDLIB_URI) else ())
    if uri.startswith(path_list.SCHEME):
        root, entries = path_list.listed_shards(uri, include, source.max_bytes)
    else:
        root, entries = _found(uri)
    kept = [entry for entry in entries if not include or entry.path.endswith(tuple(include))]
    if not kept:
        raise SourceError(_nothing_found(uri, source, include, entries))
    return [Shard(entry.path, entry.size, entry.version, root) for entry in sorted(kept)]


def _found(uri: str) -> tuple[str, list[Entry]]:
    """(root URI, objects below it) of one URI."""
    if uri.startswith(STDLIB_URI):
        return uri, _stdlib_entries(Store(uri))
    store = Store(uri)
    where = store.location
    if _MAGIC.search(where.path) and not store.exists():
        root, pattern = _split_glob(store)
        matches = glob_regex(pattern).fullmatch
        return root.uri, [entry for entry in root.list() if matches(entry.path) and not _has_name(entry.path, ".")]
    if store.exists():
        parent, _, name = where.path.rpartition("/")
        size, version = store.stat()[1:]
        return Store(type(where)(where.scheme, parent or "/", where.query).uri).uri, [Entry(name, size, version)]
    entries = store.list()
    kept = [entry for entry in entries if not _has_name(entry.path, "._")]
    if len(kept) < len(entries):
        skipped = len(entries) - len(kept)
        log.info("%s: %d files with a name beginning with '.' or '_' are skipped", redact(uri), skipped)
    return store.uri, kept


def _stdlib_entries(store: Store) -> list[Entry]:
    """The version is Python's, not the mtime, so that another node with the same Python has the same shards."""
    version = f"python-{platform.python_version()}"
    kept = (entry for entry in store.list() if STDLIB_SKIPPED.isdisjoint(entry.path.split("/")))
    return [entry._replace(version=version) for entry in kept]


def _has_name(path: str, first_characters: str) -> bool:
    return any(name[0] in first_characters for name in path.split("/") if name)


def _split_glob(store: Store) -> tuple[Store, str]:
    """(the folder in front of the first name with a glob character, the pattern below it)."""
    where = store.location
    names = where.path.split("/")
    first = next(i for i, name in enumerate(names) if _MAGIC.search(name))
    return Store(type(where)(where.scheme, "/".join(names[:first]) or "/", where.query).uri), "/".join(names[first:])


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Regular expression of a glob as in bash with globstar: `**/` is any number of folders, `*` stays in a name."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    try:
        return re.compile("".join(known.get(part) or _class_or_literal(part) for part in parts), re.DOTALL)
    except re.error as error:
        raise SourceError(f"the glob {pattern!r} has a bad [class] ({error}): mend it") from None


def _class_or_literal(part: str) -> str:
    if len(part) < 3 or part[0] != "[" or part[-1] != "]":
        return re.escape(part)
    negated = part[1] in "!^"
    characters = part[2 if negated else 1 : -1].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
    return f"(?!/)[{'^' if negated else ''}{characters}]"


def _capped(shards: Sequence[Shard], max_bytes: int | None) -> list[Shard]:
    total = 0
    for index, shard in enumerate(shards):
        total += shard.size
        if max_bytes is not None and total > max_bytes:
            return list(shards[: max(1, index)])
    return list(shards)


def _nothing_found(uri: str, source: SourceConfig, include: Sequence[str], entries: Sequence[Entry]) -> str:
    where = f"source {source.name}: nothing to read at {redact(uri)}"
    if uri.startswith(path_list.SCHEME):
        return f"{where}: the list names no path that ends in {', '.join(include) or 'anything'}: mend it, or `include`"
    if entries:
        example = ", ".join(entry.path for entry in sorted(entries)[:3])
        return (f"{where}: none of its {len(entries):,} files ends in {', '.join(include)} (there are {example}): "
                "mend `include`")
    if _MAGIC.search(uri.removeprefix(STDLIB_URI)):
        root, pattern = _split_glob(Store(uri))
        there = root.list()
        example = ", ".join(entry.path for entry in there[:3]) or "no files"
        return (f"{where}: no path below {redact(root.uri)} matches {pattern!r} (there: {example}"
                f"{', …' if len(there) > 3 else ''}): mend the pattern ('*' stays in one folder, '**' does not)")
    return f"{where}: it does not exist or holds no files (names beginning with '.' or '_' are skipped): check the path"


@dataclass(frozen=True)
class Manifest:
    """The frozen shards of a run: `tables[i]` has the columns of SHARDS for the source `names[i]`, in order.

    `formats[i]` is `SourceConfig.format`, which decides how shards are cut into units.
    """

    names: tuple[str, ...]
    formats: tuple[str, ...]
    tables: tuple[pa.Table, ...]

    @classmethod
    def build(cls, sources: Sequence[SourceConfig]) -> Manifest:
        """List every source; SourceError if one has no shards."""
        tables = [_table(index, list_shards(source)) for index, source in enumerate(sources)]
        return cls(tuple(s.name for s in sources), tuple(s.format for s in sources), tuple(tables))

    def shards(self, source: int) -> Iterator[Shard]:
        columns = (self.tables[source].column(name).to_pylist() for name in ("path", "size", "version", "root"))
        return (Shard(*row) for row in zip(*columns, strict=True))

    def source_bytes(self) -> list[int]:
        """|D_i|: bytes of each source's shards as listed."""
        return [sum(table.column("size").to_pylist()) for table in self.tables]

    def shard(self, source: int, index: int) -> Shard:
        row = {name: self.tables[source].column(name)[index].as_py() for name in ("path", "size", "version", "root")}
        return Shard(**row)

    def to_bytes(self) -> bytes:
        """Arrow IPC stream; equal manifests give equal bytes."""
        header = json.dumps({"names": self.names, "formats": self.formats}, sort_keys=True)
        whole = pa.concat_tables([SHARDS.empty_table(), *self.tables]).combine_chunks()
        return to_ipc(whole.replace_schema_metadata({"sources": header}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        whole = from_ipc(data)
        header = json.loads(whole.schema.metadata[b"sources"])
        index = whole.column("source").to_numpy()
        bounds = [int(index.searchsorted(i)) for i in range(len(header["names"]) + 1)]
        plain = whole.replace_schema_metadata(None)
        tables = tuple(plain.slice(a, b - a) for a, b in zip(bounds, bounds[1:], strict=False))
        return cls(tuple(header["names"]), tuple(header["formats"]), tables)

    def order_digest(self) -> str:
        """SHA-256 hex over names of sources and (path, size) of their shards: not over places and versions."""
        digest = hashlib.sha256()
        for name, table in zip(self.names, self.tables, strict=True):
            digest.update(json.dumps([name, table.num_rows]).encode())
            for path, size in zip(table.column("path").to_pylist(), table.column("size").to_pylist(), strict=True):
                digest.update(json.dumps([path, size]).encode())
        return digest.hexdigest()

    def check_unchanged(self, live: Manifest) -> None:
        """SourceError naming the first shard of this manifest that is missing or changed in a new listing.

        Shards that are only in the new listing are not part of the run. Versions compare only at the same root,
        because an mtime says nothing about an etag elsewhere.
        """
        for name, table in zip(self.names, self.tables, strict=True):
            if name not in live.names:
                raise SourceError(f"source {name} of this run is not in the config: put it back or begin a new run")
            _check_source(name, table, live.tables[live.names.index(name)])


def _table(source: int, shards: Sequence[Shard]) -> pa.Table:
    columns = {name: [getattr(shard, name) for shard in shards] for name in ("root", "path", "size", "version")}
    return pa.table({"source": pa.array([source] * len(shards), pa.int32()), **columns}, schema=SHARDS)


def _numbered(table: pa.Table) -> Iterator[tuple[tuple[str, int], tuple[str, int, str]]]:
    """((path, how often it came before), (root, size, version)): two roots may hold the same path."""
    seen: dict[str, int] = {}
    columns = (table.column(name).to_pylist() for name in ("path", "root", "size", "version"))
    for path, root, size, version in zip(*columns, strict=True):
        seen[path] = seen.get(path, -1) + 1
        yield (path, seen[path]), (root, size, version)


def _check_source(name: str, frozen: pa.Table, live: pa.Table) -> None:
    found = dict(_numbered(live))
    for key, (root, size, version) in _numbered(frozen):
        now = found.get(key)
        where = f"source {name}: shard {key[0]} below {redact(root)}"
        if now is None:
            raise SourceError(f"{where} is missing: put it back, or begin a new run")
        if now[1] != size or (now[0] == root and now[2] != version):
            raise SourceError(f"{where} changed since the run began (size {size:,} -> {now[1]:,} bytes, version "
                              f"{version} -> {now[2]}): put the old object back, or begin a new run")
