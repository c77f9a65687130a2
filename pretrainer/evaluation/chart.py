"""Line charts as SVG text: values with their standard errors over steps, and level lines to compare them with."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from pretrainer.evaluation.metrics import Metric

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34
NAMES_WIDTH = 150  # at the right, for the names of lines and levels
TICKS = 5
NAME_HEIGHT = 13


class Line(NamedTuple):
    name: str
    points: Sequence[tuple[float, Metric]]  # (x, value), x ascending


class Level(NamedTuple):
    name: str
    value: float


def ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below low to above high."""
    raw = max((high - low) / TICKS, abs(high) * 1e-9, 1e-12)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


class _Frame(NamedTuple):
    """From data to places in the picture."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        first, last = self.xs
        share = (value - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT - NAMES_WIDTH)

    def y(self, value: float) -> float:
        low, high = self.ys
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def chart(title: str, lines: Sequence[Line], levels: Sequence[Level], percent: bool, has_steps: bool = True) -> str:
    """An <svg>; values are shares where percent is set, and x a step. Values that are no finite numbers are left out.
    """
    lines = [Line(line.name, [(x, m) for x, m in line.points if math.isfinite(m.value)]) for line in lines]
    lines = [line for line in lines if line.points]
    metrics = [metric for line in lines for _x, metric in line.points]
    values = [metric.value + sign * (metric.stderr or 0.0) for metric in metrics for sign in (-1, 1)]
    values += [level.value for level in levels]
    marks = ticks(min(values, default=0.0), max(values, default=1.0))
    xs = sorted({x for line in lines for x, _m in line.points}) or [0.0]
    frame = _Frame((xs[0], xs[-1]), (marks[0], marks[-1]))
    parts = [*_axes(frame, marks, xs, percent, has_steps), *(_level(frame, level) for level in levels)]
    parts += [_line(frame, line, number) for number, line in enumerate(lines)]
    parts += _names(frame, lines, levels, percent)
    label = html.escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(frame: _Frame, marks: Sequence[float], xs: Sequence[float], percent: bool, has_steps: bool) -> list[str]:
    right = WIDTH - RIGHT - NAMES_WIDTH
    parts = []
    for mark in marks:
        y = frame.y(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        place = f'text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}"'
        parts.append(f'<text class="mark" {place}>{number(mark, percent)}</text>')
    for x in dict.fromkeys((xs[0], xs[-1])) if has_steps else ():
        anchor = "middle" if xs[0] == xs[-1] else "start" if x == xs[0] else "end"
        place = f'text-anchor="{anchor}" x="{frame.x(x):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text class="mark" {place}>step {x:,.0f}</text>')
    return parts


def number(value: float, percent: bool) -> str:
    """Four digits; a share in percent."""
    return f"{100 * value:.4g} %" if percent else f"{value:.4g}"


def _level(frame: _Frame, level: Level) -> str:
    y, right = frame.y(level.value), WIDTH - RIGHT - NAMES_WIDTH
    return f'<line class="level" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _line(frame: _Frame, line: Line, color: int) -> str:
    places = [(frame.x(x), frame.y(m.value)) for x, m in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}"/>']
    for (x, y), (_step, metric) in zip(places, line.points, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        if metric.stderr:
            ends = frame.y(metric.value - metric.stderr), frame.y(metric.value + metric.stderr)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>')
    return f'<g class="line c{color % 4}">{"".join(parts)}</g>'


def _names(frame: _Frame, lines: Sequence[Line], levels: Sequence[Level], percent: bool) -> list[str]:
    """Names at the height of their last value, moved apart where they would lie on each other."""
    last = [line.points[-1][1].value for line in lines]
    named = [
        (frame.y(value), f"c{i % 4}", f"{line.name} {number(value, percent)}")
        for i, (line, value) in enumerate(zip(lines, last, strict=True))
    ]
    named += [(frame.y(level.value), "quiet", level.name) for level in levels]
    parts, free = [], -math.inf
    for wanted, color, text in sorted(named):
        free = max(wanted, free + NAME_HEIGHT)
        place = f'x="{WIDTH - RIGHT - NAMES_WIDTH + 8}" y="{free + 4:.1f}"'
        parts.append(f'<text class="name {color}" {place}>{html.escape(text)}</text>')
    return parts
