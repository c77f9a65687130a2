"""Lists of paths as sources: which shards, in which order, below which root, and how many are asked for."""

from __future__ import annotations

import gzip
from pathlib import Path

import boto3
import pytest

from pretrainer.config import SourceConfig
from pretrainer.data.readers import path_list
from pretrainer.data.readers.path_list import split_uri
from pretrainer.data.readers.source import Manifest, Shard, list_shards
from pretrainer.errors import SourceError
from pretrainer.storage import Entry, Store
from tests import s3

s3_endpoint, s3_uri = s3.s3_endpoint, s3.s3_uri
PATHS = b"# of one month\ncrawl/b.warc.gz\n\ncrawl/a.warc.gz\r\ncrawl/c.wat.gz\ncrawl/b.warc.gz\n"


def shards(uri: str, **fields: object) -> list[Shard]:
    return list_shards(SourceConfig(name="web", uris=(uri,), **fields))  # type: ignore[arg-type]


def fill(store: Store) -> None:
    for number, name in enumerate("abc", 1):
        store.write(f"crawl/{name}.{'wat' if name == 'c' else 'warc'}.gz", b"x" * 10 * number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(Store(str(tmp_path)))
    (tmp_path / "warc.paths.gz").write_bytes(gzip.compress(PATHS))
    return tmp_path


def test_shards_are_sorted_sized_and_below_the_folder_of_the_list(folder: Path) -> None:
    found = shards(f"paths+{folder}/warc.paths.gz")
    assert [(shard.path, shard.size, shard.root) for shard in found] == [
        ("crawl/a.warc.gz", 10, str(folder)), ("crawl/b.warc.gz", 20, str(folder)), ("crawl/c.wat.gz", 30, str(folder)),
    ]  # fmt: skip
    plain = [shard for shard in shards(str(folder)) if shard.path.startswith("crawl/")]
    assert [(shard.path, shard.version) for shard in found] == [(shard.path, shard.version) for shard in plain]
    assert [shard.path for shard in shards(f"paths+{folder}/warc.paths.gz", include=(".wat.gz",))] == ["crawl/c.wat.gz"]


def test_a_prefix_puts_the_paths_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("lists") / "a.paths"
    elsewhere.write_bytes(PATHS)
    assert shards(f"paths+{elsewhere}?prefix={folder}") == shards(f"paths+{folder}/warc.paths.gz")
    with pytest.raises(SourceError, match="has no crawl/a.warc.gz, which the list .* names"):
        shards(f"paths+{elsewhere}")


@pytest.mark.parametrize(("uri", "place", "root"), [
    ("paths+s3://b/x/y.gz?region=r", "s3://b/x/y.gz?region=r", "s3://b?region=r"),
    ("paths+https://h.org/x/y.gz", "https://h.org/x/y.gz", "https://h.org"),
    ("paths+/x/y?prefix=s3://b/f?region=r%26anonymous=true", "/x/y", "s3://b/f?region=r&anonymous=true"),
    ("paths+s3://b/y?region=r&prefix=s3://c", "s3://b/y?region=r", "s3://c"),
    ("paths+/y", "/y", "/"),
])  # fmt: skip
def test_parts_of_the_uri(uri: str, place: str, root: str) -> None:
    assert tuple(store.uri for store in split_uri(uri)) == (place, root)


def test_only_as_many_shards_are_asked_for_as_max_bytes_lets_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    stat = path_list._stat
    monkeypatch.setattr(path_list, "REQUESTS", 1)

    def seen(root: Store, path: str) -> Entry | None:
        asked.append(path)
        return stat(root, path)

    monkeypatch.setattr(path_list, "_stat", seen)
    assert [shard.path for shard in shards(f"paths+{folder}/warc.paths.gz", max_bytes=15)] == ["crawl/a.warc.gz"]
    assert asked == ["crawl/a.warc.gz", "crawl/b.warc.gz"]


@pytest.mark.parametrize(("data", "says"), [
    (b"s3://other/x.gz", "must be relative"), (b"/abs/x.gz", "must be relative"), (b"a/../../x.gz", "must be relative"),
    (b"\xff", "cannot be read"), (b"\n# nothing\n", "names no path"),
])  # fmt: skip
def test_bad_lists(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.paths").write_bytes(data)
    with pytest.raises(SourceError, match=says):
        shards(f"paths+{tmp_path}/a.paths")


def test_a_damaged_or_missing_list(folder: Path) -> None:
    (folder / "cut.gz").write_bytes(gzip.compress(PATHS)[:-9])
    with pytest.raises(SourceError, match="cannot be read .*get it again"):
        shards(f"paths+{folder}/cut.gz")
    with pytest.raises(SourceError, match="does not exist"):
        shards(f"paths+{folder}/no.gz")


def test_anonymous_s3_that_cannot_be_listed(s3_endpoint: str, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in configs/commoncrawl.yaml: each object is public, nothing is listed."""
    store = Store(s3_uri)
    fill(store)
    store.write("crawl-data/warc.paths.gz", gzip.compress(PATHS))
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    for key in [entry.path for entry in store.list()]:
        client.put_object_acl(Bucket=store.location.path, Key=key, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(Store, "list", None)
    where = store.location
    uri = f"paths+s3://{where.path}/crawl-data/warc.paths.gz?{where.query}&anonymous=true"
    found = shards(uri)
    assert [(shard.path, shard.size) for shard in found] == [
        ("crawl/a.warc.gz", 10), ("crawl/b.warc.gz", 20), ("crawl/c.wat.gz", 30)]  # fmt: skip
    assert Store(found[0].root).read(found[0].path) == b"x" * 10
    source = SourceConfig(name="web", uris=(uri,))
    Manifest.build([source]).check_unchanged(Manifest.build([source]))
