"""The audit log: what was trained, step by step, in objects that are written before each checkpoint's commit.

    audit/<first step>-<last step>-a<attempt>.jsonl   one line per step
    audit/attempts/<attempt>.json                     one object per worker group, before it trains

An attempt is a worker group; attempts are numbered over the whole life of the run, whatever ended the one before. A
crash between an object and its checkpoint's commit leaves lines of steps that the next attempt trains again: both
objects stay, and the attempt's own object says from which step on it replaces what came before (read by auditlog.py).
"""

from __future__ import annotations

import itertools
import json
import math
import time
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist

from pretrainer.config import Config
from pretrainer.schema import Batch, SlotOrder
from pretrainer.storage import Store
from pretrainer.train.batch import ReadBack, chain, step_digest
from pretrainer.train.objective import how_of, lesson
from pretrainer.train.spec import TrainState, WorkerSpec
from pretrainer.train.step import StepResult

AUDIT = "audit"
ATTEMPTS = f"{AUDIT}/attempts"


class Entry(NamedTuple):
    """A slot block of a step; what is said of the step is the same in all of its entries."""

    step: int
    number: int  # of the slot block in the run
    digest: str
    targets: int
    reason: str | None = None  # why the step was not applied
    loss: float = math.nan
    grad_norm: float = math.nan



class Audit:
    """Digests of what was trained, one line per step, written as one object before each checkpoint's commit."""

    def __init__(self, spec: WorkerSpec, rank: int, world: int, attempt: int) -> None:
        self.spec, self.rank, self.world, self.attempt = spec, rank, world, attempt
        self.mine: list[Entry] = []
        self.copying: tuple[int, list[int], list[int], StepResult, ReadBack] | None = None  # the newest step

    @classmethod
    def begin(cls, spec: WorkerSpec, rank: int, world: int, step: int) -> Audit:
        """The audit of a worker group that goes on at `step`; rank 0, which writes, takes a number for all."""
        number = [claim_attempt(Store(spec.run_uri), step, world) if rank == 0 else None]
        dist.broadcast_object_list(number, src=0)
        return cls(spec, rank, world, cast(int, number[0]))

    @property
    def lines_waiting(self) -> bool:
        return bool(self.mine) or self.copying is not None

    def add(self, step: int, blocks: list[tuple[int, Batch]], tensors: list[torch.Tensor], result: StepResult) -> None:
        """Note a step: this rank's (global number, batch) and the tensors [K, S + 1] that the model got for them.

        On a GPU it waits for the step before that one, so the host is never more than one step ahead of the device.
        """
        self._hash()
        how = how_of(self.spec.config, self.spec.mask_vocabulary)
        targets = [lesson(batch, number, how).targets for number, batch in blocks]
        self.copying = step, [number for number, _batch in blocks], targets, result, ReadBack(tensors)

    def _hash(self) -> None:
        """Digest the step before, whose copy had a whole step's time to arrive."""
        if self.copying is not None:
            step, numbers, targets, result, copy = self.copying
            rows = zip(numbers, copy.digests(), targets, strict=True)
            of_step = None if result.applied else result.reason, result.loss, result.grad_norm
            self.mine += [Entry(step, number, digest, count, *of_step) for number, digest, count in rows]
            self.copying = None

    def forget(self) -> None:
        """Training goes back to the last checkpoint: what was noted since then is trained again."""
        self.mine, self.copying = [], None

    def write(self, state: TrainState) -> str:
        """Gather all ranks' lines on rank 0, write them, and return the order digest up to the state's step."""
        self._hash()
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, self.mine)
        self.mine = []
        entries = sorted((entry for several in gathered for entry in several), key=lambda e: (e.step, e.number))
        lines = audit_lines(self.spec, entries, self.world, self.attempt, state.order_digest)
        if lines and self.rank == 0:
            body = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
            name = object_name(lines[0]["step"], lines[-1]["step"], self.attempt)
            Store(self.spec.run_uri).create(f"{AUDIT}/{name}", body.encode())
        return lines[-1]["order_digest"] if lines else state.order_digest


def claim_attempt(run: Store, step: int, world_size: int) -> int:
    """The number of a new worker group, taken by exclusive creation, so that no two ever have the same.

    It outlives the driver; a second group that starts at the same moment gets a StorageError and is started again.
    """
    attempt = len(run.list(ATTEMPTS))
    record = {"attempt": attempt, "step": step, "world_size": world_size, "time_s": time.time()}
    run.create(f"{ATTEMPTS}/{attempt:06d}.json", json.dumps(record, sort_keys=True).encode())
    return attempt


def object_name(first_step: int, last_step: int, attempt: int) -> str:
    return f"{first_step:09d}-{last_step:09d}-a{attempt:06d}.jsonl"


def audit_lines(
    spec: WorkerSpec, entries: list[Entry], world: int, attempt: int, order_digest: str
) -> list[dict[str, Any]]:
    """One line per step from all ranks' entries, sorted by (step, block); order_digest is that before the first."""
    lines, size = [], spec.config.data.slot_sequences
    for step, group in itertools.groupby(entries, key=lambda entry: entry.step):
        blocks = list(group)
        digest = step_digest([b.digest for b in blocks])
        reasons = [b.reason for b in blocks if b.reason is not None]
        order_digest = chain(order_digest, digest)
        lines.append(
            {
                "step": step,
                "segment": spec.segment,
                "digest": digest,
                "order_digest": order_digest,
                "tokens": spec.config.train.global_batch_tokens,
                "targets": sum(b.targets for b in blocks),
                "loss": or_null(blocks[0].loss),
                "grad_norm": or_null(blocks[0].grad_norm),
                "world_size": world,
                "attempt": attempt,
                "applied": not reasons,
                "reason": reasons[0] if reasons else "",
                "provenance": provenance(spec.config, size, spec.order, [b.number for b in blocks]),
            }
        )
    return lines


def or_null(value: float) -> float | None:
    """For JSON, which has no number for what is not finite."""
    return value if math.isfinite(value) else None


def provenance(config: Config, size: int, order: SlotOrder, numbers: list[int]) -> dict[str, list[int]]:
    """Per source [first, end) of the sequences in these global slot blocks of `size` sequences each."""
    out: dict[str, list[int]] = {}
    for number in numbers:
        source, nth = order.expected(number)
        name = config.data.sources[source].name
        first, end = out.get(name, [nth * size, nth * size])
        out[name] = [min(first, nth * size), max(end, (nth + 1) * size)]
    return out
