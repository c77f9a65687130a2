"""One number for the held-out text of several sources: losses count by tokens, bits by bytes."""

from __future__ import annotations

from collections.abc import Mapping

Measured = Mapping[str, Mapping[str, float]]
"""Source -> loss (nats per target), targets, bits_per_byte: `sources` of a validation event."""


def pooled_loss(sources: Measured) -> float:
    """Nats per target over all sources; 0 where there is no target."""
    targets = sum(values["targets"] for values in sources.values())
    return sum(values["loss"] * values["targets"] for values in sources.values()) / max(1, targets)


def pooled_bits_per_byte(bits: Mapping[str, float], text_bytes: Mapping[str, int]) -> float:
    """Source -> bits per byte, and the bytes of its held-out text, to bits per byte of all of it."""
    return sum(bits[name] * text_bytes[name] for name in bits) / max(1, sum(text_bytes[name] for name in bits))
