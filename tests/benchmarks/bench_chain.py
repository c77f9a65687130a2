"""The whole chain text -> slot blocks: through Ray on two cores, against its stages in one plain process per core.

    python tests/benchmarks/bench_chain.py [--megabytes 256]

Both read the same shards with the same config (web rules, exact and near dedup, sentencepiece, best-fit packing,
chunks of the default size, slot blocks of 64 sequences). The plain side is two processes that each take half of the
chunks through the stage functions, without Ray; each has a dedup index of its own, so it decides a little less.
Start-up (Ray, imports, kernels) is left out on both sides: the clock starts with the first chunk and stops with the
last. Also the peak memory of a plain data worker at 1x and 10x input.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sysconfig
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pretrainer.config import DataConfig, SourceConfig
from pretrainer.data.decontamination.freeze import freeze_decontamination, index_path
from pretrainer.data.dedup.dedup import signatures
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.packing.packer import PackWindows
from pretrainer.data.plan import SourcePlan
from pretrainer.data.readers.source import Manifest
from pretrainer.data.readers.units import UnitPlan
from pretrainer.data.stages import read_chunks, tokenize_chunk
from pretrainer.data.tokenizer.train import train_tokenizer
from pretrainer.schema import DOCUMENTS, to_ipc
from pretrainer.storage import Store

MEAN_BYTES = 7600


def documents(megabytes: int) -> list[str]:
    """Paragraphs of the standard library's docstrings and comments in random order: no two texts are near-copies."""
    folder, rng = Path(sysconfig.get_paths()["stdlib"]), random.Random(0)
    files = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]
    lines = [line.strip() for text in files for line in text.splitlines() if len(line.split()) >= 6]
    made, size = [], 0
    while size < megabytes * 2**20:
        text, wanted = "", rng.gauss(MEAN_BYTES, 2000)
        while len(text) < wanted:
            text += rng.choice(lines) + "\n"
        made.append(text)
        size += len(text)
    return made


def make_plan(folder: Path, texts: list[str]) -> SourcePlan:
    (folder / "corpus").mkdir(parents=True)
    for start in range(0, len(texts), 5000):
        lines = "\n".join(json.dumps({"text": text}) for text in texts[start : start + 5000])
        (folder / f"corpus/{start:06d}.jsonl").write_text(lines + "\n")
    source = SourceConfig(name="web", uris=(str(folder / "corpus"),), preset="web", rules=("c4_curly_bracket=off",))
    config = DataConfig(sources=(source,), packing="best_fit", read_cpus=0.5, slot_sequences=64)
    data, manifest = Store(str(folder / "data")), Manifest.build(config.sources)
    data.create("manifest.arrow", manifest.to_bytes())
    data.create("tokenizer.model", train_tokenizer(texts[:500], "bpe", 8192))
    none = signatures(pa.array([], pa.large_string()), config.dedup)
    data.create("held_out/web.sketches.arrow", to_ipc(none.to_table()))
    freeze_decontamination(config, [DOCUMENTS.empty_table()], [], data)
    return SourcePlan(0, data.uri, config, "c", "p", len(UnitPlan(manifest, 0, config.chunk_bytes)))


def plain(plan: SourcePlan, positions: range, ready: Any, result: Any) -> None:
    """The stage functions over some chunks; tells (blocks, seconds, peak bytes)."""
    held_out = Store(plan.data_uri).read("held_out/web.sketches.arrow")
    place = Store(plan.data_uri).child(f"plain-{positions.start}")

    def run(mine: SourcePlan, part: range) -> int:
        dedup, packer, blocks = InOrderDedup(mine, held_out), PackWindows(mine, 0), 0
        for at, position in enumerate(part):
            for row in read_chunks(pa.table({"position": [position]}), plan, 0):
                renamed = row.set_column(1, "unit", pa.array([at])).set_column(0, "position", pa.array([at]))
                blocks += sum(table.num_rows for table in packer(tokenize_chunk(dedup(renamed), mine)))
        return blocks

    run(_copy(plan, place, "warm"), positions[:1])
    ready.wait()
    started_s = time.perf_counter()
    blocks = run(_copy(plan, place, "timed"), positions)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.put((blocks, time.perf_counter() - started_s, peak))


def _copy(plan: SourcePlan, place: Store, name: str) -> SourcePlan:
    """The plan over a data folder of its own with the same frozen files."""
    folder = place.child(name)
    frozen = ("manifest.arrow", "tokenizer.model", "held_out/web.sketches.arrow")
    for path in (*frozen, index_path(plan.config.decontamination)):
        folder.create(path, Store(plan.data_uri).read(path))
    return replace(plan, data_uri=folder.uri, units=10**6)


def run_plain(plan: SourcePlan, processes: int, units: int) -> tuple[float, int]:
    """(seconds of the slowest, peak bytes of the largest) of plain processes over the first units."""
    context = multiprocessing.get_context("spawn")
    ready, result = context.Barrier(processes), context.Queue()
    share = -(-units // processes)
    parts = [range(start, min(start + share, units)) for start in range(0, units, share)]
    workers = [context.Process(target=plain, args=(plan, part, ready, result)) for part in parts]
    for worker in workers:
        worker.start()
    told = [result.get() for _ in workers]
    for worker in workers:
        worker.join()
    return max(s for _blocks, s, _peak in told), max(peak for _blocks, _s, peak in told)


def run_ray(plan: SourcePlan) -> float:
    """Seconds from the first slot block to the last, scaled to all of them."""
    import ray

    from pretrainer.data.pipeline import configure_context, source_stream

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    configure_context(plan.config.look_ahead_chunks, look_ahead_blocks=10**6)
    first_s, first, blocks = 0.0, 0, 0
    for _row in source_stream(plan, 0).iter_batches(batch_size=1, batch_format="pyarrow"):
        blocks += 1
        if not first_s:  # a window's blocks come at once: the clock starts behind them
            first_s, first = time.perf_counter(), blocks
    last_s = time.perf_counter()
    ray.shutdown()
    windows = plan.windows.read_all()
    counted = sum(window.tokens for window in windows[1:]) / sum(window.tokens for window in windows)
    return (last_s - first_s) / counted if first else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), documents(options.megabytes))
        tenth = max(1, plan.units // 10)
        _s, small = run_plain(plan, 1, tenth)
        alone_s, large = run_plain(plan, 1, plan.units)
        peaks = f"peak {small / 2**20:.0f} MiB for {tenth} chunks, {large / 2**20:.0f} MiB for {plan.units}"
        print(f"one plain process: {options.megabytes / alone_s:.1f} MB/s; {peaks}")
        seconds, _peak = run_plain(plan, 2, plan.units)
        print(f"two plain processes: {options.megabytes / seconds:.1f} MB/s")
        ray_s = run_ray(plan)
        print(f"Ray on two cores: {options.megabytes / ray_s:.1f} MB/s, {seconds / ray_s:.0%} of the plain processes")


if __name__ == "__main__":
    main()
