"""Local file system of `pretrainer.storage`."""

from __future__ import annotations

import errno
import os
import stat as stat_flags
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pyarrow.fs as pafs

from pretrainer.errors import StorageError, UserError
from pretrainer.storage_backend import Entry, Handle, TransientError

TEMP_PREFIX = ".tmp-"
TRANSIENT_ERRNOS = frozenset({
    errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY,
    errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EMFILE, errno.ENFILE,
})


class LocalBackend:
    """A POSIX file system."""

    errors: tuple[type[Exception], ...] = (OSError,)

    def stat(self, path: str) -> Entry:
        status = os.stat(path)
        if not stat_flags.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file", path)
        return Entry(path, status.st_size, str(status.st_mtime_ns))

    def entries(self, folder: str, recursive: bool, after: str = "") -> Iterator[Entry]:
        if not os.path.isdir(folder):
            return iter(())
        return _walk(folder, "", recursive, after, frozenset())

    def open(self, path: str) -> Handle:
        self.stat(path)
        return pafs.LocalFileSystem().open_input_file(path)

    def put(self, path: str, data: bytes) -> None:
        temporary = _synced_temporary(path, data)
        try:
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        _sync_folder(path)

    def put_new(self, path: str, data: bytes) -> bool:
        temporary = _synced_temporary(path, data)
        try:
            _link_new(temporary, path)
        except FileExistsError:
            return False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(path)
        return True

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)

    def arrow(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem()

    def arrow_path(self, path: str) -> str:
        return path

    def translate(self, error: Exception, path: str) -> Exception:
        if isinstance(error, FileNotFoundError):
            return error
        if isinstance(error, PermissionError):
            return UserError("no permission: change the owner or mode of the folder, or choose another one")
        if isinstance(error, (NotADirectoryError, FileExistsError, IsADirectoryError)):
            return UserError(f"a file stands where a folder is needed, or the other way round ({error})")
        transient = isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS
        return TransientError(str(error)) if transient else StorageError(str(error))


def _walk(
    folder: str, lead: str, recursive: bool, after: str, above: frozenset[tuple[int, int]]
) -> Iterator[Entry]:
    """Regular files; symbolic links are followed, except to a folder that is being walked (a loop)."""
    status = os.stat(folder)
    here = above | {(status.st_dev, status.st_ino)}
    if len(here) == len(above):
        return
    for item in os.scandir(folder):
        if item.is_dir():
            if recursive:
                yield from _walk(item.path, f"{lead}{item.name}/", True, after, here)
        elif lead + item.name > after and item.is_file() and not item.name.startswith(TEMP_PREFIX):
            status = item.stat()
            yield Entry(lead + item.name, status.st_size, str(status.st_mtime_ns))


def _synced_temporary(path: str, data: bytes) -> str:
    """Write the bytes to a temporary file beside `path`, on disk when this returns; it makes the folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f"{TEMP_PREFIX}{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return temporary


def _link_new(temporary: str, path: str) -> None:
    """Give the file its name unless it is taken; atomic where the file system has hard links."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, "exists", path) from None
        os.rename(temporary, path)


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
