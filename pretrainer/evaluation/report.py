"""Results over checkpoints as plain values, as a table for a terminal, and as one HTML page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from pretrainer.evaluation.chart import Level, Line, chart
from pretrainer.evaluation.evaluate import TaskResult
from pretrainer.evaluation.metrics import GPT3_TOP1, HUMAN_TOP1, Metric

SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "top1")
PERPLEXITY = ("perplexity",)
DRAWN = (SHARES, PERPLEXITY, ("bits_per_byte",))
"""Metrics that share a picture; those of no picture stand in the table."""
YARDSTICKS = {"people": HUMAN_TOP1, "GPT-3": GPT3_TOP1}
ABOUT_TOP1 = (
    "top1 is the share of tokens that the model would have guessed first. People reach 29 % and GPT-3 56 % on "
    "OpenWebText in GPT-2's tokens (Shlegeris et al. 2022, arXiv:2212.11281); another text or vocabulary moves these."
)


class Point(NamedTuple):
    """One checkpoint, or a folder without a step."""

    step: int | None
    results: Sequence[TaskResult]


def as_plain(model: str, points: Sequence[Point]) -> dict[str, Any]:
    """What evaluation.json holds."""
    checkpoints = [
        {"step": point.step, "tasks": {result.name: plain_result(result) for result in point.results}}
        for point in points
    ]
    return {"model": model, "yardsticks_top1": YARDSTICKS, "checkpoints": checkpoints}


def plain_result(result: TaskResult) -> dict[str, Any]:
    """A task's part of it."""
    metrics = {name: {"value": one.value, "stderr": one.stderr} for name, one in result.metrics.items()}
    about = {"scoring": result.scoring, "shots": result.shots, "documents": result.documents, "guess": result.guess}
    return about | {"metrics": metrics}


# ----------------------------------------------------------------------------------------------------------- table


def shown(name: str, metric: Metric) -> str:
    """Value ± standard error, shares in percent."""
    scale, unit = (100.0, " %") if name in SHARES else (1.0, "")
    error = "" if metric.stderr is None else f" ± {scale * metric.stderr:.2g}{unit}"
    return f"{scale * metric.value:,.4g}{unit}{error}"


def about(result: TaskResult) -> str:
    """How a task was scored, in words."""
    if result.scoring == "text":
        return f"{result.documents:,} texts"
    guess = "" if result.guess is None else f", a blind guess {100 * result.guess:.4g} %"
    return f"{result.documents:,} lines, {result.shots} shots{guess}"


def table(points: Sequence[Point]) -> list[str]:
    """A block per task, a line per checkpoint."""
    lines: list[str] = []
    for task in points[0].results:
        lines += ["", f"{task.name}: {about(task)}"]
        for point in points:
            (result,) = [one for one in point.results if one.name == task.name]
            values = "   ".join(f"{name} {shown(name, metric)}" for name, metric in result.metrics.items())
            lines.append(f"  {'' if point.step is None else f'step {point.step:<9,}'} {values}")
    if any("top1" in task.metrics for task in points[0].results):
        lines += ["", ABOUT_TOP1]
    return lines


# ------------------------------------------------------------------------------------------------------------ page


def render(model: str, points: Sequence[Point]) -> bytes:
    """The HTML file: pictures of every task over the checkpoints, and all numbers below; no script, no link."""
    style = files("pretrainer.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = html.escape(f"Evaluation of {model}")
    cards = "".join(card(number, points) for number in range(len(points[0].results)))
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="note">Scored as lm-evaluation-harness does it. A thin bar is a standard error, up and down; dashed lines are
what to compare with. {html.escape(ABOUT_TOP1)}</p>
<div class="cards">{cards}</div>
<div class="scroll">{_page_table(points)}</div>
</body>
</html>
"""
    return page.encode("utf-8", "backslashreplace")


def card(number: int, points: Sequence[Point]) -> str:
    """The pictures of one task over checkpoints that all have it, as HTML; report.css says what they look like."""
    task = points[0].results[number]
    pictures = [_picture(number, points, group) for group in DRAWN if set(group) & set(task.metrics)]
    head = f'<h2>{html.escape(task.name)}</h2><p class="quiet">{about(task)}</p>'
    return f'<div class="card">{head}{"".join(pictures)}</div>'


def _picture(number: int, points: Sequence[Point], group: tuple[str, ...]) -> str:
    task, drawn = points[0].results[number], _as_power if group == PERPLEXITY else _as_it_is
    names = [name for name in group if name in task.metrics]
    found = [(point.step or 0, point.results[number].metrics) for point in points]
    lines = [Line(name, [(step, drawn(metrics[name])) for step, metrics in found]) for name in names]
    show = {SHARES: _percent, PERPLEXITY: _power}.get(group, "{:.4g}".format)
    return chart(f"{task.name}: {', '.join(names)}", lines, _levels(task, names), show, group == SHARES)


def _as_it_is(metric: Metric) -> Metric:
    return metric


def _as_power(metric: Metric) -> Metric:
    """Its logarithm: a perplexity falls by powers of ten."""
    error = None if metric.stderr is None else metric.stderr / metric.value / math.log(10)
    return Metric(math.log10(metric.value), error)


def _power(value: float) -> str:
    plain = 10**value
    return f"{plain:,.0f}" if 100 <= plain < 1e7 else f"{plain:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _levels(task: TaskResult, names: Sequence[str]) -> list[Level]:
    levels = [] if task.guess is None or "acc" not in names else [Level("blind guess", task.guess)]
    if "top1" in names:
        levels += [Level(f"{name} {100 * value:.0f} %", value) for name, value in YARDSTICKS.items()]
    return levels


def _page_table(points: Sequence[Point]) -> str:
    head = "".join(f"<th>{'value' if point.step is None else f'step {point.step:,}'}</th>" for point in points)
    rows = []
    for number, task in enumerate(points[0].results):
        for name in task.metrics:
            cells = "".join(f"<td>{shown(name, point.results[number].metrics[name])}</td>" for point in points)
            rows.append(f"<tr><td>{html.escape(task.name)}</td><td>{name}</td>{cells}</tr>")
    return f"<table><thead><tr><th>task</th><th>metric</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
