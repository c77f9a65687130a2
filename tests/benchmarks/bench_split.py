"""What one split of Ray Data carries: slot blocks and tokens per second, with and without `preserve_order`.

    python tests/benchmarks/bench_split.py [--seconds 8]

Ready-made slot blocks (schema.SLOT_BLOCK) go from tasks through `streaming_split` to W readers, with the context of the
stream; nothing is curated, packed or trained.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data

from pretrainer.data.packing.packing import PackedRow, slot_block
from pretrainer.data.pipeline import ONE_CHUNK, configure_context

BLOCKS_PER_TASK = 64


def make_blocks(table: pa.Table, sequences: int, seq_len: int) -> Iterator[pa.Table]:
    """The slot blocks of one descriptor, each a Ray block of its own."""
    tokens = np.arange(seq_len + 1, dtype=np.uint32)
    row = PackedRow(tokens, np.zeros(1, np.int64), seq_len + 1, np.zeros(1, np.int64))
    for number in range(BLOCKS_PER_TASK):
        yield slot_block([row] * sequences, 0, table.column("n")[0].as_py() * BLOCKS_PER_TASK + number, 0)


def measured(*arguments: Any) -> float:
    """`rate` in a process and a cluster of its own: the executor of a stream that nobody reads to its end runs on."""
    command = [sys.executable, __file__, "--one", json.dumps(arguments)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def measure(*arguments: Any) -> None:
    ray.init(address="local", num_cpus=2, logging_level=40, log_to_driver=False, include_dashboard=False)
    print(rate(*arguments), flush=True)
    os._exit(0)  # without Ray's shutdown of what is still running (see tests/data/test_ray_contract.py)


def rate(world: int, sequences: int, seq_len: int, ordered: bool, seconds: float) -> float:
    """Blocks per second that `world` readers take together, after the first of them."""
    configure_context(look_ahead_chunks=8, look_ahead_blocks=64)
    ray.data.DataContext.get_current().execution_options.preserve_order = ordered
    descriptors = [{"n": n} for n in range(100_000 // BLOCKS_PER_TASK)]
    arguments = {"sequences": sequences, "seq_len": seq_len}
    stream = ray.data.from_items(descriptors, override_num_blocks=len(descriptors)).map_batches(
        make_blocks, fn_kwargs=arguments, num_cpus=1, **ONE_CHUNK
    )
    counts, started = [0] * world, threading.Event()
    ends: list[float] = []

    def read(rank: int, shard: ray.data.DataIterator) -> None:
        for _table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            if not started.is_set():
                started.set()
                ends.append(time.perf_counter() + seconds)
            counts[rank] += 1
            if time.perf_counter() > ends[0]:
                return

    shards = stream.streaming_split(world, equal=False)
    threads = [threading.Thread(target=read, args=(r, s), daemon=True) for r, s in enumerate(shards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    del shards
    return sum(counts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*options.one)
    print("  W  sequences x tokens  ordered  blocks/s     tokens/s  against unordered", flush=True)
    for world in (1, 2, 4):
        for sequences, seq_len in ((8, 1024), (64, 1024)):
            found = {o: measured(world, sequences, seq_len, o, options.seconds) for o in (False, True)}
            for ordered, blocks in found.items():
                tokens, ratio = blocks * sequences * seq_len, blocks / found[False]
                print(
                    f"{world:>3}{sequences:>11} x {seq_len:<6}{'yes' if ordered else 'no':>8}{blocks:>10,.0f}"
                    f"{tokens:>13,.0f}{ratio:>14.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
