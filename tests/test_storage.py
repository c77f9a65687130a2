"""The same promises for a local folder and for S3 over HTTP; retries and redaction with a fake backend."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from pretrainer import storage
from pretrainer.errors import StorageError, UserError
from pretrainer.storage import Store, redact, resolve_run
from pretrainer.storage_backend import TransientError
from pretrainer.storage_fsspec import FsspecBackend
from pretrainer.storage_local import LocalBackend
from pretrainer.storage_s3 import S3Backend
from tests import s3

s3_endpoint, s3_uri = s3.s3_endpoint, s3.s3_uri


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_uri")
    return Store(uri).child("run")


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))


def test_bytes_come_back(store: Store) -> None:
    data = bytes(range(256)) * 100
    store.write("a/b.bin", data)
    assert store.read("a/b.bin") == data
    assert store.child("a").child("b.bin").read() == data
    assert store.size("a/b.bin") == len(data)
    with store.file("a/b.bin") as file:
        assert b"".join(file.blocks(10, 1000, 7)) == data[10:1000]
    store.write("a/b.bin", "grüß".encode())
    assert store.read_text("a/b.bin") == "grüß"
    store.write("empty", b"")
    assert store.read("empty") == b""


def test_list_is_sorted_and_relative(store: Store) -> None:
    for name in ("b.txt", "a/z.txt", "a/y/x.txt", "a!.txt"):
        store.write(name, name.encode())
    assert [entry[:2] for entry in store.list()] == [("a!.txt", 6), ("a/y/x.txt", 9), ("a/z.txt", 7), ("b.txt", 5)]
    assert [entry.path for entry in store.list("a")] == ["a/y/x.txt", "a/z.txt"]
    assert [entry.path for entry in store.list(recursive=False)] == ["a!.txt", "b.txt"]
    assert store.list("nothing") == []


def test_list_after_a_name(store: Store) -> None:
    for name in ("c/000-e.json", "c/001-m.json", "c/002-e.json", "c/sub/x", "d"):
        store.write(name, b"1")
    assert [entry.path for entry in store.list("c", after="000-e.json")] == ["c/001-m.json", "c/002-e.json", "c/sub/x"]
    assert [entry.path for entry in store.list("c", after="0015")] == ["c/002-e.json", "c/sub/x"]
    assert [entry.path for entry in store.list("c", recursive=False, after="001-m.json")] == ["c/002-e.json"]
    assert [entry.path for entry in store.list("c", after="sub/x")] == []
    assert [entry.path for entry in store.list(after="c/sub")] == ["c/sub/x", "d"]


def test_s3_is_not_asked_for_names_before(s3_uri: str) -> None:
    store = Store(s3_uri).child("run")
    for number in range(5):
        store.write(f"c/{number}", b"1")
    backend = S3Backend(s3_uri[5:].partition("?")[0], Store(s3_uri).location.options)
    assert [entry.path for entry in backend.entries(f"{backend.bucket}/run/c", True, "2")] == ["3", "4"]


def test_version_changes_with_content(store: Store) -> None:
    store.write("x", b"one")
    before = store.list()[0].version
    assert store.stat("x").version == before
    store.write("x", b"two")
    assert store.list()[0].version != before


def test_missing_object(store: Store) -> None:
    assert not store.exists("no")
    for call in (store.read, store.size, store.open):
        with pytest.raises(FileNotFoundError):
            call("no")
    store.delete("no")


def test_a_folder_is_no_object(store: Store) -> None:
    store.write("folder/x", b"1")
    assert not store.exists("folder")
    assert store.exists("folder/x")


def test_delete(store: Store) -> None:
    store.write("x", b"1")
    store.delete("x")
    assert not store.exists("x") and store.list() == []


def test_create_is_exclusive(store: Store) -> None:
    assert store.create("record", b"same")
    assert not store.create("record", b"same")
    with pytest.raises(StorageError, match="record.* exists with other bytes"):
        store.create("record", b"other")
    assert store.read("record") == b"same"


def test_create_has_one_winner(store: Store) -> None:
    """Of many writers with different bytes one succeeds, and its bytes stay."""

    def attempt(number: int) -> str:
        try:
            return "won" if store.create("race", b"%d" % number) else "same"
        except StorageError:
            return "lost"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(16)))
    assert sorted(outcomes) == ["lost"] * 15 + ["won"]
    assert store.read("race") == b"%d" % outcomes.index("won")


def test_local_writes_leave_no_temporary_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("x", b"1")
    store.write("x", b"2")
    store.create("y", b"1")
    store.create("y", b"1")
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_list_ignores_the_temporary_file_of_a_crash(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123").write_bytes(b"half")
    assert Store(str(tmp_path)).list() == []


def test_create_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    assert store.create("x", b"1") and not store.create("x", b"1")
    assert os.listdir(tmp_path) == ["x"]


def test_open_is_seekable_for_arrow(store: Store) -> None:
    table = pa.table({"a": list(range(1000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write("t.parquet", sink.getvalue().to_pybytes())
    assert pq.read_table(store.open("t.parquet")).equals(table)


def test_store_pickles_to_its_uri(store: Store) -> None:
    store.write("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store and copy.read("x") == b"1"
    assert len(pickle.dumps(store)) < 300


def test_check_readable_and_writable(store: Store) -> None:
    with pytest.raises(UserError, match="does not exist or is empty"):
        store.check_readable()
    store.check_writable()
    assert store.list() == []
    store.write("x", b"1")
    store.check_readable()
    store.child("x").check_readable()


def test_train_storage_has_no_scheme(store: Store) -> None:
    path, filesystem = store.train_storage()
    assert "://" not in path and "?" not in path
    assert (filesystem is None) == store.is_local
    store.write("x", b"1")
    found = filesystem.open_input_file(f"{path}/x").read() if filesystem else Path(path, "x").read_bytes()
    assert found == b"1"
    pickle.loads(pickle.dumps(filesystem))


def test_local_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store("~/runs").uri == str(tmp_path / "runs")
    assert Store("runs/").uri == str(tmp_path / "runs")
    assert Store(f"file://{tmp_path}/runs").uri == str(tmp_path / "runs")
    assert Store("/").child("x").uri == "/x"
    assert Store("runs").child("a").is_local


def test_child_keeps_the_options() -> None:
    store = Store("s3://bucket/a?region=eu-west-1&anonymous=true").child("b/c")
    assert store.uri == "s3://bucket/a/b/c?region=eu-west-1&anonymous=true"
    assert not store.is_local
    signed = Store("https://host/data?X-Amz-Signature=abc").child("x.jsonl")
    assert signed.uri == "https://host/data/x.jsonl?X-Amz-Signature=abc"


def test_glob_character_is_no_option() -> None:
    assert Store("s3://bucket/data-?.jsonl").location.path == "bucket/data-?.jsonl"


@pytest.mark.parametrize(("uri", "message"), [
    ("", "empty"),
    ("s3://", "needs a bucket"),
    ("s3://bucket/x?acces_key=1", "no option 'acces_key'"),
    ("s3://key:secret@bucket/x", "do not belong"),
])
def test_bad_uris(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Store(uri)
    assert "secret@" not in str(error.value)


def test_resolve_run(tmp_path: Path) -> None:
    assert resolve_run("first", str(tmp_path)).uri == str(tmp_path / "first")
    assert resolve_run(f"{tmp_path}/x/first", "s3://bucket").uri == str(tmp_path / "x/first")
    assert resolve_run("s3://bucket/runs/first", str(tmp_path)).uri == "s3://bucket/runs/first"
    assert resolve_run("first", "s3://bucket/runs?region=r").uri == "s3://bucket/runs/first?region=r"
    with pytest.raises(UserError, match="RUN is empty"):
        resolve_run("", str(tmp_path))


def test_missing_bucket(s3_uri: str) -> None:
    missing = Store(s3_uri.replace("s3://bucket", "s3://no-bucket"))
    for call in (missing.check_writable, missing.check_readable, missing.list):
        with pytest.raises(UserError, match="bucket does not exist"):
            call()


def test_missing_credentials(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="no AWS credentials found.*AWS_ACCESS_KEY_ID"):
        Store(s3_uri).check_readable()
    Store(f"{s3_uri}&anonymous=true").list()


def test_create_on_a_store_without_conditional_put(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = S3Backend(s3_uri[5:].partition("?")[0], Store(s3_uri).location.options)
    put_object = backend.client.put_object

    def put(**request: object) -> object:
        if "IfNoneMatch" in request:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
        return put_object(**request)

    monkeypatch.setattr(backend.client, "put_object", put)
    _use(monkeypatch, backend)
    store = Store(s3_uri)
    assert store.create("x", b"1") and not store.create("x", b"1")
    with pytest.raises(StorageError, match="exists with other bytes"):
        store.create("x", b"2")


@pytest.mark.parametrize("method", ["write", "create"])
def test_a_full_disk_leaves_the_old_object_alone(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write("x", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        getattr(store, method)("x", b"new")
    assert os.listdir(tmp_path) == ["x"] and store.read("x") == b"old"


def test_endpoint_from_the_environment(s3_uri: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(s3_uri).write("x", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert Store(s3_uri.partition("?")[0]).read("x") == b"1"


def test_permission_and_wrong_kinds_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        Store(str(tmp_path / "file" / "run")).check_writable()
    assert isinstance(LocalBackend().translate(PermissionError(errno.EACCES, "no"), "/x"), UserError)


def test_standard_library_is_read_only() -> None:
    store = Store("python-stdlib://")
    assert b"class JSONDecoder" in store.read("json/decoder.py")
    with pytest.raises(UserError, match="cannot be written"):
        store.write("x.py", b"")


def test_symbolic_links_are_followed_without_loops(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("x")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [entry.path for entry in Store(str(tmp_path)).list()] == ["link/x", "real/x"]


# ------------------------------------------------------------------------------------------------- faults


class FlakyBackend(LocalBackend):
    """A local folder whose reads fail or come up short as often as told."""

    def __init__(self, failures: int, error: Exception | None, short: bool = False) -> None:
        self.failures, self.error, self.short, self.opened = failures, error, short, 0

    def open(self, path: str) -> FlakyBackend:
        self.opened += 1
        self.data = Path(path).read_bytes()
        return self

    def size(self) -> int:
        return len(self.data)

    def read_at(self, nbytes: int, offset: int) -> bytes:
        if self.failures > 0:
            self.failures -= 1
            if self.error:
                raise self.error
            return self.data[offset : offset + nbytes - 1]
        return self.data[offset : offset + nbytes]

    def close(self) -> None:
        return None


def _use(monkeypatch: pytest.MonkeyPatch, backend: object) -> None:
    monkeypatch.setattr(storage, "_backend", lambda *_: backend)


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), TransientError("SlowDown"), None])
def test_transient_errors_are_retried(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waits: None
) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    backend = FlakyBackend(2, error)
    _use(monkeypatch, backend)
    assert Store(str(tmp_path)).read("x") == b"0123456789"
    assert backend.opened == 3 or isinstance(error, TransientError)  # a handle that failed is not used again
    _use(monkeypatch, FlakyBackend(3, error))
    with pytest.raises(StorageError, match="cannot read .*/x.* after 3 attempts"):
        Store(str(tmp_path)).read("x")


def test_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)

    def fail() -> None:
        raise TransientError("again")

    with pytest.raises(StorageError):
        storage.retry(fail, "cannot")
    assert waits == list(storage.RETRY_DELAYS_S) == sorted(waits)


def test_permanent_errors_are_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    backend = FlakyBackend(1, OSError(errno.ENOSPC, "disk full"))
    _use(monkeypatch, backend)
    monkeypatch.setattr(storage.time, "sleep", pytest.fail)
    with pytest.raises(StorageError, match="disk full"):
        Store(str(tmp_path)).read("x")
    assert backend.failures == 0


def test_storage_error_passes_through_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waits: None) -> None:
    """A failing store must not look like a corrupt Parquet file."""
    (tmp_path / "x").write_bytes(b"0123456789")
    _use(monkeypatch, FlakyBackend(99, TransientError("down")))
    with pytest.raises(StorageError):
        pq.ParquetFile(Store(str(tmp_path)).open("x"))


def test_unreachable_endpoint_is_a_storage_error(s3_uri: str, no_waits: None) -> None:
    store = Store("s3://bucket?endpoint_override=http://127.0.0.1:1&region=us-east-1")
    with pytest.raises(StorageError, match="after 3 attempts"):
        store.write("x", b"1")


def test_messages_hold_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waits: None) -> None:
    (tmp_path / "x").write_bytes(b"1")
    url = "https://u:pw@host/f?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP&X-Amz-Signature=5ig&region=r"
    assert redact(url) == "https://***@host/f?X-Amz-Credential=***&X-Amz-Signature=***&region=r"
    _use(monkeypatch, FlakyBackend(99, TransientError(f"GET {url} refused AKIAABCDEFGHIJKLMNOP")))
    with pytest.raises(StorageError) as error:
        Store(str(tmp_path)).read("x")
    assert not any(secret in str(error.value) for secret in ("pw", "AKIA", "5ig"))
    assert "5ig" not in repr(Store(url))


# ------------------------------------------------------------------------------------------------- fsspec


def test_fsspec_memory_store() -> None:
    """Any fsspec scheme gives the same operations; memory:// stands for those that need a network."""
    fsspec.filesystem("memory").store.clear()
    store = Store("memory://bucket/run")
    assert store.create("a/x", b"1") and not store.create("a/x", b"1")
    store.write("y", b"22")
    assert [entry[:2] for entry in store.list()] == [("a/x", 1), ("y", 2)]
    assert [entry.path for entry in store.list(recursive=False)] == ["y"]
    assert [entry.path for entry in store.list(after="a/x")] == ["y"]
    with store.file("y") as file:
        assert list(file.blocks(block_bytes=1)) == [b"2", b"2"]
    store.delete("y")
    assert not store.exists("y") and not store.is_local
    with pytest.raises(FileNotFoundError):
        store.read("y")


def test_missing_fsspec_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(UserError, match="pip install gcsfs"):
        FsspecBackend("gs")


def test_unknown_scheme() -> None:
    with pytest.raises(UserError, match="ftpx:// is unknown"):
        Store("ftpx://host/x").list()


class _Handler(BaseHTTPRequestHandler):
    """A web server with byte ranges (/ranges), one that ignores them (/plain), one that refuses at first (/busy)."""

    body = bytes(range(200))
    refusals = 0

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        wanted = self.headers.get("Range")
        status = {"/locked": 403, "/gone": 404}.get(self.path, 200)
        if self.path == "/busy" and _Handler.refusals > 0:
            _Handler.refusals -= 1
            status = 503
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.body
        if wanted and self.path.startswith("/ranges"):
            first, last = wanted.removeprefix("bytes=").split("-")
            body = body[int(first) : int(last) + 1]
        self.send_response(206 if len(body) < len(self.body) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes" if self.path.startswith("/ranges") else "none")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return None


def test_http(no_waits: None) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        with Store(root).file("ranges?sig=abc") as file:
            assert b"".join(file.blocks(block_bytes=64)) == _Handler.body
        assert Store(f"{root}/plain").read() == _Handler.body
        with Store(f"{root}/plain").file() as file, pytest.raises(UserError, match="ignores byte ranges"):
            list(file.blocks(block_bytes=64))
        with pytest.raises(FileNotFoundError):
            Store(f"{root}/gone").read()
        _Handler.refusals = 4  # a HEAD and a GET in each attempt
        assert Store(f"{root}/busy").read() == _Handler.body
        _Handler.refusals = 99
        with pytest.raises(StorageError, match="after 3 attempts"):
            Store(f"{root}/busy").read()
        with pytest.raises(UserError, match="no permission"):
            Store(f"{root}/locked").read()
        with pytest.raises(UserError, match="cannot be written"):
            Store(root).write("x", b"")
    finally:
        server.shutdown()
        server.server_close()
