"""What a plan is made from, and the answer to what cannot be planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrainer.config import Config
from pretrainer.errors import require
from pretrainer.plan.budget import Ask
from pretrainer.plan.hardware import Prices


@dataclass(frozen=True)
class Available:
    """What a prepared ledger has of one source."""

    source: str
    tokens: float
    share: float
    """Of the training tokens."""
    prepared: float = 1.0
    """Share of the source that is curated; `tokens` are those of the whole source, estimated from that."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a plan builds on beside its budget."""

    config: Config
    """Its data, tokenizer and run go into the plan's config."""
    is_example: bool = False
    """The config is only the package's quickstart: vocabulary, context and schedule follow from the size."""
    vocab_size: int | None = None
    """Of a tokenizer that exists."""
    available: tuple[Available, ...] = ()
    """By source; none where nothing is prepared."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that a plan depends on."""

    ask: Ask
    base: Base
    prices: Prices
    gpu: str = "H100"
    gpus: int | None = None
    """How many; by default the fewest that are done in time."""
    days: float | None = None
    """How long the run may take."""
    tflops: float | None = None
    """Reached on one GPU, in place of its peak and MFU."""

    def __post_init__(self) -> None:
        require(self.gpus is None or self.gpus >= 1, "--gpus", self.gpus, "use 1 or more")
        require(self.days is None or self.days > 0, "--days", self.days, "use a positive number")
        require(self.tflops is None or self.tflops > 0, "--tflops", self.tflops, "use a positive number")


class Impossible(Exception):
    """A request that has no plan; `nearest` are requests that may have one, the best first."""

    def __init__(self, message: str, nearest: Sequence[Request] = ()) -> None:
        super().__init__(message)
        self.message, self.nearest = message, nearest


def mixture_shares(config: Config, weights: Sequence[float]) -> list[float]:
    """Each source's share of a whole run: its weight, or that of the segments of the curriculum."""
    shares, begin = [0.0] * len(weights), 0.0
    for segment in config.data.curriculum:
        for i, share in enumerate(segment.shares or weights):
            shares[i] += (segment.until - begin) * share
        begin = segment.until
    return shares if config.data.curriculum else list(weights)
