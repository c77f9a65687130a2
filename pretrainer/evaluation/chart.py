"""Charts as SVG text: values with their standard errors over steps, or as bars where there is one model; and level
lines to compare them with."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pretrainer.evaluation.metrics import Metric

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 332, 12, 34  # of the plot; RIGHT is where names of lines and levels begin
BAR = 28
TICKS = 5
NAME_HEIGHT = 13


class Line(NamedTuple):
    name: str
    points: Sequence[tuple[float, Metric]]  # (step, value), steps ascend


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
        return LEFT + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        """Values outside are drawn on the edge."""
        low, high = self.ys
        return HEIGHT - BOTTOM - (min(max(value, low), high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def chart(
    title: str, lines: Sequence[Line], levels: Sequence[Level], show: Callable[[float], str], is_share: bool = False
) -> str:
    """An <svg>. show writes a value; one that is no finite number is left out. Shares are never below 0."""
    lines = [Line(line.name, [(x, m) for x, m in line.points if math.isfinite(m.value)]) for line in lines]
    lines = [line for line in lines if line.points]
    steps = sorted({step for line in lines for step, _metric in line.points})
    metrics = [metric for line in lines for _step, metric in line.points]
    values = [metric.value + sign * (metric.stderr or 0.0) for metric in metrics for sign in (-1, 1)]
    values += [level.value for level in levels] + ([0.0] if len(steps) < 2 else [])
    marks = ticks(max(0.0, min(values)) if is_share else min(values), max(values))
    frame = _Frame((steps[0], steps[-1]) if len(steps) > 1 else (0, len(lines) + 1), (marks[0], marks[-1]))
    draw = _line if len(steps) > 1 else _bar
    parts = [*_marks(frame, marks, show), *(_step(frame, step) for step in (steps[:1] + steps[-1:]) * (len(steps) > 1))]
    parts += [draw(frame, line, number) for number, line in enumerate(lines)]
    parts += [_rule("level", frame.y(level.value)) for level in levels]
    parts += _names(frame, lines, levels, show)
    label = html.escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _rule(name: str, y: float) -> str:
    return f'<line class="{name}" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _marks(frame: _Frame, marks: Sequence[float], show: Callable[[float], str]) -> list[str]:
    ys = [frame.y(mark) for mark in marks]
    named = zip(ys, map(show, marks), strict=True)
    texts = [f'<text class="mark" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{text}</text>' for y, text in named]
    return [_rule("grid", y) for y in ys] + texts


def _step(frame: _Frame, step: float) -> str:
    anchor = "start" if step == frame.xs[0] else "end"
    place = f'text-anchor="{anchor}" x="{frame.x(step):.1f}" y="{HEIGHT - BOTTOM + 18}"'
    return f'<text class="mark" {place}>step {step:,.0f}</text>'


def _line(frame: _Frame, line: Line, color: int) -> str:
    places = [(frame.x(step), frame.y(metric.value)) for step, metric in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    errors = [_error(frame, x, metric) for (x, _y), (_step, metric) in zip(places, line.points, strict=True)]
    return f'<g class="line c{color % 4}"><polyline points="{path}"/>{"".join(dots + errors)}</g>'


def _bar(frame: _Frame, line: Line, color: int) -> str:
    x, metric = frame.x(color + 1), line.points[0][1]
    top, bottom = sorted((frame.y(metric.value), frame.y(0.0)))
    place = f'x="{x - BAR / 2:.1f}" width="{BAR}" y="{top:.1f}" height="{bottom - top:.1f}"'
    return f'<g class="line c{color % 4}"><rect {place}/>{_error(frame, x, metric)}</g>'


def _error(frame: _Frame, x: float, metric: Metric) -> str:
    if not metric.stderr:
        return ""
    ends = frame.y(metric.value - metric.stderr), frame.y(metric.value + metric.stderr)
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'


def _names(
    frame: _Frame, lines: Sequence[Line], levels: Sequence[Level], show: Callable[[float], str]
) -> list[str]:
    """Names at the height of their last value, moved apart where they would lie on each other."""
    last = [line.points[-1][1].value for line in lines]
    named = [
        (frame.y(value), f"c{i % 4}", f"{line.name} {show(value)}")
        for i, (line, value) in enumerate(zip(lines, last, strict=True))
    ]
    named += [(frame.y(level.value), "aside", level.name) for level in levels]
    named.sort()
    places = _apart([wanted for wanted, _color, _text in named])
    return [
        f'<text class="name {color}" x="{RIGHT + 8}" y="{place + 4:.1f}">{html.escape(text)}</text>'
        for place, (_wanted, color, text) in zip(places, named, strict=True)
    ]


def _apart(wanted: Sequence[float]) -> list[float]:
    """Heights of names that are wanted at these ascending ones: a line apart, downwards, and up again from the edge."""
    places: list[float] = []
    for height in wanted:
        places.append(max(height, places[-1] + NAME_HEIGHT) if places else height)
    highest = (HEIGHT - NAME_HEIGHT / 2 - NAME_HEIGHT * behind for behind in reversed(range(len(places))))
    return [max(0.0, min(place, edge)) for place, edge in zip(places, highest, strict=True)]
