"""Just-in-time checkpoints: when a node is about to be taken away, save at once and leave.

Ray's notice reaches all ranks at the same look, so they save the same step; then they raise, and Ray starts a new
worker group on the nodes that stay, at the very next step. Looping on instead would train steps that the kill throws
away, and returning would end the run as finished.
"""

from __future__ import annotations

import time
from typing import Any

import ray.train

LOOK_EVERY_S = 2.0


class PreemptedError(Exception):
    """The workers leave after a just-in-time checkpoint; the run goes on without the nodes that are taken away."""

    restart_reason = "preempted"  # nobody's fault: it does not count as a failure


class PreemptionWatch:
    """Asks Ray for a notice now and then; the asking is a collective, so rank 0's clock decides for all ranks."""

    def __init__(self, rank: int) -> None:
        self.rank, self.looked_at_s = rank, time.monotonic()

    def due(self) -> int:
        """1 on rank 0 when it is time to look; sum it over the ranks and look when the sum is not 0."""
        return int(self.rank == 0 and time.monotonic() - self.looked_at_s >= LOOK_EVERY_S)

    def look(self) -> Any:
        """Ray's PreemptionInfo, or None; every rank calls it at the same step."""
        self.looked_at_s = time.monotonic()
        return ray.train.get_preemption_info()


def seconds_left(notice: Any) -> float | None:
    """Seconds until the node is taken away; None where nobody said."""
    return None if notice.deadline_ms is None else notice.deadline_ms / 1000 - time.time()
