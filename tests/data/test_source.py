"""Shards, manifest, units and the order of units."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import SourceConfig
from pretrainer.data.readers import units
from pretrainer.data.readers.source import SHARDS, Manifest, UnitPlan, glob_regex, list_shards, order_key, permute
from pretrainer.errors import SourceError
from pretrainer.storage import Store
from tests import s3

s3_endpoint, s3_uri = s3.s3_endpoint, s3.s3_uri

FILES = {
    "a.jsonl": b"1234567890", "b.jsonl.gz": b"12345", "sub/c.jsonl": b"123", "sub/deep/d.jsonl": b"1",
    "sub/e.txt": b"12", "_SUCCESS": b"x", ".hidden": b"x", "_temporary/0.jsonl": b"x",
}


def _source(*uris: object, **fields: object) -> SourceConfig:
    return SourceConfig(name="web", uris=tuple(map(str, uris)), **fields)  # type: ignore[arg-type]


def _fill(store: Store) -> None:
    for name, data in FILES.items():
        store.write(name, data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _fill(Store(str(tmp_path / "data")))
    return tmp_path / "data"


def _paths(source: SourceConfig) -> list[str]:
    return [shard.path for shard in list_shards(source)]


def test_folder_is_recursive_and_skips_hidden_names(folder: Path) -> None:
    assert _paths(_source(folder)) == ["a.jsonl", "b.jsonl.gz", "sub/c.jsonl", "sub/deep/d.jsonl", "sub/e.txt"]


@pytest.mark.parametrize(("pattern", "expected"), [
    ("*.jsonl", ["a.jsonl"]),
    ("?.jsonl*", ["a.jsonl", "b.jsonl.gz"]),
    ("[ac].*", ["a.jsonl"]),
    ("sub/*.jsonl", ["c.jsonl"]),
    ("sub/**/*.jsonl", ["c.jsonl", "deep/d.jsonl"]),
    ("**/*.jsonl", ["_temporary/0.jsonl", "a.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
    ("s[!x]b/*", ["sub/c.jsonl", "sub/e.txt"]),
])
def test_globs(folder: Path, pattern: str, expected: list[str]) -> None:
    assert _paths(_source(folder / pattern)) == expected


@pytest.mark.parametrize(("pattern", "yes", "no"), [
    ("a/**/b", "a/b", "ab"), ("a/**/b", "a/x/y/b", "a/xb"), ("a*", "abc", "a/b"), ("[!a]", "b", "a"),
    ("[!a]", "b", "/"), ("x[.]y", "x.y", "xzy"), ("a?c", "abc", "a/c"), ("a**", "a/b", "b"), ("[]]", "]", "["),
    ("a+b", "a+b", "aab"),
])
def test_glob_regex(pattern: str, yes: str, no: str) -> None:
    assert glob_regex(pattern).fullmatch(yes)
    assert not glob_regex(pattern).fullmatch(no)


def test_bad_class_in_a_glob() -> None:
    with pytest.raises(SourceError, match="bad"):
        glob_regex("[z-a]")


def test_single_file(folder: Path) -> None:
    shard, = list_shards(_source(folder / "sub" / "c.jsonl"))
    assert (shard.path, shard.size, shard.root) == ("c.jsonl", 3, str(folder / "sub"))


def test_two_roots_in_the_order_of_uris(folder: Path) -> None:
    assert _paths(_source(folder / "sub", folder / "*.jsonl")) == ["c.jsonl", "deep/d.jsonl", "e.txt", "a.jsonl"]


def test_a_shard_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match="a.jsonl is matched by two"):
        list_shards(_source(folder, folder / "*.jsonl"))
    with pytest.raises(SourceError, match="c.jsonl is matched by two"):
        list_shards(_source(folder, folder / "sub"))


def test_include_keeps_suffixes(folder: Path) -> None:
    assert _paths(_source(folder, include=(".txt", ".gz"))) == ["b.jsonl.gz", "sub/e.txt"]


@pytest.mark.parametrize(("max_bytes", "count"), [(1, 1), (14, 1), (15, 2), (18, 3), (19, 4), (21, 5), (99, 5)])
def test_max_bytes_takes_whole_shards(folder: Path, max_bytes: int, count: int) -> None:
    """Sizes are 10, 5, 3, 1, 2."""
    assert len(list_shards(_source(folder, max_bytes=max_bytes))) == count


@pytest.mark.parametrize(("uri", "fields", "message"), [
    ("nowhere", {}, "does not exist or holds no files"),
    ("sub/*.parquet", {}, r"matches '\*.parquet' \(there: c.jsonl"),
    ("", {"include": (".csv",)}, "none of its 5 files ends in .csv"),
])
def test_nothing_found_says_what_was_there(folder: Path, uri: str, fields: dict, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list_shards(_source(folder / uri, **fields))


def test_s3_equals_local(folder: Path, s3_uri: str) -> None:
    remote = Store(s3_uri).child("else/where")
    _fill(remote)
    assert [(s.path, s.size) for s in list_shards(_source(remote.uri))] == [
        (s.path, s.size) for s in list_shards(_source(folder))]
    glob = remote.child("**/*.jsonl").uri
    assert _paths(_source(glob)) == _paths(_source(folder / "**/*.jsonl"))
    assert _paths(_source(remote.child("a.jsonl").uri)) == ["a.jsonl"]
    here, there = Manifest.build([_source(folder)]), Manifest.build([_source(remote.uri)])
    assert here.order_digest() == there.order_digest()
    here.check_unchanged(there)
    there.check_unchanged(here)


def test_standard_library() -> None:
    shards = list_shards(_source("python-stdlib://", include=(".py",)))
    paths = [shard.path for shard in shards]
    assert "json/__init__.py" in paths and "_pydecimal.py" in paths
    assert paths == sorted(paths) and all(path.endswith(".py") for path in paths)
    assert not {name for path in paths for name in path.split("/")} & {"site-packages", "dist-packages", "__pycache__"}
    assert {shard.root for shard in shards} == {"python-stdlib://"}
    assert Store(shards[0].root).size(shards[0].path) == shards[0].size


# ---------------------------------------------------------------------------------------------- manifest


def test_manifest_round_trip(folder: Path) -> None:
    two = SourceConfig(name="two", uris=(str(folder / "a.jsonl"),), format="text")
    manifest = Manifest.build([_source(folder / "sub"), two])
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again == manifest and again.to_bytes() == data
    assert list(again.shards(0)) == list_shards(_source(folder / "sub"))
    assert again.shard(1, 0) == list_shards(_source(folder / "a.jsonl"))[0]
    assert again.order_digest() == manifest.order_digest()
    assert again.formats == ("auto", "text")


def test_order_digest_sees_paths_and_sizes_only(folder: Path) -> None:
    before = Manifest.build([_source(folder)])
    os.utime(folder / "a.jsonl", ns=(1, 1))
    assert Manifest.build([_source(folder)]).order_digest() == before.order_digest()
    (folder / "a.jsonl").write_bytes(b"other size")
    assert Manifest.build([_source(folder)]).order_digest() == before.order_digest()
    (folder / "a.jsonl").write_bytes(b"another size")
    assert Manifest.build([_source(folder)]).order_digest() != before.order_digest()


@pytest.mark.parametrize(("change", "message"), [
    (lambda folder: (folder / "a.jsonl").write_bytes(b"longer than it was"), r"a.jsonl .*changed.*size 10 -> 18"),
    (lambda folder: os.utime(folder / "a.jsonl", ns=(1, 1)), "a.jsonl .*changed"),
    (lambda folder: (folder / "sub/c.jsonl").unlink(), "sub/c.jsonl .*missing"),
])
def test_changed_shards_are_named(folder: Path, change, message: str) -> None:
    manifest = Manifest.build([_source(folder)])
    change(folder)
    with pytest.raises(SourceError, match=message):
        manifest.check_unchanged(Manifest.build([_source(folder)]))


def test_new_shards_are_not_part_of_the_run(folder: Path) -> None:
    manifest = Manifest.build([_source(folder)])
    (folder / "0.jsonl").write_bytes(b"new")
    manifest.check_unchanged(Manifest.build([_source(folder)]))
    with pytest.raises(SourceError, match="not in the config"):
        manifest.check_unchanged(Manifest.build([SourceConfig(name="other", uris=(str(folder),))]))


# ------------------------------------------------------------------------------------------------- units


def _manifest(shards: list[tuple[str, int]], configured: str = "auto") -> Manifest:
    paths, sizes = [path for path, _ in shards], [size for _, size in shards]
    count = len(shards)
    table = pa.table([pa.array([0] * count, pa.int32()), ["/r"] * count, paths, sizes, ["v"] * count], schema=SHARDS)
    return Manifest(("web",), (configured,), (table,))


def _spans(plan: UnitPlan) -> list[list[tuple[str, int, int | None]]]:
    return [[(p.path, p.start, p.end) for p in plan.pieces(unit)] for unit in range(len(plan))]


def test_units_by_example() -> None:
    shards = [("a.jsonl", 25), ("b.txt", 4), ("c.jsonl", 6), ("d.jsonl", 1), ("e.jsonl.gz", 30), ("f.parquet", 3),
              ("g.jsonl.zst", 3), ("h.jsonl", 10), ("i.jsonl", 0)]
    assert _spans(UnitPlan(_manifest(shards), 0, 10)) == [
        [("a.jsonl", 0, 10)], [("a.jsonl", 10, 20)], [("a.jsonl", 20, 25)],
        [("b.txt", 0, None), ("c.jsonl", 0, None)],
        [("d.jsonl", 0, None)],
        [("e.jsonl.gz", 0, None)],
        [("f.parquet", 0, None), ("g.jsonl.zst", 0, None)],
        [("h.jsonl", 0, None)],
        [("i.jsonl", 0, None)],
    ]


def test_configured_format_decides_what_is_split() -> None:
    assert len(UnitPlan(_manifest([("data.bin", 100)], "jsonl"), 0, 10)) == 10
    assert len(UnitPlan(_manifest([("data.jsonl", 100)], "parquet"), 0, 10)) == 1
    with pytest.raises(SourceError, match="x.parquet.gz: parquet inside gzip"):
        UnitPlan(_manifest([("x.parquet.gz", 1)]), 0, 10)


@pytest.mark.parametrize(("path", "expected"), [
    ("a/b.jsonl", ("jsonl", None)), ("x.v1.JSON.gz", ("jsonl", "gzip")), ("x.ndjson.zst", ("jsonl", "zstd")),
    ("x.parquet", ("parquet", None)), ("README", ("text", None)), ("dir.jsonl/file", ("text", None)),
    ("x.txt.xz", ("text", "xz")), ("x.bz2", ("text", "bz2")), ("gz", ("text", None)),
])
def test_format_by_name(path: str, expected: tuple[str, str | None]) -> None:
    assert units.shard_format(path, "auto") == expected
    assert units.shard_format(path.replace("parquet", "x"), "jsonl")[0] == "jsonl"


def test_tiny_files_are_grouped_up_to_a_count() -> None:
    count = units.MAX_SHARDS_PER_UNIT
    plan = UnitPlan(_manifest([(f"{i:05d}.txt", 1) for i in range(count + 3)]), 0, 2**20)
    assert [len(plan.pieces(unit)) for unit in range(len(plan))] == [count, 3]


_NAMES = st.sampled_from([".jsonl", ".txt", ".jsonl.gz", ".parquet", ".zst"])


@given(st.lists(st.tuples(st.integers(0, 60), _NAMES), max_size=40), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_units_cover_every_byte_once_in_order(sizes: list[tuple[int, str]], chunk_bytes: int) -> None:
    shards = [(f"{i:03d}{suffix}", size) for i, (size, suffix) in enumerate(sizes)]
    plan = UnitPlan(_manifest(shards), 0, chunk_bytes)
    position = [0] * len(shards)
    order = []
    for unit in range(len(plan)):
        pieces = plan.pieces(unit)
        assert pieces
        assert len(pieces) == 1 or sum(piece.size for piece in pieces) <= chunk_bytes
        for piece in pieces:
            end = piece.size if piece.end is None else piece.end
            assert piece.start == position[piece.shard] and (end > piece.start or piece.size == 0)
            assert end - piece.start <= chunk_bytes or not units._is_splittable(piece.path, "auto")
            position[piece.shard] = end
            order.append((piece.shard, piece.start))
    assert position == [size for _, size in shards]
    assert order == sorted(order)
    with pytest.raises(IndexError):
        plan.pieces(len(plan))


def test_a_million_shards() -> None:
    count = 1_000_000
    manifest = _manifest([(f"{i:07d}.jsonl.gz", 2**20 + i) for i in range(count)])
    plan = UnitPlan(manifest, 0, 2**20)
    order = permute(len(plan), order_key(0, "web", 0))
    assert len(plan) == count and plan.pieces(order(7))[0].shard == order(7)
    assert Manifest.from_bytes(manifest.to_bytes()).shard(0, count - 1).path == f"{count - 1:07d}.jsonl.gz"


# ----------------------------------------------------------------------------------------------- permutation


@pytest.mark.parametrize("n", [*range(1, 70), 100, 127, 128, 129, 1000, 4095, 4096, 4097, 65_537])
def test_permutation_is_a_bijection(n: int) -> None:
    order = permute(n, order_key(1, "web", 0))
    image = [order(i) for i in range(n)]
    assert sorted(image) == list(range(n))
    assert all(order.inverse(unit) == i for i, unit in enumerate(image))
    for bad in (-1, n):
        with pytest.raises(IndexError):
            order(bad)


@given(st.integers(1, 2**50), st.data())
@settings(max_examples=100, deadline=None)
def test_permutation_of_huge_ranges(n: int, data: st.DataObject) -> None:
    order = permute(n, b"key")
    i = data.draw(st.integers(0, n - 1))
    assert 0 <= order(i) < n and order.inverse(order(i)) == i


def test_permutation_depends_on_every_part_of_the_key() -> None:
    keys = [(0, "web", 0), (1, "web", 0), (0, "code", 0), (0, "web", 1)]
    images = {tuple(permute(1000, order_key(*key))(i) for i in range(1000)) for key in keys}
    assert len(images) == len(keys)


def test_permutation_is_fixed_for_ever() -> None:
    """The order of a run may not change with the version: these values are part of the format."""
    order = permute(1000, order_key(0, "web", 0))
    assert [order(i) for i in range(5)] == [368, 361, 478, 800, 436]


def _correlation(x: list[int], y: list[int]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / (sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)) ** 0.5


def test_neighbours_do_not_correlate() -> None:
    n = 10_007
    order = permute(n, order_key(3, "web", 0))
    image = [order(i) for i in range(n)]
    for lag in (1, 2, 100, 101):
        assert abs(_correlation(image[:-lag], image[lag:])) < 4 / n**0.5
    assert abs(_correlation(list(range(n)), image)) < 4 / n**0.5
    steps = Counter((b - a) % n for a, b in zip(image, image[1:], strict=False))
    assert max(steps.values()) < 12  # a uniform permutation has about 1 of each


@pytest.mark.parametrize("n", [3, 5, 8])
def test_small_permutations_are_uniform(n: int) -> None:
    """Over many keys every unit is first, and every unit is last, about equally often (chi-square, 1 in 10^5)."""
    keys = 2000
    for position in (0, n - 1):
        counts = Counter(permute(n, order_key(seed, "web", 0))(position) for seed in range(keys))
        expected = keys / n
        assert sum((counts[unit] - expected) ** 2 / expected for unit in range(n)) < 35


def test_small_permutations_reach_all_orders() -> None:
    seen = {tuple(permute(4, order_key(seed, "web", 0))(i) for i in range(4)) for seed in range(500)}
    assert len(seen) == 24
