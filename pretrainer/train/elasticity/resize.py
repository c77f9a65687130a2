"""When a run changes its number of workers: plain arithmetic and a small state machine, without Ray.

A step has G slot blocks, so W workers need ceil(G / W) rounds: a size is *useful* when it needs fewer rounds than the
next smaller one. A run starts and grows only to useful sizes. It grows when a larger size has been possible without a
break for `stable_s`, and only so that no step is trained twice: right after a checkpoint that was asked for, or at once
where the workers have not begun their first step and are kept from it. When the growth did not last, the next one has
to wait twice as long, so a flapping node cannot keep the run restarting. It shrinks when workers are lost or preempted,
which is a failure or a preemption and no resize, and when a lost node leaves so few CPUs beside the trainers that their
own data starves.

An autoscaler adds nodes for what a run asks for, which is the most that it has use for, unless nothing comes of that.
They come one after the other, and a start waits a little for the next one: two starts cost more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pretrainer.config import Config

BACKOFF_LIMIT = 64
"""`stable_s` is doubled after each growth that did not last, up to this factor."""

GRANT_PATIENCE_S = 300.0
"""So long a request may bring no node before it is another one: a cloud's GPU node is there in less, mostly."""

BURST_S = 20.0
"""A node that has come makes a start wait so long for the next one, and all of them together three times as long."""


def useful_sizes(blocks_per_step: int, smallest: int, largest: int, team: int = 1, multiple: int = 1) -> list[int]:
    """World sizes from smallest to largest with fewer rounds per step than the one below; the smallest counts.

    A team of ranks trains on the same slot blocks, and a size is a multiple of `multiple`, as the smallest is.
    """
    sizes = range(smallest, largest + 1, multiple)
    rounds = [-(-blocks_per_step // (size // team)) for size in sizes]
    below = [rounds[0] + 1, *rounds]
    return [size for size, count, before in zip(sizes, rounds, below, strict=False) if count < before]


def sizes_of(config: Config) -> list[int]:
    """The useful sizes of an elastic run."""
    train, (lo, hi) = config.train, config.train.worker_range
    return useful_sizes(config.slot_blocks_per_step, lo, hi, train.workers_per_stream, train.worker_multiple)


def best_size(sizes: list[int], possible: int) -> int | None:
    """The largest useful size that fits, or None when not even the smallest does."""
    return max((size for size in sizes if size <= possible), default=None)


Verdict = Literal["stay", "checkpoint", "grow", "shrink"]


@dataclass
class GrowthGate:
    """Decides about growth at each look at the cluster; times are monotonic seconds, given by the caller."""

    stable_s: float
    factor: int = 1
    since_s: float | None = None  # a larger size has been possible from then on
    asked_at_step: int | None = None  # the last step that had been saved on request when a checkpoint was asked for
    grown_at_s: float | None = None

    @property
    def wait_s(self) -> float:
        return self.stable_s * self.factor

    def look(self, now_s: float, size: int, possible: int | None, room: int, asked_step: int) -> Verdict:
        """What to do: `size` workers run, `possible` is the best size now.

        room: how many workers leave the data stages their CPUs. asked_step: of the last committed checkpoint that was
        asked for, -1 without one; after any other the workers train on, and growing then would lose their steps.
        """
        if room < size and possible is not None and possible < size:
            return "shrink"
        if possible is None or possible <= size:
            self.since_s = self.asked_at_step = None
            return "stay"
        if self.since_s is None:
            self.since_s = now_s
        if now_s - self.since_s < self.wait_s:
            return "stay"
        if self.asked_at_step is None:
            self.asked_at_step = asked_step
            return "checkpoint"
        return "stay" if asked_step <= self.asked_at_step else self.grow(now_s)

    def grow(self, now_s: float) -> Verdict:
        """Nothing would be lost: a checkpoint has been committed and the workers wait, or they have trained nothing."""
        self.since_s = self.asked_at_step = None
        self.grown_at_s = now_s
        return "grow"

    def restarted(self, now_s: float) -> None:
        """The workers were lost: a growth that did not last as long as it had waited makes the next one wait longer."""
        if self.grown_at_s is not None:
            short = now_s - self.grown_at_s < 4 * self.wait_s
            self.factor = min(BACKOFF_LIMIT, 2 * self.factor) if short else 1
        self.since_s = self.asked_at_step = self.grown_at_s = None


@dataclass
class AutoscalerRequest:
    """How many workers an autoscaler is asked for, one that grants a request whole or not at all, as Ray's does.

    The most, first. A request that brings nothing may be for more than the cluster may have, so the next one is half
    way down to what there is, and so on; below that it begins at the top again, for a cloud may have had nothing to
    give. Nodes that are on their way stay so when less is asked for.
    """

    sizes: list[int]
    patience_s: float = GRANT_PATIENCE_S
    asked: int = 0
    held: int = -1
    since_s: float = 0.0  # the request or what there is has not changed from then on

    def look(self, now_s: float, held: int) -> int:
        """The request, at a time on a monotonic clock when all nodes that are there hold so many workers."""
        if held != self.held:
            self.held, self.since_s = held, now_s
        if held >= self.asked:
            self.asked, self.since_s = self.sizes[-1], now_s
        elif now_s - self.since_s >= self.patience_s:
            between = [size for size in self.sizes if held < size < self.asked]
            self.asked, self.since_s = between[len(between) // 2] if between else self.sizes[-1], now_s
        return self.asked


@dataclass
class Burst:
    """Nodes that an autoscaler brings one after the other; times are monotonic seconds, given by the caller."""

    seen: frozenset[str] | None  # empty: those of the first look have come for this run; None: they were there before
    began_s: float = -math.inf
    came_s: float = -math.inf  # the last one

    def look(self, now_s: float, nodes: frozenset[str]) -> None:
        """The ids of all nodes that are there."""
        if self.seen is not None and nodes - self.seen:
            self.began_s = self.began_s if now_s - self.came_s < BURST_S else now_s
            self.came_s = now_s
        self.seen = nodes

    def goes_on(self, now_s: float) -> bool:
        """Whether a start with less than the most should wait; nodes that flap do not keep it for ever."""
        return now_s - self.came_s < BURST_S and now_s - self.began_s < 3 * BURST_S
