"""What `pretrainer.storage` asks of a file system; one module per kind implements it and translates its errors.

A backend raises its native errors (`Backend.errors`); `translate` turns one into FileNotFoundError, UserError,
StorageError (for good) or TransientError (try again). Nothing but `pretrainer.storage` uses backends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pyarrow.fs as pafs


class Entry(NamedTuple):
    """One object: path, size in bytes, and its etag (or mtime) as a string."""

    path: str
    size: int
    version: str


class TransientError(Exception):
    """An error that may pass; never leaves `pretrainer.storage`."""


class Handle(Protocol):
    """An open object; pyarrow's NativeFile is one."""

    def size(self) -> int: ...
    def read_at(self, nbytes: int, offset: int) -> bytes: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """What a file system must do; paths are its own full paths, paths of entries are relative to the folder.

    `entries` may leave out those whose path does not sort after `after`: `Store.list` does so for all.
    """

    errors: tuple[type[Exception], ...]

    def stat(self, path: str) -> Entry: ...
    def entries(self, folder: str, recursive: bool, after: str = "") -> Iterator[Entry]: ...
    def open(self, path: str) -> Handle: ...
    def put(self, path: str, data: bytes) -> None: ...
    def put_new(self, path: str, data: bytes) -> bool: ...
    def delete(self, path: str) -> None: ...
    def arrow(self) -> pafs.FileSystem: ...
    def arrow_path(self, path: str) -> str: ...
    def translate(self, error: Exception, path: str) -> Exception: ...


def check_then_put(backend: Backend, path: str, data: bytes) -> bool:
    try:
        backend.stat(path)
    except backend.errors as error:
        if not isinstance(backend.translate(error, path), FileNotFoundError):
            raise
        backend.put(path, data)
        return True
    return False
