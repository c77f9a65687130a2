"""The pictures of the page, as SVG text: curves over steps with marks on them, waterfalls and bars."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

from pretrainer.plan.chart import BOTTOM, LEFT, TOP, Axis, Chart
from pretrainer.report.facts import Facts
from pretrainer.report.story import Points, Story, smooth, thin

SMALL, LARGE = 240.0, 420.0
COLORS = 6
MOST_SPOTS = 200
STRIP = 12.0
LONGEST_NAME = 16
BAR_WIDTH, BAR_ROW = 860.0, 26.0


class StepChart(Chart):
    """Curves over steps; values beyond the axis are drawn on its edge."""

    def _y(self, value: float) -> float:
        return super()._y(min(max(value, self.y.low), self.y.high))

    def rule(self, step: float, kind: str, words: str) -> None:
        """An upright line through the whole picture."""
        at = self._x(step)
        place = f'x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{self.height - BOTTOM}"'
        self.shapes.append(f'<line class="rule {kind}" {place}>{_title(words)}</line>')

    def spot(self, step: float, value: float, kind: str, words: str) -> None:
        place = f'cx="{self._x(step):.1f}" cy="{self._y(value):.1f}" r="4"'
        self.shapes.append(f'<circle class="spot {kind}" {place}>{_title(words)}</circle>')

    def tick(self, step: float, words: str) -> None:
        """A small triangle on the axis of steps."""
        x, y = self._x(step), self.height - BOTTOM
        points = f"{x:.1f},{y - 7:.1f} {x - 4:.1f},{y:.1f} {x + 4:.1f},{y:.1f}"
        self.shapes.append(f'<polygon class="tick-mark" points="{points}">{_title(words)}</polygon>')

    def strip(self, first: float, last: float, number: int, words: str) -> None:
        """A coloured bar above the picture, named where there is room."""
        left, right = self._x(first), self._x(last)
        place = f'x="{left:.1f}" y="{TOP - STRIP - 2:.1f}" width="{max(1.0, right - left):.1f}" height="{STRIP}"'
        self.shapes.append(f'<rect class="strip s{number % 4}" {place}>{_title(words)}</rect>')
        if right - left > 7 * len(words):
            self._write((left + right) / 2, TOP - 4, words, "strip-name middle")


def _title(words: str) -> str:
    return f"<title>{html.escape(words)}</title>"


def steps_axis(last: int) -> Axis:
    return Axis(0, max(1, last), "step", lambda value: f"{value:,.10g}", log=False)


def value_axis(values: Sequence[float], title: str, words: Callable[[float], str], from_zero: bool = False) -> Axis:
    """From the least to the largest value with a little room."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(0.0 if from_zero and low >= 0 else low - room, high + room, title, words, log=False)


def loss(facts: Facts, story: Story) -> str | None:
    """Training loss with its trailing mean, held-out loss, and everything that happened."""
    raw, held = story.curve("loss"), story.held_out("loss")
    if not raw and not held:
        return None
    values = [value for points in (raw, *held.values()) for _step, value in points]
    cap = max(sorted(values)[int(0.98 * (len(values) - 1))], math.log(facts.vocab_size or 1)) + 0.5
    axis = value_axis([min(value, cap) for value in values], "loss (nats per token)", "{:.3g}".format)
    chart = StepChart(steps_axis(story.last_step), axis, "loss over steps, with what happened", LARGE)
    if len(raw) > 1:
        chart.line(thin(raw), "raw", "")
        chart.line(thin(smooth(raw)), "own", f"training {smooth(raw)[-1][1]:.3f}")
    for number, (name, points) in enumerate(held.items()):
        chart.line(thin(points), f"c{number % COLORS} dashed", f"{_short(name)} {points[-1][1]:.3f}")
    mark(chart, story, raw)
    return chart.svg()


def mark(chart: StepChart, story: Story, losses: Points) -> None:
    """World sizes above, checkpoints on the axis, spikes on the curve, everything else as upright lines."""
    many = len({world for _b, _e, world in story.worlds}) > 1
    for first, last, world in story.worlds:
        chart.strip(first, last, _rank(story, world) if many else 0, f"{world} worker{'s' * (world != 1)}")
    for one in story.checkpoints[-MOST_SPOTS:]:
        chart.tick(one["step"], f"checkpoint of step {one['step']:,}")
    for found in story.marks[-MOST_SPOTS:]:
        if found.kind in ("spike", "heal"):
            chart.spot(found.step, value_at(losses, found.step), found.kind, found.words)
        elif found.kind != "warning":
            chart.rule(found.step, found.kind, found.words)


def _rank(story: Story, world: int) -> int:
    return sorted({w for _b, _e, w in story.worlds}).index(world)


def value_at(points: Points, step: float) -> float:
    """Of the first point at or after a step; the last one's behind all of them."""
    return next((value for at, value in points if at >= step), points[-1][1] if points else 0.0)


def curves(
    title: str, lines: Mapping[str, Points], story: Story, words: Callable[[float], str], from_zero: bool = False
) -> str | None:
    """A smaller picture of some curves with their last values; `names` says which is which."""
    lines = {name: thin(points) for name, points in lines.items() if points}
    if not lines or story.last_step < 1:
        return None
    values = [value for points in lines.values() for _step, value in points]
    chart = StepChart(steps_axis(story.last_step), value_axis(values, "", words, from_zero), title, SMALL)
    for number, points in enumerate(lines.values()):
        if len(points) > 1:
            chart.line(points, f"c{number % COLORS}", words(points[-1][1]))
        else:
            chart.spot(*points[0], f"c{number % COLORS}", words(points[-1][1]))
    return chart.svg()


def names(lines: Mapping[str, Points]) -> list[tuple[str, str]]:
    """(name, class of its colour) of the curves of `curves`."""
    drawn = [name for name, points in lines.items() if points]
    return [(name, f"c{number % COLORS}") for number, name in enumerate(drawn)]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def waterfall(whole: str, parts: Sequence[tuple[str, float]], rest: str) -> str:
    """All of something, what goes off it (shares of 1), and what is left."""
    left, rows = 1.0, [_bar(0, whole, 0.0, 1.0, "whole")]
    for number, (name, share) in enumerate(parts, start=1):
        left -= share
        rows.append(_bar(number, name, left, share, "lost"))
    rows.append(_bar(len(parts) + 1, rest, 0.0, max(0.0, left), "kept"))
    size = f'viewBox="0 0 {BAR_WIDTH:g} {BAR_ROW * len(rows):g}"'
    return f'<svg {size} role="img" aria-label="{html.escape(whole)}">{"".join(rows)}</svg>'


def _bar(row: int, name: str, first: float, share: float, kind: str) -> str:
    x0, width = LEFT + 110, BAR_WIDTH - LEFT - 110 - 70
    y, x = row * BAR_ROW, x0 + max(0.0, first) * width
    place = f'x="{x:.1f}" y="{y + 4:.1f}" width="{max(0.5, share * width):.1f}" height="{BAR_ROW - 8:.1f}"'
    texts = f'<text class="end" x="{x0 - 10:.1f}" y="{y + 18:.1f}">{html.escape(name)}</text>'
    texts += f'<text x="{min(x + share * width + 6, BAR_WIDTH - 60):.1f}" y="{y + 18:.1f}">{share:.1%}</text>'
    return f'<rect class="bar {kind}" {place}/>{texts}'


def share_bar(share: float, kind: str) -> str:
    """A bar for a cell of a table."""
    rect = f'<rect class="bar {kind}" x="0" y="0" width="{120 * min(1.0, max(0.0, share)):.1f}" height="10"/>'
    return f'<svg class="cell" viewBox="0 0 120 10" role="img" aria-label="{share:.1%}">{rect}</svg>'
