"""Which documents a spike's steps hold: looked up beside the training, kept in the run folder, told once.

    healing/documents/<number>.json    [{step, source, shard, row, document, tokens}, …] of a decision (healing.py)
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from pretrainer.data.curriculum import Curriculum
from pretrainer.data.ledger.lines import begun_plans
from pretrainer.data.prologue import Frozen
from pretrainer.data.trace import SourceTrace
from pretrainer.errors import PretrainerError
from pretrainer.storage import Store
from pretrainer.train.stability.healing import HEALING, read_heals

log = logging.getLogger(__name__)

TOLD = 100  # documents in the event; the object has all


class Culprits:
    """A thread of the driver that names the documents of every decision it is told of; a failure fails nothing."""

    def __init__(self, run: Store, data: Frozen, per_step: int, tell: Callable[[dict[str, Any]], object]) -> None:
        self.run, self.data, self.per_step, self.tell = run, data, per_step, tell
        self.curriculum = Curriculum(data.segments, per_step)
        self.waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        self.thread: threading.Thread | None = None
        self.known: set[int] = set()  # numbers of decisions

    def notice(self, event: dict[str, Any]) -> None:
        """Take an event of the recorder. At a start it is told what workers decided that were killed before they could
        tell it."""
        if event["kind"] == "start":
            for heal in read_heals(self.run):
                is_told = heal.number in self.known or self.run.exists(path_of(heal.number))
                if heal.time_s < event["time_s"] and not is_told:
                    self.tell(heal.event())
        elif event["kind"] == "healing" and event["number"] not in self.known:
            self.known.add(event["number"])
            self.waiting.put(event)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="culprits", daemon=True)
                self.thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Wait for what was asked; whether all of it is done."""
        waiter = threading.Thread(target=self.waiting.join, daemon=True)
        waiter.start()
        waiter.join(timeout_s)
        return not waiter.is_alive()

    def _work(self) -> None:
        while True:
            event = self.waiting.get()
            try:
                self._name(event)
            except (PretrainerError, OSError, IndexError) as error:
                log.warning("the documents of decision %d could not be named: %s", event["number"], error)
            finally:
                self.waiting.task_done()

    def _name(self, event: dict[str, Any]) -> None:
        first, end = event["first_step"], event["end_step"]
        if not end:  # nothing is left out
            first, end = event["step"], event["step"] + 1
        documents = documents_of(self.data, self.curriculum, range(first, end), self.per_step)
        documents.sort(key=lambda one: -one["tokens"])
        path = path_of(event["number"])
        self.run.write(path, json.dumps(documents, indent=1).encode())
        told = {"number": event["number"], "step": event["step"], "first_step": first, "end_step": end}
        where = self.run.child(path).uri
        self.tell({"kind": "culprits", **told, "count": len(documents), "documents": documents[:TOLD], "where": where})


def path_of(number: int) -> str:
    """Where the documents of a decision are, in the run folder."""
    return f"{HEALING}/documents/{number:06d}.json"


def documents_of(data: Frozen, curriculum: Curriculum, steps: range, per_step: int) -> list[dict[str, Any]]:
    """Every document in these steps once per step, in the order of its first sequence; IndexError: not packed yet."""
    run = Store(data.plans[0].data_uri)
    lines = begun_plans(run, data.plans, data.segments)
    traces = [[SourceTrace(plan) for plan in line] for line in lines]
    found: dict[tuple[int, str, str, int], dict[str, Any]] = {}
    for step in steps:
        for number in range(step * per_step, (step + 1) * per_step):
            source, nth = curriculum.expected(number)
            _batch, passages = traces[curriculum.line_of(number)][source].block(nth)
            for p in passages:
                about = {"step": step, "source": p.source, "shard": p.shard, "row": p.row, "document": p.document}
                known = found.setdefault((step, p.source, p.shard, p.row), {**about, "tokens": 0})
                known["tokens"] += p.tokens
    return list(found.values())
