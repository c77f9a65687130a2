"""How far curation is ahead of training, looked up beside it and told to the recorder as an event.

It is read from the pack windows and chunk records in storage, so nothing is asked of the stream. A look costs a few
listings for each source, and is made as often as events are written (journal.interval_s).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pretrainer.data.curriculum import Curriculum
from pretrainer.data.ledger.ledger import Ledger
from pretrainer.data.ledger.lines import begun_plans
from pretrainer.data.plan import SourcePlan
from pretrainer.data.prologue import Frozen
from pretrainer.errors import PretrainerError
from pretrainer.journal import interval_s
from pretrainer.storage import Store

log = logging.getLogger(__name__)


class Lead:
    """A thread of the driver, one look at a time; a look that fails fails nothing."""

    def __init__(self, data: Frozen, per_step: int, tell: Callable[[dict[str, Any]], object]) -> None:
        self.data, self.tell = data, tell
        self.curriculum = Curriculum(data.segments, per_step)
        self.began_s = self.looked_s = time.monotonic()
        self.thread: threading.Thread | None = None

    def notice(self, event: dict[str, Any]) -> None:
        """Take an event of the recorder: after a step, look if it is time."""
        now_s = time.monotonic()
        is_due = now_s - self.looked_s >= interval_s(now_s - self.began_s)
        if event["kind"] == "steps" and is_due and (self.thread is None or not self.thread.is_alive()):
            self.looked_s = now_s
            self.thread = threading.Thread(target=self._look, args=(event["step"],), name="lead", daemon=True)
            self.thread.start()

    def _look(self, step: int) -> None:
        try:
            self.tell({"kind": "lead", "step": step, **measure(self.data, self.curriculum, step)})
        except (PretrainerError, OSError, IndexError) as error:
            log.warning("the lead of curation over training could not be looked up: %s", error)


def measure(data: Frozen, curriculum: Curriculum, step: int) -> dict[str, Any]:
    """Steps and tokens that are packed and not trained yet, and by source the share of its units that is curated.

    The source that is least ahead decides the steps.
    """
    lines = begun_plans(Store(data.plans[0].data_uri), data.plans, data.segments)
    block = max(0, step * curriculum.blocks_per_step - 1)
    segment = curriculum.at(block)
    plans, order = lines[segment.line], segment.order
    taken = order.taken_at(min(block + 1, curriculum.end_block(segment)))
    ahead = [max(0, packed_blocks(plan) - before) for plan, before in zip(plans, taken, strict=True)]
    shares = [share / order.mixture.cycle * curriculum.blocks_per_step for share in order.shares]
    steps = min(n / share for n, share in zip(ahead, shares, strict=True) if share)
    tokens = sum(ahead) * segment.slot_sequences * segment.seq_len
    return {"steps_ahead": round(steps, 1), "tokens_ahead": tokens, "curated": curated(data.plans)}


def packed_blocks(plan: SourcePlan) -> int:
    """Slot blocks of the closed pack windows of a source."""
    newest = plan.windows.newest()
    return newest.end_sequence // plan.config.slot_sequences if newest else 0


def curated(plans: Sequence[SourcePlan]) -> dict[str, float]:
    """By source, the share of its units that the ledger has, 0 to 1."""
    ledgers = [Ledger(plan.ledger.root) for plan in plans]  # its own: the process's may be in use by another thread
    pairs = zip(plans, ledgers, strict=True)
    return {plan.source.name: ledger.committed_units() / max(1, plan.units) for plan, ledger in pairs}
