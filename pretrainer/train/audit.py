"""The audit log: what was trained, step by step, in objects that are written before each checkpoint's commit."""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch
import torch.distributed as dist

from pretrainer.schema import Batch
from pretrainer.storage import Store
from pretrainer.train.batch import block_digest, chain, step_digest, valid_targets
from pretrainer.train.spec import TrainState, WorkerSpec
from pretrainer.train.step import StepResult


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
            self.mine.append((step, number, block_digest(tensor), valid_targets(batch), result.applied))

    def write(self, state: TrainState) -> str:
        """Gather all ranks' lines on rank 0, write them, and return the order digest up to the state's step."""
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, self.mine)
        self.mine = []
        lines = audit_lines(self.spec, sorted(entry for entries in gathered for entry in entries), self.world)
        digest = state.order_digest
        for line in lines:
            digest = chain(digest, line["digest"])
        if lines and self.rank == 0:
            body = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
            Store(self.spec.run_uri).write(f"audit/{lines[0]['step']:09d}-{lines[-1]['step']:09d}.jsonl", body.encode())
        return digest


def audit_lines(spec: WorkerSpec, entries: list[tuple[int, int, str, int, bool]], world: int) -> list[dict[str, Any]]:
    """One line per step from all ranks' entries, sorted by (step, block)."""
    lines = []
    for step, group in itertools.groupby(entries, key=lambda entry: entry[0]):
        blocks = list(group)
        lines.append(
            {
                "step": step,
                "digest": step_digest([b[2] for b in blocks]),
                "tokens": spec.config.train.global_batch_tokens,
                "targets": sum(b[3] for b in blocks),
                "world_size": world,
                "applied": all(b[4] for b in blocks),
                "provenance": provenance(spec, [b[1] for b in blocks]),
            }
        )
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
