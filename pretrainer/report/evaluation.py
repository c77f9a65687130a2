"""Scores of tasks over a run's steps, as pipelines.evaluate draws them; cadences have tasks of their own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from pretrainer.evaluation.evaluate import TaskResult
from pretrainer.evaluation.metrics import Metric
from pretrainer.evaluation.report import ABOUT_TOP1, Point, card, shown
from pretrainer.report.facts import Plain


def evaluation(points: Sequence[Plain]) -> Iterable[str]:
    """The section of the page; nothing where nothing was evaluated."""
    curves = by_task(points)
    if not curves:
        return
    cards = "".join(card(0, found) for found in curves.values())
    rows = "".join(_row(name, found[-1]) for name, found in curves.items())
    note = f'<p class="note">A thin bar is a standard error, up and down. {html.escape(ABOUT_TOP1)}</p>'
    table = f"<table><thead><tr><th>task</th><th>step</th><th>newest</th></tr></thead><tbody>{rows}</tbody></table>"
    yield (
        f'<section><h2>Evaluation</h2>{note}<div class="two">{cards}</div><div class="scroll">{table}</div></section>'
    )


def by_task(points: Sequence[Plain]) -> dict[str, list[Point]]:
    """Task -> its results by step; where several have scored a step, the last one counts."""
    found: dict[str, dict[int, Point]] = {}
    for point in points:
        for name, task in point["tasks"].items():
            found.setdefault(name, {})[point["step"]] = Point(point["step"], [_result(name, task)])
    return {name: [of_step for _step, of_step in sorted(steps.items())] for name, steps in found.items()}


def _result(name: str, task: Plain) -> TaskResult:
    metrics = {metric: Metric(one["value"], one.get("stderr")) for metric, one in task["metrics"].items()}
    return TaskResult(name, task["scoring"], task["shots"], task["documents"], metrics, task.get("guess"))


def _row(name: str, point: Point) -> str:
    values = ", ".join(f"{metric} {shown(metric, one)}" for metric, one in point.results[0].metrics.items())
    return f"<tr><td>{html.escape(name)}</td><td>{point.step:,}</td><td>{html.escape(values)}</td></tr>"
