"""THE stream: descriptors -> read -> dedup in order -> tokenize -> pack in order -> mix -> split.

Everything that Ray must be told so that the global order of slot blocks is the same at every world size is in this
file, with its reason (contract tests: tests/data/test_ray_contract.py):

- one row is one chunk or one slot block, and `target_max_block_size` is one byte, so every row is its own Ray block:
  no stage can see half a chunk, `mix` counts slot blocks, and the split deals whole ones round-robin;
- `preserve_order`; in-order stages are pools of one actor with `allow_out_of_order_execution=False` and one call in
  flight (by default Ray reorders calls whose arguments come from another node);
- neighbouring stages ask for different CPUs, or Ray would fuse the parallel one into the single actor;
- the descriptor row comes from `from_items`: `from_arrow` runs a task that waits for a whole CPU, which a small cluster
  does not have while a worker group restarts;
- CPUs are small fractions, or a long-lived descriptor task holds a whole core that trainers or readers need;
- `execution_no_progress_timeout_s=-1`: by default a paused trainer kills its own data.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import ray.data
from ray._private.log import PlainRayHandler
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions
from ray.util.annotations import RayDeprecationWarning

from pretrainer.config import DataConfig
from pretrainer.data import draining, lookahead, pace, reservation
from pretrainer.data.curriculum import SegmentOrder
from pretrainer.data.meters import MeteredInOrderDedup
from pretrainer.data.packing.packer import CloseChunks, PackWindows
from pretrainer.data.plan import SourcePlan
from pretrainer.data.stages import expand_positions, read_chunks, tokenize_chunk
from pretrainer.storage import Store

STRETCHES = 256
ONE_CHUNK: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}


def small_cpus(read_cpus: float) -> float:
    """CPUs of each of a source's three small stages (expand, dedup, pack); its readers and tokenizers ask for
    `read_cpus`.

    Ray Data reserves CPUs for the n stages in order, for each the larger of what its task needs and half of all divided
    by n, and gives none to a stage that the rest is not enough for. On a small cluster all that it has may be exactly
    the sum of the needs (seen: the last tokenizer stage of two sources waited for 100 s): so no need is below the
    average half, 7 s > 2 r.
    """
    small = math.floor(200 * read_cpus / 7 + 1) / 100
    return small if small != read_cpus else small + 0.01  # stages that ask for the same are fused


def in_order(cpus: float) -> dict[str, Any]:
    """Arguments of `map_batches` that make a stage see its chunks one by one and in order."""
    return {
        **ONE_CHUNK,
        "num_cpus": cpus,
        "compute": ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1),
        "allow_out_of_order_execution": False,
    }


def configure_context(look_ahead_chunks: int, look_ahead_blocks: int, labels: dict[str, str] | None = None) -> None:
    """Set this process's data context for the stream; its tasks run on nodes with these labels alone."""
    context = DataContext.get_current()
    context.execution_options = ExecutionOptions(preserve_order=True, label_selector=labels or None)
    context.execution_options.verbose_progress = False
    context.target_max_block_size = 1
    context.execution_no_progress_timeout_s = -1
    _quiet(context)
    lookahead.install(context, look_ahead_chunks, look_ahead_blocks)
    reservation.install(context)
    pace.install(context)
    draining.install(context)


def _quiet(context: DataContext) -> None:
    """Ray Data's own progress, advice on memory and warnings go to its log files; errors still come to the terminal."""
    context.enable_progress_bars = context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, PlainRayHandler):
            handler.setLevel(logging.ERROR)
    # `allow_out_of_order_execution` has no named argument yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)


def source_stream(plan: SourcePlan, first_block: int) -> ray.data.Dataset:
    """Slot blocks of one source from block `first_block` on, each a row and a Ray block of its own."""
    chunks = chunk_stream(plan, start_position(plan, first_block), plan.positions)
    pack = in_order(small_cpus(plan.config.read_cpus))
    return chunks.map_batches(PackWindows, fn_constructor_args=(plan, first_block), **pack)


def curate(plan: SourcePlan) -> Iterator[int]:
    """Curate one source to its end into its ledger; yields how many leading units are committed, as they are."""
    configure_context(plan.config.look_ahead_chunks, plan.config.look_ahead_chunks, plan.labels)
    committed = plan.ledger.committed_units()
    if committed < plan.units:
        chunks = chunk_stream(plan, committed, plan.units)
        close = in_order(small_cpus(plan.config.read_cpus))
        for row in chunks.map_batches(CloseChunks, fn_constructor_args=(plan,), **close).iter_rows():
            yield row["units"]


def chunk_stream(plan: SourcePlan, first: int, end: int) -> ray.data.Dataset:
    """Chunks (stages.CHUNK_ROW) of the stream positions [first, end), tokenized and committed, in order."""
    stretches = cut_into_stretches(first, end)
    units, chunks = plan.ledger.committed()
    committed = {"committed_units": units, "committed_chunks": chunks}
    held_out = Store(plan.data_uri).read(f"held_out/{plan.source.name}.sketches.arrow")
    parallel, small = {**ONE_CHUNK, "num_cpus": plan.config.read_cpus}, small_cpus(plan.config.read_cpus)
    read: Any = read_chunks  # Ray's annotation of map_batches knows no function that takes fn_kwargs
    tokenize: Any = tokenize_chunk
    return (
        ray.data.from_items(stretches, override_num_blocks=len(stretches))
        .map_batches(expand_positions, batch_size=1, batch_format="pyarrow", num_cpus=small)
        .map_batches(read, fn_kwargs={"plan": plan, **committed}, **parallel)
        .map_batches(MeteredInOrderDedup, fn_constructor_args=(plan, held_out), **in_order(small))
        .map_batches(tokenize, fn_kwargs={"plan": plan}, **parallel)
    )


def cut_into_stretches(first: int, end: int) -> list[dict[str, int]]:
    """[first, end) in at most STRETCHES equal parts: one descriptor block each, expanded when its turn comes.

    One long task that deals all descriptors would do, but a task whose output waits to be read keeps Ray's executor
    spinning (seen: 60 % of a core).
    """
    length = max(1, -(-(end - first) // STRETCHES))
    starts = range(first, end, length) if first < end else [end]
    return [{"first": start, "end": min(start + length, end)} for start in starts]


def start_position(plan: SourcePlan, first_block: int) -> int:
    """Stream position to read from so that slot block `first_block` comes out: its first sequence's window's start."""
    windows = plan.windows
    window = windows.of_sequence(first_block * plan.config.slot_sequences)
    if window is not None:
        return window.first[0]
    newest = windows.newest()
    return newest.after[0] if newest else plan.begin[0]


def build_stream(
    plans: Sequence[SourcePlan], order: SegmentOrder, first_block: int, look_ahead_blocks: int
) -> ray.data.Dataset:
    """The mixed stream of a segment, from the mixing cycle that holds global slot block `first_block`."""
    configure_context(plans[0].config.look_ahead_chunks, look_ahead_blocks, plans[0].labels)
    _start, by_source = order.restart(first_block)
    active = [i for i, share in enumerate(order.shares) if share]
    streams = [source_stream(plans[i], by_source[i]) for i in active]
    if len(streams) == 1:
        return streams[0]
    return streams[0].mix(
        *streams[1:],
        weights=[float(order.shares[i]) for i in active],
        stopping_condition=ray.data.MixStoppingCondition.STOP_ON_SHORTEST,
    )


def data_cpus(config: DataConfig) -> float:
    """CPUs that the stream must find beside the trainers, or it starves.

    Ray Data reserves CPUs by operator, and an operator whose task does not fit into what is left gets none for ever
    (seen: the second of two sources waited without an error), so every source counts in full.
    """
    return len(config.sources) * (3 * small_cpus(config.read_cpus) + 2 * config.read_cpus)
