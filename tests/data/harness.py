"""The stages of the stream in one process, without Ray: what Ray runs, in the order that Ray must keep."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa

from pretrainer.config import DataConfig, DedupConfig, SourceConfig
from pretrainer.data import stages
from pretrainer.data.decontamination.freeze import freeze_decontamination
from pretrainer.data.dedup.dedup import signatures
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.packing.packer import PackWindows
from pretrainer.data.pipeline import start_position
from pretrainer.data.plan import SourcePlan
from pretrainer.data.readers.source import Manifest
from pretrainer.data.readers.units import UnitPlan
from pretrainer.data.tokenizer.train import train_tokenizer
from pretrainer.schema import DOCUMENTS, to_ipc
from pretrainer.storage import Store

DEDUP = DedupConfig(permutations=128, bands=8, rows_per_band=4)
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one"
).split()


def document(number: int, words: int = 60) -> str:
    """A text of its own for every number: words drawn by a linear congruential generator."""
    state, out = number * 7919 + 1, []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(WORDS[(state >> 8) % len(WORDS)] + (str(state % 97) if state % 5 == 0 else ""))
    return " ".join(out) + "."


@cache
def small_tokenizer() -> bytes:
    return train_tokenizer([document(n) for n in range(200)], "bpe", 440)


def make_plan(
    folder: Path, texts: Sequence[str], lines_per_file: int = 10, compressed: bool = False, **changes: object
) -> SourcePlan:
    """A plan over JSONL files of these texts, its run folder frozen in `folder`/data.

    With compressed=True a file is one unit of several chunks, otherwise every chunk is a unit. `changes` are fields of
    the source (name, preset, rules, max_epochs) and of DataConfig.
    """
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(texts), lines_per_file):
        lines = [json.dumps({"text": text}) for text in texts[start : start + lines_per_file]]
        data = ("\n".join(lines) + "\n").encode()
        path = corpus / f"{start:05d}.jsonl{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(data, mtime=0) if compressed else data)
    return plan_over(folder, corpus, **changes)


def plan_over(folder: Path, corpus: Path, **changes: object) -> SourcePlan:
    """The same over files that are there."""
    of_source = {k: changes.pop(k) for k in ("name", "preset", "rules", "max_epochs") if k in changes}
    source = SourceConfig(**{"name": "synthetic", "uris": (str(corpus),), "preset": "none", **of_source})  # type: ignore[arg-type]
    config = replace(
        DataConfig(
            sources=(source,), seq_len=16, slot_sequences=4, pack_window_tokens=1100, chunk_bytes=1024, dedup=DEDUP
        ),
        **changes,
    )  # type: ignore[arg-type]
    run_data = Store(str(folder / "data"))
    manifest = Manifest.build(config.sources)
    run_data.create("manifest.arrow", manifest.to_bytes())
    run_data.create("tokenizer.model", small_tokenizer())
    freeze_decontamination(config, [DOCUMENTS.empty_table()], [], run_data)
    return SourcePlan(0, run_data.uri, config, "c", "p", len(UnitPlan(manifest, 0, config.chunk_bytes)))


def no_held_out(plan: SourcePlan) -> bytes:
    return to_ipc(signatures(pa.array([], pa.large_string()), plan.config.dedup).to_table())


def curated(
    plan: SourcePlan,
    positions: Iterable[int],
    committed: int = 0,
    dedup: InOrderDedup | None = None,
    committed_chunks: int = 0,
) -> list[pa.Table]:
    """Chunk rows as they reach the packer."""
    dedup = dedup or InOrderDedup(plan, no_held_out(plan))
    rows = []
    for position in positions:
        for row in stages.read_chunks(pa.table({"position": [position]}), plan, committed, committed_chunks):
            rows.append(stages.tokenize_chunk(dedup(row), plan))
    return rows


def packed(packer: PackWindows, rows: Iterable[pa.Table]) -> list[dict]:
    """Slot blocks as dicts."""
    return [block for row in rows for table in packer(row) for block in table.to_pylist()]


def resumed(plan: SourcePlan, first_block: int = 0) -> list[dict]:
    """The slot blocks from `first_block` on as a start of the run gives them; chunks pass one by one, as in Ray."""
    committed = plan.ledger.committed()
    position, dedup = start_position(plan, first_block), InOrderDedup(plan, no_held_out(plan))
    packer, blocks = PackWindows(plan, first_block), []
    for at in range(position, plan.positions):
        for row in stages.read_chunks(pa.table({"position": [at]}), plan, *committed):
            blocks += packed(packer, [stages.tokenize_chunk(dedup(row), plan)])
    return blocks


def stream(plan: SourcePlan, first_block: int = 0) -> list[dict]:
    """All slot blocks of a plan, from chunk 0, nothing interrupted."""
    return packed(PackWindows(plan, first_block), curated(plan, range(plan.positions)))
