"""Every other scheme of `pretrainer.storage`, through fsspec."""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow.fs as pafs

from pretrainer.errors import PretrainerError, UserError
from pretrainer.storage_backend import Entry, Handle, TransientError, check_then_put

FSSPEC_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp",
                   "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "adl": "adlfs"}
_BUGS = (TypeError, AttributeError, NameError, AssertionError)
_DENIED = re.compile(r"unauthori[sz]ed|forbidden|anonymous caller|credential|permission", re.IGNORECASE)
_MISSING = re.compile(r"not found|does not exist", re.IGNORECASE)
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "blob_id", "xet_hash", "mtime", "updated", "LastModified", "last_modified")


class _RangeHandle:
    """Reads by ranges through fsspec's `cat_file`, without its read-ahead caches."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs, self.path = fs, path
        self._size = fs.info(path)["size"]
        if self._size is None:
            raise UserError("the server does not tell the size of the object: download it first and use the local path")

    def size(self) -> int:
        return int(self._size)

    def read_at(self, nbytes: int, offset: int) -> bytes:
        data = bytes(self.fs.cat_file(self.path, start=offset, end=offset + nbytes))
        if len(data) > nbytes and offset > 0:
            raise UserError("the server ignores byte ranges: download the file first and use the local path")
        return data[:nbytes]

    def close(self) -> None:
        return None


class FsspecBackend:
    """Any other scheme through fsspec; `put_new` checks and then writes."""

    # The packages behind fsspec each have errors of their own; `translate` sorts them and hands our bugs back.
    errors: tuple[type[Exception], ...] = (Exception,)

    def __init__(self, scheme: str) -> None:
        fsspec = importlib.import_module("fsspec")
        self.scheme = scheme
        try:
            self.fs: Any = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            package = FSSPEC_PACKAGES.get(scheme)
            raise UserError(f"{scheme}:// needs the package {package!r}: pip install {package}" if package
                            else f"{scheme}:// cannot be used: {error}") from None
        except ValueError:
            raise UserError(f"{scheme}:// is unknown: use a local path, s3://, gs://, hf:// or https://") from None

    def _named(self, path: str) -> str:
        return path if "://" in path else f"{self.scheme}://{path}"

    def stat(self, path: str) -> Entry:
        info = self.fs.info(self._named(path))
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "not a file", path)
        return Entry(path, int(info["size"] or 0), _version(info))

    def entries(self, folder: str, recursive: bool, after: str = "") -> Iterator[Entry]:
        if self.scheme in ("http", "https"):
            return  # a web server has no folders
        root = str(self.fs._strip_protocol(self._named(folder))).rstrip("/")
        found = self.fs.find(self._named(folder), maxdepth=None if recursive else 1, detail=True)
        for name, info in found.items():
            if name.rstrip("/") != root:
                yield Entry(name[len(root):].lstrip("/"), int(info["size"] or 0), _version(info))

    def open(self, path: str) -> Handle:
        return _RangeHandle(self.fs, self._named(path))

    def put(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(self._named(path), data)

    def put_new(self, path: str, data: bytes) -> bool:
        return check_then_put(self, path, data)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._named(path))

    def arrow(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.fs))

    def arrow_path(self, path: str) -> str:
        return str(self.fs._strip_protocol(self._named(path)))

    def translate(self, error: Exception, path: str) -> Exception:
        # fsspec's HTTP turns every refusal, a 503 too, into FileNotFoundError; the truth is in its cause.
        if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
            return self.translate(error.__cause__, path)
        if isinstance(error, (*_BUGS, FileNotFoundError, PretrainerError)):
            return error
        if isinstance(error, PermissionError) or _says(error, (401, 403), _DENIED):
            return UserError(f"no permission or credentials for {self.scheme}://: log in first ({error})")
        if _says(error, (404, 410), _MISSING):
            return FileNotFoundError(errno.ENOENT, str(error), path)
        return TransientError(str(error))


def _says(error: Exception, statuses: tuple[int, ...], words: re.Pattern[str]) -> bool:
    """By the HTTP status in the error, or by its message where it has none."""
    # aiohttp has `status`, gcsfs `code`, requests and httpx `response.status_code`; the first one found counts.
    places = ((error, "status"), (getattr(error, "response", None), "status_code"), (error, "code"))
    status = str(next((getattr(place, name) for place, name in places if hasattr(place, name)), ""))
    return int(status) in statuses if status.isdigit() else words.search(str(error)) is not None


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]).strip('"') for key in _VERSION_KEYS if info.get(key)), "")
