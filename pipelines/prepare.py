"""Curation alone, to the end of every source, into the ledger and the token shards of a run.

    python -m pipelines.prepare --config configs/125m.yaml run.name=first
    python -m pipelines.pretrain --config configs/125m.yaml run.name=first      only reads what is there

The same command goes on after an interruption; chunks that are committed are not curated again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.driver.cli import Cluster, cluster, config_parser, run_main, settled
from pipelines.driver.continuation import read_resolved
from pipelines.driver.documents import document_counts, document_table
from pipelines.driver.preflight import check
from pipelines.driver.progress import Console
from pipelines.driver.start import open_data
from pretrainer.config import Config
from pretrainer.data.ledger.ledger import ChunkKey, ChunkRecord
from pretrainer.data.pipeline import curate
from pretrainer.data.plan import SourcePlan
from pretrainer.lease import hold
from pretrainer.storage import Store, resolve_run

SAY_EVERY_S = 10.0


def main(arguments: Sequence[str]) -> int:
    started_s = time.time()
    config, _parent = read_resolved(config_parser("prepare", __doc__.split("\n\n")[0]).parse_args(arguments))
    run = resolve_run(config.run.name, config.run.storage)
    with cluster(config) as there:
        return prepare(settled(config, there), run, there, Console(started_s, config))


def prepare(config: Config, run: Store, there: Cluster, console: Console) -> int:
    """Curate every source to its end, all sources at the same time."""
    check(config, run, there, training=False)
    with hold(run, "", config.cluster.heartbeat_s, config.cluster.takeover_s):
        return curate_all(config, run, console)


def curate_all(config: Config, run: Store, console: Console) -> int:
    """The run's only driver."""
    data = open_data(config, run, console)
    with ThreadPoolExecutor(len(data.plans)) as pool:
        list(pool.map(lambda plan: follow(plan, console), data.plans))
    console.say("\n".join(["", "documents", *document_table(document_counts(data))]))
    console.say(f"\nall chunks of {run.uri} are committed; pretrain with the same config only reads them")
    return 0


def follow(plan: SourcePlan, console: Console, tokens: float = math.inf) -> None:
    """Curate one source to its end, or until its ledger holds so many tokens, with a line of progress now and then."""
    said_s = started_s = time.monotonic()
    first = done = plan.ledger.committed_units()
    if first:
        console.say(f"  {plan.source.name}: {first:,} of {plan.units:,} units were committed before")
    has = sum(record.tokens for record in plan.ledger.records()) if tokens < math.inf else 0
    curated = curate(plan) if has < tokens else iter(())
    for units in curated:
        has += tokens_of(plan, done, units) if tokens < math.inf else 0
        done, now_s = units, time.monotonic()
        if has >= tokens:
            break
        if now_s - said_s >= SAY_EVERY_S:
            rate, said_s = (done - first) / (now_s - started_s), now_s
            left = (plan.units - done) / max(rate, 1e-9)
            console.say(f"  {plan.source.name}: {done:,} of {plan.units:,} units, {rate:.2f} per s, {left:,.0f} s left")
    del curated  # what was read ahead is dropped
    console.say(f"  {plan.source.name}: {done:,} of {plan.units:,} units are committed")


def tokens_of(plan: SourcePlan, first: int, end: int) -> int:
    """Tokens of the committed units [first, end)."""
    records = (record for unit in range(first, end) for record in unit_records(plan, unit))
    return sum(record.tokens for record in records)


def unit_records(plan: SourcePlan, unit: int) -> Iterator[ChunkRecord]:
    for chunk in itertools.count():
        record = plan.ledger.record(ChunkKey(unit, chunk))
        if record is None:
            return
        yield record
        if record.last:
            return


if __name__ == "__main__":
    run_main(main)
