"""Which source fills which slot block: integer shares of a cycle, and the pattern as a pure function.

The pattern is the one of `ray.data.Dataset.mix` (Ray 2.60, mix_operator.py: always the source furthest behind its
share, ties to the larger weight, then to the lower index) for sources whose blocks have one row each. With a cycle of
C blocks, integer shares and C a power of two, every weight is exact in binary floating point, so the pattern repeats
exactly every C blocks: restarting at a cycle boundary is restarting from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pretrainer.config import SourceConfig


@dataclass(frozen=True)
class Mixture:
    """Integer shares of a cycle of slot blocks, by source index."""

    shares: tuple[int, ...]

    @property
    def cycle(self) -> int:
        """C: blocks per cycle."""
        return sum(self.shares)

    @cached_property
    def pattern(self) -> tuple[tuple[int, int], ...]:
        """For each of the C blocks of a cycle: (source, how many blocks of that source came before it in the cycle)."""
        return tuple(_pattern(self.shares))

    def expected(self, block: int) -> tuple[int, int]:
        """(source, n): global slot block number `block` must be the n-th block of that source."""
        cycles, at = divmod(block, self.cycle)
        source, before = self.pattern[at]
        return source, cycles * self.shares[source] + before

    def counts(self, blocks: int) -> tuple[int, ...]:
        """How many of the first `blocks` blocks each source fills."""
        cycles, rest = divmod(blocks, self.cycle)
        beyond = [source for source, _before in self.pattern[:rest]]
        return tuple(cycles * share + beyond.count(source) for source, share in enumerate(self.shares))

    def number(self, source: int, nth: int) -> int:
        """The global slot block that is the nth of a source; inverse of `expected`."""
        cycles, before = divmod(nth, self.shares[source])
        return cycles * self.cycle + self.pattern.index((source, before))

    def restart(self, block: int) -> tuple[int, list[int]]:
        """Where to restart so that global block `block` comes: (first global block, first block by source)."""
        cycles = block // self.cycle
        return cycles * self.cycle, [cycles * share for share in self.shares]


def _pattern(shares: Sequence[int]) -> list[tuple[int, int]]:
    total = sum(shares)
    weights = [s / total for s in shares]
    seen = [0] * len(shares)
    active = [i for i, share in enumerate(shares) if share]
    out = []
    for done in range(total):
        behind = [(weights[i] * done - seen[i], weights[i], -i) for i in active]
        source = -max(behind)[2]
        out.append((source, seen[source]))
        seen[source] += 1
    return out


def mixing_weights(sources: Sequence[SourceConfig], sizes: Sequence[float]) -> list[float]:
    """P(i): the explicit shares, or w_i |D_i| / sum_j w_j |D_j| with |D_i| as declared, or else from `sizes`."""
    if all(s.share is not None for s in sources):
        return [float(s.share or 0) for s in sources]
    raw = [s.weight * (s.size or size) for s, size in zip(sources, sizes, strict=True)]
    return [r / sum(raw) for r in raw]


def make_mixture(weights: Sequence[float], cycle: int) -> Mixture:
    """Integer shares of the cycle nearest to the weights: largest remainder, at least 1 where the weight is not 0."""
    active = [i for i, weight in enumerate(weights) if weight > 0]
    if len(active) == 1:
        return Mixture(tuple(int(i in active) for i in range(len(weights))))
    exact = [w / sum(weights) * cycle for w in weights]
    shares = [max(1, int(x)) if x > 0 else 0 for x in exact]
    while sum(shares) != cycle:
        step = 1 if sum(shares) < cycle else -1
        error = [(step * (exact[i] - shares[i]), -i) for i in active if step > 0 or shares[i] > 1]
        shares[-max(error)[1]] += step
    return Mixture(tuple(shares))
