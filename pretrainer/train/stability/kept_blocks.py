"""The slot blocks behind the last checkpoint, kept in memory: going back to it asks nothing of the stream."""

from __future__ import annotations

from typing import Protocol

from pretrainer.schema import Batch

Mine = list[tuple[int, Batch]]


class Source(Protocol):
    """Where a rank's slot blocks come from (blocks.py)."""

    def take(self, step: int) -> tuple[Mine, float]: ...

    def missing(self, step: int, mine: Mine) -> int: ...


class KeptBlocks:
    """The same source; with `keeps` it can be asked again for every step since `forget`.

    A rank then holds 4 bytes for each of its tokens: checkpoint_every_steps x global_batch_tokens / streams.
    """

    def __init__(self, source: Source, keeps: bool) -> None:
        self.source, self.keeps, self.kept = source, keeps, dict[int, Mine]()

    def take(self, step: int) -> tuple[Mine, float]:
        """((global number, batch) of this rank's slot blocks of a step, seconds waited for them)."""
        if step in self.kept:
            return self.kept[step], 0.0
        mine, wait_s = self.source.take(step)
        if self.keeps:
            self.kept[step] = mine
        return mine, wait_s

    def missing(self, step: int, mine: Mine) -> int:
        return self.source.missing(step, mine)

    def forget(self, step: int) -> None:
        """A checkpoint of this step is kept: nothing before it is asked for again."""
        self.kept = {known: mine for known, mine in self.kept.items() if known >= step}
