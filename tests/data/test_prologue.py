"""What is frozen before the stream starts: read back at a second start, and named when it changed.

    python -m pytest -q tests/data/test_prologue.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pretrainer.config import Config, DataConfig, DedupConfig, SourceConfig, TokenizerConfig, TrainConfig
from pretrainer.data import fingerprint
from pretrainer.data.identity import changes_since_start, fingerprint_parts, record_parts
from pretrainer.data.prologue import freeze_manifest
from pretrainer.data.readers.source import Manifest
from pretrainer.data.tokenizer.freeze import freeze_tokenizer
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import SourceError
from pretrainer.storage import Store
from tests.data.harness import small_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.jsonl").write_text('{"text": "one"}\n')
    source = SourceConfig(name="s", uris=(str(tmp_path / "corpus"),))
    data = DataConfig(sources=(source,), seq_len=8, slot_sequences=2, mix_cycle=4)
    return Config(data=data, train=TrainConfig(steps=5, global_batch_tokens=128))


@pytest.fixture
def data(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "data"))


def test_second_start_keeps_the_shards_of_the_first(config: Config, data: Store, tmp_path: Path) -> None:
    first = freeze_manifest(config, data)
    (tmp_path / "corpus/b.jsonl").write_text('{"text": "two"}\n')
    assert [s.path for s in freeze_manifest(config, data).shards(0)] == [s.path for s in first.shards(0)] == ["a.jsonl"]


def test_shard_that_changed_since_the_first_start_is_refused(config: Config, data: Store, tmp_path: Path) -> None:
    freeze_manifest(config, data)
    (tmp_path / "corpus/a.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(SourceError, match="a.jsonl"):
        freeze_manifest(config, data)


def test_tokenizer_of_the_first_start_is_read_back(data: Store) -> None:
    """Neither trained nor loaded again: there are no plans to train on, and nothing at the URI."""
    data.create("tokenizer.model", small_tokenizer())
    found = freeze_tokenizer(TokenizerConfig(uri="/nowhere/other.model"), [], [], [], data)
    assert found.data == small_tokenizer()


def test_loaded_tokenizer_is_frozen(data: Store, tmp_path: Path) -> None:
    given = tmp_path / "given.model"
    given.write_bytes(small_tokenizer())
    freeze_tokenizer(TokenizerConfig(uri=str(given)), [], [], [], data)
    given.unlink()
    assert freeze_tokenizer(TokenizerConfig(uri=str(given)), [], [], [], data).data == small_tokenizer()


# Everything that decides the tokens ----------------------------------------------------------------------------------
def parts(config: Config, held_out: tuple[str, ...] = ("s#0",)) -> dict[str, dict]:
    held = pa.table({"id": pa.array(held_out, pa.large_string())})
    manifest = Manifest.build(config.data.sources)
    return fingerprint_parts(config, manifest, Tokenizer.from_bytes(small_tokenizer()), [held], {})


def change(config: Config, **fields: Any) -> Config:
    """Fields of the first source where SourceConfig has them, else of DataConfig."""
    source = config.data.sources[0]
    of_source = {k: v for k, v in fields.items() if hasattr(source, k)}
    rest = {k: v for k, v in fields.items() if k not in of_source}
    return replace(config, data=replace(config.data, sources=(replace(source, **of_source),), **rest))


CURATION: dict[str, Any] = {
    "order_seed": 1, "chunk_bytes": 2048, "max_document_bytes": 1000, "dedup": DedupConfig(bands=8),
    "format": "text", "text_column": "body", "id_column": "key", "preset": "code",
    "rules": ("gopher_too_few_words=20",),
}  # fmt: skip
PACKING: dict[str, Any] = {"seq_len": 16, "pack_window_tokens": 4096, "slot_sequences": 4}
NEITHER: dict[str, Any] = {"read_cpus": 0.5, "look_ahead_chunks": 4, "max_dead_letter_share": 0.5, "max_epochs": 2}


FIELDS = {**CURATION, **PACKING, **NEITHER}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_decides_tokens_is_in_the_fingerprint(config: Config, name: str) -> None:
    before, after = parts(config)["s"], parts(change(config, **{name: FIELDS[name]}))["s"]
    assert (before["curation"] != after["curation"]) == (name in CURATION)
    assert (before != after) == (name not in NEITHER)


def test_other_shards_and_held_out_documents_begin_another_ledger(config: Config, tmp_path: Path) -> None:
    before = parts(config)["s"]["curation"]
    assert parts(config, ("s#1",))["s"]["curation"] != before
    (tmp_path / "corpus/b.jsonl").write_text('{"text": "two"}\n')
    assert parts(config)["s"]["curation"] != before


def test_changed_parts_are_named_at_the_next_start(config: Config, data: Store) -> None:
    assert changes_since_start(parts(config), data) == []
    record_parts(parts(config), data)
    changed = parts(change(config, seq_len=16, order_seed=3))
    for _refused in range(2):  # a start that is refused leaves the record as it was
        assert changes_since_start(changed, data) == ["s.curation.order_seed", "s.seq_len"]
    assert changes_since_start(parts(config), data) == []
    assert fingerprint.digest(changed) != fingerprint.digest(parts(config))
