"""The one module that turns a URI into a file system.

    Store("~/runs")                                  local folder (also file://)
    Store("s3://bucket/prefix")                      pyarrow S3FileSystem for bytes, boto3 for lists and conditional PUT
    Store("s3://bucket?endpoint_override=http://h:p&region=r&anonymous=true")
    Store("gs://…" | "hf://…" | "https://…")         fsspec
    Store("python-stdlib://")                        standard library of the running interpreter, read-only

Every operation retries transient errors (SlowDown, timeouts, resets, truncated reads) after RETRY_DELAYS_S and then
raises StorageError; a missing object is FileNotFoundError at once; what a person can mend is UserError at once.
No message holds a secret: see `redact`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs

from pretrainer.errors import PretrainerError, StorageError, UserError
from pretrainer.storage_backend import Backend, Entry, Handle, TransientError
from pretrainer.storage_fsspec import FsspecBackend
from pretrainer.storage_local import LocalBackend
from pretrainer.storage_s3 import S3Backend
from pretrainer.storage_uri import Location, parse, redact

__all__ = ["Entry", "Store", "redact", "resolve_run"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Entries = list[Entry]  # Store.list hides the built-in name inside the class

RETRY_DELAYS_S: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts: about 16 s in all, without jitter so that a run stays reproducible."""
BLOCK_BYTES = 8 * 2**20
READ_ONLY_SCHEMES = ("python-stdlib", "http", "https")


def _environment(scheme: str) -> tuple[tuple[str, str], ...]:
    """The variables that decide how a backend connects: part of the key of its cache."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))) if scheme == "s3" else ()


@lru_cache(maxsize=64)
def _backend(scheme: str, authority: str, query: str, environment: tuple[tuple[str, str], ...]) -> Backend:
    if scheme in ("file", "python-stdlib"):
        return LocalBackend()
    if scheme == "s3":
        return S3Backend(authority, Location(scheme, authority, query).options)
    return FsspecBackend(scheme)


@dataclass(frozen=True, repr=False)
class Store:
    """A folder (or single object) at a URI; holds nothing but the URI, so it pickles, and connects at first use.

    Paths are posix and relative to the URI; "" is the URI itself.
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", parse(self.uri).uri)

    def __repr__(self) -> str:
        return f"Store({redact(self.uri)!r})"

    @property
    def location(self) -> Location:
        return parse(self.uri)

    @property
    def is_local(self) -> bool:
        return self.location.scheme in ("file", "python-stdlib")

    def child(self, name: str) -> Store:
        where = self.location
        path = "/".join(part for part in (where.path.rstrip("/"), name.strip("/")) if part)
        root = "/" if where.scheme == "file" and not path.startswith("/") else ""
        return Store(Location(where.scheme, root + path, where.query).uri)

    def size(self, path: str = "") -> int:
        """Bytes of one object."""
        return self._call("read", path, lambda backend, full: backend.stat(full).size)

    def stat(self, path: str = "") -> Entry:
        """(path, size in bytes, version) of one object; version is its etag, or the mtime where there is none."""
        return self._call("read", path, lambda backend, full: backend.stat(full))._replace(path=path)

    def exists(self, path: str = "") -> bool:
        """Whether there is an object of that path; a folder is no object."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "", recursive: bool = True, after: str = "") -> Entries:
        """Objects under folder `prefix` whose path in it sorts after `after`, sorted; paths relative to the store."""
        found = self._call("list", prefix, lambda backend, full: list(backend.entries(full, recursive, after)))
        lead = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        return sorted(entry._replace(path=lead + entry.path) for entry in found if entry.path > after)

    def file(self, path: str = "") -> RetryingFile:
        """A seekable binary file whose reads are retried; once it is open, errors of storage are StorageError."""
        return RetryingFile(self, path)

    def open(self, path: str = "") -> pa.NativeFile:
        """The same file for Arrow; a StorageError comes through Arrow's readers unchanged."""
        return pa.PythonFile(self.file(path), mode="r")

    def read(self, path: str = "") -> bytes:
        with self.file(path) as file:
            return file.read()

    def read_text(self, path: str = "") -> str:
        return self.read(path).decode("utf-8")

    def write(self, path: str, data: bytes) -> None:
        """Create or replace an object; readers see the old bytes or the new ones, never a part. At most 5 GB on S3."""
        self._refuse_read_only()
        self._call("write", path, lambda backend, full: backend.put(full, data))

    def create(self, path: str, data: bytes) -> bool:
        """Create an object that must not change; True if it was not there.

        Exclusive on a local disk (hard link of a synced file) and on S3 (conditional PUT); elsewhere, and on stores
        without hard links or conditional PUT, it checks and then writes. An object with the same bytes gives False
        (so may the second attempt of a PUT whose answer was lost); other bytes raise StorageError.
        """
        self._refuse_read_only()
        if self._call("write", path, lambda backend, full: backend.put_new(full, data)):
            return True
        if self.read(path) != data:
            shown = self._shown(path)
            raise StorageError(f"{shown} exists with other bytes: a record that must be deterministic changed")
        return False

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens if there is none."""
        self._refuse_read_only()
        self._call("delete", path, lambda backend, full: backend.delete(full))

    def train_storage(self) -> tuple[str, pa.fs.FileSystem | None]:
        """(path without scheme, file system or None): storage_path and storage_filesystem of Ray Train's RunConfig."""
        if self.location.scheme == "file":
            return self.location.path, None
        return self._call("open", "", lambda backend, full: (backend.arrow_path(full), backend.arrow()))

    def check_writable(self) -> None:
        """Create and delete a probe object; UserError says what is wrong (bucket, credentials, permission)."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"probe")
            self.delete(probe)
        except FileNotFoundError as error:
            raise UserError(f"{self._shown('')} cannot be written: {redact(str(error))}") from None

    def check_readable(self) -> None:
        """UserError unless the URI is an object or a folder with at least one object in it."""
        if self.exists() or self._call("list", "", lambda backend, full: next(iter(backend.entries(full, True)), None)):
            return
        raise UserError(f"{self._shown('')} does not exist or is empty: check the path, or put the files there")

    def _refuse_read_only(self) -> None:
        if self.location.scheme in READ_ONLY_SCHEMES:
            raise UserError(f"{self._shown('')} cannot be written: use a local path, s3:// or gs://")

    def _shown(self, path: str) -> str:
        return redact(self.child(path).uri if path else self.uri)

    def _full(self, path: str) -> str:
        where = (self.child(path) if path.strip("/") else self).location
        if where.scheme == "python-stdlib":
            return os.path.join(sysconfig.get_paths()["stdlib"], where.path).rstrip("/")
        return where.uri if where.scheme in ("http", "https") else where.path

    def _call(self, verb: str, path: str, operation: Callable[[Backend, str], T]) -> T:
        where = self.location
        bucket = where.path.partition("/")[0] if where.scheme == "s3" else ""
        backend = _backend(where.scheme, bucket, where.query, _environment(where.scheme))
        failure = f"cannot {verb} {self._shown(path)}"
        try:
            return retry(lambda: _translated(backend, self._full(path), operation), failure)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such file or object", self._shown(path)) from None


def _translated(backend: Backend, full: str, operation: Callable[[Backend, str], T]) -> T:
    """One attempt, with the foreign system's errors turned into ours."""
    try:
        return operation(backend, full)
    except (PretrainerError, TransientError):
        raise
    except backend.errors as error:
        raise backend.translate(error, full) from None


def retry(call: Callable[[], T], failure: str) -> T:
    """Call until it raises no TransientError, at most 1 + len(RETRY_DELAYS_S) times; then StorageError(failure …)."""
    for attempt, delay_s in enumerate((*RETRY_DELAYS_S, None), start=1):
        try:
            return call()
        except TransientError as error:
            reason = redact(str(error))
            if delay_s is None:
                # `from None`: the original message may hold secrets, the redacted one is in ours.
                raise StorageError(f"{failure} after {attempt} attempts: {reason}") from None
            log.warning("%s (attempt %d, next in %.1f s): %s", failure, attempt, delay_s, reason)
            time.sleep(delay_s)
        except (UserError, StorageError) as error:
            raise type(error)(f"{failure}: {redact(str(error))}") from None
    raise AssertionError("unreachable: the last delay is None")


class RetryingFile(io.RawIOBase):
    """A seekable binary file that reopens the object and reads again after a transient error or a truncated read."""

    def __init__(self, store: Store, path: str = "") -> None:
        self._store, self._path, self._position = store, path, 0
        self._handle: Handle | None = None
        self.size = store._call("open", path, lambda backend, full: self._open(backend, full).size())

    def _open(self, backend: Backend, full: str) -> Handle:
        if self._handle is None:
            self._handle = backend.open(full)
        return self._handle

    def _read_at(self, backend: Backend, full: str, length: int) -> bytes:
        try:
            data = self._open(backend, full).read_at(length, self._position)
        except backend.errors:
            self._handle = None
            raise
        if len(data) != length:
            self._handle = None
            raise TransientError(f"truncated read: {len(data)} of {length} bytes at {self._position}")
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        try:
            data = self._store._call("read", self._path, lambda backend, full: self._read_at(backend, full, length))
        except FileNotFoundError:
            raise StorageError(f"{self._store._shown(self._path)} vanished while it was being read") from None
        self._position += length
        return data

    def blocks(self, start: int = 0, end: int | None = None, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Bytes [start, end) in blocks of `block_bytes`; the last one may be shorter."""
        stop = self.size if end is None else min(end, self.size)
        for position in range(start, stop, block_bytes):
            self.seek(position)
            yield self.read(min(block_bytes, stop - position))

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            handle.close()
        super().close()


def resolve_run(run: str, storage: str) -> Store:
    """The run folder that RUN means: a URI or path (it has '/' or begins with '~' or '.'), or a name in `storage`."""
    if not run:
        raise UserError(f"RUN is empty: give the URI of a run folder or the name of a run under {redact(storage)}")
    is_place = "/" in run or run.startswith(("~", "."))
    return Store(run) if is_place else Store(storage).child(run)
