"""The training loop: what every rank runs, as one straight story.

The stream deals slot blocks round-robin, so a rank knows by arithmetic which block comes next and checks each block's
stamp before it trains on it. Only rank 0 talks to the recorder (an actor on the driver's node, see recorder.py), writes
the audit log and the checkpoint's state; everything that decides is reduced over all ranks first.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.util.metrics import Gauge
from torch import nn

from pretrainer.config import Config
from pretrainer.errors import PretrainerError, StreamError
from pretrainer.model.flops import flops_per_token, model_flops_utilization
from pretrainer.model.generate import generate_in_lockstep
from pretrainer.model.transformer import init_weights
from pretrainer.schema import Batch, SlotOrder, from_ipc
from pretrainer.storage import Store
from pretrainer.train import batch as slots
from pretrainer.train.checkpoint import load_sharded, save_sharded
from pretrainer.train.evaluate import Evaluation, evaluate
from pretrainer.train.optimizer import build_optimizer
from pretrainer.train.parallel import build_sharded
from pretrainer.train.schedule import learning_rate
from pretrainer.train.step import MicroBatch, StepResult, all_reduce_sum, train_step

log = logging.getLogger(__name__)

PREFETCH_BLOCKS = 8
SAMPLE_TOKENS = 96


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a rank needs to know; sent once, picklable."""

    config: Config
    vocab_size: int
    order: SlotOrder
    data_uri: str
    run_uri: str
    fingerprint: str
    held_out_bytes: dict[str, int]
    sample_prompt: tuple[int, ...]
    recorder: Any  # actor handle of recorder.Recorder


@dataclass
class TrainState:
    """What a checkpoint holds beside weights and optimizer; everything else is a function of the step."""

    step: int = 0
    tokens: int = 0
    order_digest: str = ""
    fingerprint: str = ""


@dataclass
class Interval:
    """Sums since the last log line or checkpoint."""

    started_s: float = field(default_factory=time.perf_counter)
    wait_s: float = 0.0
    tokens: int = 0
    steps: int = 0


class SlotBlockCollate(ArrowBatchCollateFn):
    """One-row tables of schema.SLOT_BLOCK -> schema.Batch."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len

    def __call__(self, table: pa.Table) -> Batch:
        return Batch.from_row({name: table.column(name)[0].as_py() for name in table.column_names}, self.seq_len)


def train_loop(spec: WorkerSpec) -> None:
    """Entry point of a rank under Ray Train; tells the recorder why before an error leaves."""
    try:
        _train(spec)
    except PretrainerError as error:
        ray.get(spec.recorder.fatal.remote(str(error), error.exit_code))
        raise
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, PretrainerError) else find_cause(error)
        if cause is not None:
            ray.get(spec.recorder.fatal.remote(str(cause), cause.exit_code))
        raise


def find_cause(error: BaseException) -> PretrainerError | None:
    """The error of ours somewhere under the wrappers that Ray Data puts around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PretrainerError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    return None


def _train(spec: WorkerSpec) -> None:
    config, rank, world = spec.config, ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    _set_threads(config)
    model = build_sharded(config.model, spec.vocab_size, config.train, device)
    optimizer = build_optimizer(model, config.train)
    state = _restore(spec, model, optimizer)
    if state is None:
        init_weights(model, config.run.seed)
        state = TrainState(fingerprint=spec.fingerprint)
    reporter = Reporter(spec, rank, world, device, model)
    reporter.start(state)
    held_out = load_held_out(spec, device)
    audit = Audit(spec, rank, world)
    if state.step == 0:
        _save(spec, model, optimizer, state, audit)
        reporter.validation(state, validate(spec, model, held_out, rank, world))
    blocks = BlockSource(spec, rank, world, state.step)
    total, every = config.total_steps, config.train
    stop = False
    while state.step < total and not stop:
        step = state.step
        mine, wait_s = blocks.take(step)
        prepared = [_prepare(spec, step, number, batch, device) for number, batch in mine]
        own_targets = sum(int(slots.valid_targets(batch)) for _number, batch in mine)
        targets, missing, stops = all_reduce_sum([own_targets, blocks.missing(step, mine), reporter.stop_requested], device)
        if missing:
            reporter.exhausted(state)
            break
        dummies = _micro_per_block(config) * slots.max_blocks(step, config.slot_blocks_per_step, world) - sum(
            len(micro) for _tokens, micro in prepared)
        rate = learning_rate(config.train, step, total)
        result = train_step(model, optimizer, [m for _t, micro in prepared for m in micro], dummies, int(targets), rate, config.train.clip_norm)
        audit.add(step, mine, [tokens for tokens, _micro in prepared], result)
        state.step, state.tokens = step + 1, state.tokens + config.train.global_batch_tokens
        reporter.step(state, result, rate, int(targets), wait_s)
        stop = stops > 0
        last = stop or state.step == total
        if state.step % every.validate_every_steps == 0 or last:
            reporter.validation(state, validate(spec, model, held_out, rank, world))
        if state.step % every.sample_every_steps == 0 or state.step == min(20, total) or last:
            ids = generate_in_lockstep(model, spec.sample_prompt, SAMPLE_TOKENS, seed=state.step, device=device)
            reporter.sample(state, ids)
        if state.step % every.checkpoint_every_steps == 0 or last:
            _save(spec, model, optimizer, state, audit)
            reporter.checkpoint(state)
    if audit.lines_waiting:
        _save(spec, model, optimizer, state, audit)
        reporter.checkpoint(state)
    reporter.finish(state, "stopped" if stop and state.step < total else "completed" if state.step == total else "exhausted")


def _set_threads(config: Config) -> None:
    local = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(config.train.threads_per_worker or max(1, (os.cpu_count() or 1) // local))


def _micro_per_block(config: Config) -> int:
    return config.data.slot_sequences // (config.train.micro_batch_sequences or config.data.slot_sequences)


def _prepare(spec: WorkerSpec, step: int, number: int, batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[MicroBatch]]:
    config = spec.config
    tokens = slots.to_tensor(batch, device)
    return tokens, slots.micro_batches(
        tokens, batch, sequences=config.train.micro_batch_sequences or config.data.slot_sequences,
        document_mask=config.model.document_mask, run_seed=config.run.seed, step=step, slot_block=number)


class BlockSource:
    """This rank's slot blocks, each checked against the number that it must have before anyone sees it."""

    def __init__(self, spec: WorkerSpec, rank: int, world: int, step: int) -> None:
        self.spec, self.rank, self.world = spec, rank, world
        self.per_step = spec.config.slot_blocks_per_step
        self.dealt_from = spec.order.restart(step * self.per_step)[0]
        shard = ray.train.get_dataset_shard("train")
        self.batches: Iterator[Batch] = iter(shard.iter_torch_batches(
            batch_size=1, prefetch_batches=PREFETCH_BLOCKS, collate_fn=SlotBlockCollate(spec.config.data.seq_len), device="cpu"))
        for number in range(self.dealt_from + rank, step * self.per_step, world):
            self._next(number)  # the part of the mixing cycle that was trained before the restart

    def take(self, step: int) -> tuple[list[tuple[int, Batch]], float]:
        """((global number, batch) of this rank's slot blocks of a step, seconds waited for them)."""
        started, mine = time.perf_counter(), []
        for number in slots.owned_blocks(step, self.per_step, self.rank, self.world, self.dealt_from):
            batch = self._next(number)
            if batch is None:
                break
            mine.append((number, batch))
        return mine, time.perf_counter() - started

    def missing(self, step: int, mine: list[tuple[int, Batch]]) -> int:
        return len(slots.owned_blocks(step, self.per_step, self.rank, self.world, self.dealt_from)) - len(mine)

    def _next(self, number: int) -> Batch | None:
        batch = next(self.batches, None)
        if batch is not None and (batch.source, batch.block) != self.spec.order.expected(number):
            source, nth = self.spec.order.expected(number)
            raise StreamError(f"rank {self.rank} of {self.world} was dealt block {batch.block} of source {batch.source} where slot block "
                              f"{number} must be block {nth} of source {source}; it was not trained on")
        return batch


class Audit:
    """Digests of what was trained, one line per step, written as one object before each checkpoint's commit."""

    def __init__(self, spec: WorkerSpec, rank: int, world: int) -> None:
        self.spec, self.rank, self.world = spec, rank, world
        self.mine: list[tuple[int, int, str, int, bool]] = []  # (step, global block, digest, targets, applied)

    @property
    def lines_waiting(self) -> bool:
        return bool(self.mine)

    def add(self, step: int, blocks: list[tuple[int, Batch]], tensors: list[torch.Tensor], result: StepResult) -> None:
        for (number, batch), tensor in zip(blocks, tensors, strict=True):
            self.mine.append((step, number, slots.block_digest(tensor), slots.valid_targets(batch), result.applied))

    def write(self, state: TrainState) -> str:
        """Gather all ranks' lines on rank 0, write them, and return the order digest up to the state's step."""
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, self.mine)
        self.mine = []
        lines = audit_lines(self.spec, sorted(entry for entries in gathered for entry in entries), self.world)
        digest = state.order_digest
        for line in lines:
            digest = slots.chain(digest, line["digest"])
        if lines and self.rank == 0:
            body = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
            Store(self.spec.run_uri).write(f"audit/{lines[0]['step']:09d}-{lines[-1]['step']:09d}.jsonl", body.encode())
        return digest


def audit_lines(spec: WorkerSpec, entries: list[tuple[int, int, str, int, bool]], world: int) -> list[dict[str, Any]]:
    """One line per step from all ranks' entries, sorted by (step, block)."""
    lines = []
    for step, group in itertools.groupby(entries, key=lambda entry: entry[0]):
        blocks = list(group)
        lines.append({
            "step": step, "digest": slots.step_digest([b[2] for b in blocks]), "tokens": spec.config.train.global_batch_tokens,
            "targets": sum(b[3] for b in blocks), "world_size": world, "applied": all(b[4] for b in blocks),
            "provenance": provenance(spec, [b[1] for b in blocks]),
        })
    return lines


def provenance(spec: WorkerSpec, numbers: list[int]) -> dict[str, list[int]]:
    """Per source [first, end) of the sequences in these slot blocks."""
    out: dict[str, list[int]] = {}
    size = spec.config.data.slot_sequences
    for number in numbers:
        source, nth = spec.order.expected(number)
        name = spec.config.data.sources[source].name
        first, end = out.get(name, [nth * size, nth * size])
        out[name] = [min(first, nth * size), max(end, (nth + 1) * size)]
    return out


def _save(spec: WorkerSpec, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, audit: Audit) -> None:
    """Audit log, then the sharded checkpoint, then its commit by Ray Train (a barrier over all ranks)."""
    state.order_digest = audit.write(state)
    folder = tempfile.mkdtemp(prefix="pretrainer-checkpoint-")
    try:
        save_sharded(model, optimizer, asdict(state), folder)
        ray.train.report(
            {"step": state.step, "fingerprint": spec.fingerprint}, checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{state.step:09d}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _restore(spec: WorkerSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState | None:
    """Weights, optimizer and state from the newest committed checkpoint, at any world size; None at the first start."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state = TrainState(**load_sharded(model, optimizer, folder))
    if state.fingerprint != spec.fingerprint:
        raise StreamError(f"the checkpoint of step {state.step} was trained on the stream {state.fingerprint}, this config makes "
                          f"{spec.fingerprint}; restore the config, or give the run a new run.name")
    return state


def load_held_out(spec: WorkerSpec, device: torch.device) -> dict[str, list[MicroBatch]]:
    """Held-out micro-batches by source; the same list on every rank."""
    config, out = spec.config, {}
    for source in config.data.sources:
        table = from_ipc(Store(spec.data_uri).read(f"held_out/{source.name}.arrow"))
        batches = [Batch.from_row(row, config.data.seq_len) for row in table.to_pylist()]
        out[source.name] = [micro for b in batches if b.lengths.any() for micro in _prepare(spec, 0, b.block, b, device)[1]]
    return out


def validate(spec: WorkerSpec, model: nn.Module, held_out: dict[str, list[MicroBatch]], rank: int, world: int) -> dict[str, Evaluation]:
    """Held-out loss by source."""
    return {name: evaluate(model, batches, spec.held_out_bytes[name], rank, world) for name, batches in held_out.items()}


class Reporter:
    """Rank 0's line to the recorder, and this rank's gauges for the Ray dashboard and Prometheus."""

    def __init__(self, spec: WorkerSpec, rank: int, world: int, device: torch.device, model: nn.Module) -> None:
        self.spec, self.rank, self.world, self.device = spec, rank, world, device
        self.flops = flops_per_token(spec.config.model, spec.vocab_size, spec.config.data.seq_len)
        self.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.interval, self.waiting, self.pending, self.stop_requested = Interval(), [], None, 0
        tags = {"run": spec.config.run.name, "rank": str(rank)}
        self.gauges = {name: Gauge(f"pretrainer_{name}", text, tag_keys=tuple(tags)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def _send(self, event: dict[str, Any]) -> None:
        if self.rank == 0:
            if self.pending is not None:
                self.stop_requested = int(ray.get(self.pending))
            self.pending = self.spec.recorder.record.remote(event)

    def start(self, state: TrainState) -> None:
        self._send({"kind": "start", "step": state.step, "world_size": self.world, "time_s": time.time()})

    def step(self, state: TrainState, result: StepResult, rate: float, targets: int, wait_s: float) -> None:
        interval = self.interval
        interval.wait_s, interval.tokens, interval.steps = (
            interval.wait_s + wait_s, interval.tokens + self.spec.config.train.global_batch_tokens, interval.steps + 1)
        self.waiting.append({"step": state.step, "loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": rate,
                             "targets": targets, "applied": result.applied, "time_s": time.time()})
        every = self.spec.config.train.log_every_steps
        if state.step % every == 0 or state.step <= 1 or state.step == self.spec.config.total_steps:
            self._flush(state, result)

    def _flush(self, state: TrainState, result: StepResult) -> None:
        elapsed = max(1e-9, time.perf_counter() - self.interval.started_s)
        rate, waited = self.interval.tokens / elapsed, self.interval.wait_s / elapsed
        mfu = model_flops_utilization(rate, self.flops, self.world, self.device_name)
        for name, value in (("loss", result.loss), ("tokens_per_s", rate), ("data_wait_fraction", waited), ("step", state.step)):
            self.gauges[name].set(float(value))
        self._send({"kind": "steps", "steps": self.waiting, "tokens": state.tokens, "tokens_per_s": rate, "data_wait_s": self.interval.wait_s,
                    "elapsed_s": elapsed, "data_wait_fraction": waited, "mfu": mfu, "world_size": self.world})
        self.interval, self.waiting = Interval(), []

    def validation(self, state: TrainState, results: dict[str, Evaluation]) -> None:
        self._send({"kind": "validation", "step": state.step, "sources": {k: asdict(v) for k, v in results.items()}})
        self.interval = Interval()  # validation is not training time

    def sample(self, state: TrainState, ids: list[int]) -> None:
        self._send({"kind": "sample", "step": state.step, "ids": ids})
        self.interval = Interval()

    def checkpoint(self, state: TrainState) -> None:
        self._send({"kind": "checkpoint", "step": state.step, "order_digest": state.order_digest})
        self.interval = Interval()

    def exhausted(self, state: TrainState) -> None:
        self._send({"kind": "exhausted", "step": state.step})

    def finish(self, state: TrainState, status: str) -> None:
        self._send({"kind": "finish", "status": status, "step": state.step, "tokens": state.tokens, "order_digest": state.order_digest})
        if self.rank == 0:
            ray.get(self.pending)


GAUGES = {
    "loss": "Training loss, nats per token",
    "tokens_per_s": "Training tokens per second over all workers",
    "data_wait_fraction": "Share of the time that this rank waited for data",
    "step": "Optimizer steps done",
}
