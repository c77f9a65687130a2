"""A small corpus that the inspect page's tests look at."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pretrainer.config import Config, DataConfig, SourceConfig, TrainConfig
from pretrainer.data.inspect.look import look
from pretrainer.data.inspect.page import Looked
from pretrainer.data.readers.source import list_shards
from pretrainer.storage import Store
from tests.data.harness import document

EVIL = "</script><script>window.pwned=1</script><img src=x onerror=alert(1)> & \u2028 <!-- "
SENTENCE = "The harbour master wrote that all ships would have to leave the old port with the tide and be back. "


def page_text(number: int, tail: str = "") -> str:
    """A text that the web preset keeps, with a line that it removes."""
    lines = [f"{document(number * 31 + line, 30)[:-1]} said the {line} man." for line in range(8)]
    return "\n".join([*lines, "Please enable javascript to read this.", tail or "It was the end of that."])


def corpus(folder: Path) -> Path:
    """JSONL: pages, exact and near copies, short ones, one that attacks the page, lines that cannot be read."""
    pages = [page_text(n) for n in range(12)]
    near = [page_text(n, f"It was the end of that, said number {n}.") for n in range(4)]
    half = ["\n".join([*page_text(n).split("\n")[:6], *page_text(n + 60).split("\n")[6:]]) for n in range(4, 7)]
    short = ["too short", "", EVIL, SENTENCE * 30]
    first = f"{SENTENCE * 30}\nIt was the end of that."  # dropped before dedup, so its line counts for nothing
    texts = [first, *pages, *pages[:3], *near, *half, *short]
    records = [{"id": f"{i}{EVIL if i == 3 else ''}", "text": text} for i, text in enumerate(texts)]
    lines = [json.dumps(record) for record in records]
    lines += ["{broken", json.dumps({"id": "x" + EVIL, "other": EVIL}), json.dumps({"text": page_text(3) + EVIL * 20})]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def library(folder: Path) -> Path:
    """The standard library's text files, in a folder of their own: listing all of it takes a second."""
    source = SourceConfig(name="s", uris=("python-stdlib://",), include=(".txt", ".rst"))
    for number, shard in enumerate(list_shards(source)[:70]):
        (folder / f"{number:03d}.txt").write_bytes(Store(shard.root).read(shard.path))
    return folder


def a_config(folder: Path, **data: Any) -> Config:
    """Pages with the web preset."""
    web = SourceConfig(name="pages", uris=(str(corpus(folder)),), preset="web", id_column="id")
    fields: dict[str, Any] = {"sources": (web,), "seq_len": 8, "slot_sequences": 2, "chunk_bytes": 1 << 16}
    return Config(data=DataConfig(**(fields | data)), train=TrainConfig(steps=9, global_batch_tokens=128))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The pages, and the library's texts with the prose preset, which drops most of them."""
    pages = a_config(tmp_path_factory.mktemp("corpus"))
    texts = SourceConfig(name="library", uris=(str(library(tmp_path_factory.mktemp("library"))),), preset="prose")
    return replace(pages, data=replace(pages.data, sources=(*pages.data.sources, texts)))


@pytest.fixture(scope="module")
def looked(config: Config) -> list[Looked]:
    return look(config, 80, ticks())


def ticks() -> Any:
    """A clock that goes on by one second with every look."""
    seconds = count()
    return lambda: float(next(seconds))
