"""A line chart as SVG: axes, lines, marks, labels. What things look like is in page.css."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 860.0, 460.0
LEFT, RIGHT, TOP, BOTTOM = 76.0, 140.0, 20.0, 54.0
LINE_HEIGHT = 16.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Values from low to high; on a logarithmic axis both are positive."""

    low: float
    high: float
    title: str
    words: Callable[[float], str]
    log: bool = True

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) < 5 else (1,)
            every = max(1, len(decades) // 9)
            found = [step * 10.0**decade for decade in decades[::every] for step in steps]
        else:
            rough = (self.high - self.low) / 8
            base = 10.0 ** math.floor(math.log10(rough))
            step = next(step * base for step in (1, 2, 5, 10) if step * base >= rough)
            first = math.ceil(self.low / step)
            found = [step * number for number in range(first, first + 20)]
        return [value for value in found if self.low <= value <= self.high]


@dataclass
class Chart:
    """Collects elements; coordinates are values of the axes."""

    x: Axis
    y: Axis
    label: str
    height: float = HEIGHT
    shapes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ends: list[tuple[float, float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        for value in self.x.ticks():
            at = self._x(value)
            self.shapes.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
            self._write(at, bottom + 18, self.x.words(value), "tick middle")
        for value in self.y.ticks():
            at = self._y(value)
            self.shapes.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
            self._write(LEFT - 8, at + 4, self.y.words(value), "tick end")
        self._write((LEFT + right) / 2, self.height - 12, self.x.title, "axis middle")
        turned = f'transform="rotate(-90 16 {(TOP + bottom) / 2:.1f})"'
        self._write(16, (TOP + bottom) / 2, self.y.title, "axis middle", turned)

    def _x(self, value: float) -> float:
        return LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        return self.height - BOTTOM - self.y.share(value) * (self.height - TOP - BOTTOM)

    def _write(self, x: float, y: float, words: str, kind: str, more: str = "") -> None:
        self.texts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" {more}>{html.escape(words)}</text>')

    def line(self, points: Sequence[Point], kind: str, words: str = "") -> None:
        """Through the points; words stand at its right end."""
        at = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self.shapes.append(f'<polyline class="{kind}" points="{at}"><title>{html.escape(words)}</title></polyline>')
        if words:
            self.ends.append((self._x(points[-1][0]), self._y(points[-1][1]), words, kind))

    def upright(self, x: float, kind: str, words: str, row: int) -> None:
        """A vertical line with words beside its top, `row` lines down so that neighbours do not cover each other."""
        if not 0 <= self.x.share(x) <= 1:
            return
        at, top = self._x(x), TOP + 4 + row * LINE_HEIGHT
        self.shapes.append(f'<line class="{kind}" x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{self.height - BOTTOM}"/>')
        self._write(at + 5, top + 11, words, f"words {kind}")

    def dot(self, point: Point, kind: str, words: str, below: bool = True) -> None:
        x = self.x.share(point[0])
        at = (LEFT + min(max(x, 0), 1) * (WIDTH - LEFT - RIGHT), self._y(point[1]))
        self.shapes.append(f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6"/>')
        self._write(at[0], at[1] + (22 if below else -12), words, f"words middle {kind}")

    def svg(self) -> str:
        """The element; words lie above shapes, and those at the ends of lines are moved apart."""
        for y, (x, _, words, kind) in zip(apart([end[1] for end in self.ends]), self.ends, strict=True):
            self._write(x + 6, y + 4, words, f"words {kind}")
        inner = "\n".join([*self.shapes, *self.texts])
        size = f'viewBox="0 0 {WIDTH:g} {self.height:g}"'
        return f'<svg {size} role="img" aria-label="{html.escape(self.label)}">\n{inner}\n</svg>'


def apart(heights: Sequence[float], least: float = LINE_HEIGHT) -> list[float]:
    """The heights in the order given, moved down as far as needed for lines of text not to touch."""
    moved = [0.0] * len(heights)
    free = -math.inf
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        moved[i] = max(heights[i], free)
        free = moved[i] + least
    return moved
