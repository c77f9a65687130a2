"""Numbers as people write and read them: 70B, 1.4T, 27.5M, $12,300, 63 days."""

from __future__ import annotations

import math

SUFFIXES = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))


def number(text: str) -> float:
    """70e9, 70B, 1.4T, 27.5M or 5_000 as a positive number. Raises ValueError."""
    plain = text.strip().replace(",", "").replace("_", "")
    factor = next((value for suffix, value in SUFFIXES if plain.upper().endswith(suffix)), 1.0)
    value = float(plain[:-1] if factor > 1 else plain) * factor
    if not 0 < value < math.inf:
        raise ValueError(f"{text} is not a positive number")
    return value


def short(value: float) -> str:
    """Three digits and a suffix."""
    if value >= 1e15:
        return f"{value:.3g}"
    for suffix, size in SUFFIXES:
        if value >= size * 0.9995:
            return f"{value / size:.3g}{suffix}" if value < 999.5 * size else f"{value / size:,.0f}{suffix}"
    return f"{value:.3g}"


def dollars(value: float) -> str:
    if value < 0.01:
        return "less than a cent"
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"


def duration(days: float) -> str:
    """Seconds, minutes, hours or days."""
    for unit, size in (("days", 1.0), ("hours", 1 / 24), ("minutes", 1 / 24 / 60)):
        if days >= 2 * size:
            count = days / size
            return f"{count:,.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"
    return f"{days * 86_400:.3g} seconds"
