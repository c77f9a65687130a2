"""The picture: one HTML file that loads nothing and runs no script, with the charts and the tables of a plan."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files

from pretrainer.plan.chart import Axis, Chart
from pretrainer.plan.laws import FRONTIERS, REFIT, split
from pretrainer.plan.planner import Plan
from pretrainer.plan.report import Row, Table, tables
from pretrainer.plan.units import short

BUDGETS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Compute of the isoFLOP curves, as multiples of the plan's."""
AROUND = 16.0
"""An isoFLOP curve goes from its best size over this to its best size times this."""
STEPS = 60


def render(plan: Plan) -> bytes:
    """The HTML file."""
    charts = [(isoflops(plan), CAPTIONS[0]), (frontiers(plan), CAPTIONS[1]), (ratios(plan), CAPTIONS[2])]
    return document(f"Plan: {plan.summary}", tables(plan), charts)


def document(words: str, found: Sequence[Table], charts: Sequence[tuple[Chart, str]], more_style: str = "") -> bytes:
    """A page with a title, the first table, the charts with their captions, and the other tables."""
    style = files("pretrainer.plan").joinpath("page.css").read_text(encoding="utf-8") + more_style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = html.escape(words)
    body = [
        f"<h1>{title}</h1>",
        _table(found[0]),
        *(f"<figure>{chart.svg()}<figcaption>{html.escape(told)}</figcaption></figure>" for chart, told in charts),
        *map(_table, found[1:]),
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{style}</style>\n</head>'
    )
    return "\n".join([head, "<body>", *body, "</body>", "</html>", ""]).encode()


CAPTIONS = (
    "IsoFLOP curves: predicted loss of models of every size at one budget each. The plan is the dot; the upright lines "
    "are the best sizes for its budget by each law.",
    "Best size for a budget, by law.",
    "Loss above the least of the plan's compute, by tokens per parameter: what training a smaller model longer costs.",
)


def _between(low: float, high: float) -> Iterator[float]:
    """Values at equal distances on a logarithmic axis, both ends included."""
    for step in range(STEPS + 1):
        yield low * (high / low) ** (step / STEPS)


def isoflops(plan: Plan) -> Chart:
    """Loss over parameters for several budgets (Hoffmann et al. 2022, figure 3), by the refit."""
    own = plan.split.flops
    best = [REFIT.frontier.at(own * factor).parameters for factor in BUDGETS]

    def loss(flops: float, parameters: float) -> float:
        return REFIT.loss(parameters, flops / (6 * parameters))

    curves = [
        [(n, loss(own * factor, n)) for n in _between(middle / AROUND, middle * AROUND)]
        for factor, middle in zip(BUDGETS, best, strict=True)
    ]
    losses = [y for curve in curves for _, y in curve]
    low, high = min(losses), max(losses)
    x = Axis(best[0] / AROUND, best[-1] * AROUND, "parameters", short)
    y = Axis(low - 0.06 * (high - low), high, "predicted loss (nats per token)", lambda v: f"{v:.3g}", log=False)
    chart = Chart(x, y, "isoFLOP curves with the plan marked")
    for factor, curve in zip(BUDGETS, curves, strict=True):
        chart.line(curve, "curve own" if factor == 1 else "curve", f"{own * factor:.2g} FLOPs")
    valley = [(n, loss(flops, n)) for flops in _between(own * BUDGETS[0], own * BUDGETS[-1])
              for n in [REFIT.frontier.at(flops).parameters]]  # fmt: skip
    chart.line(valley, "valley")
    for row, (name, frontier) in enumerate(FRONTIERS.items()):
        size = frontier.at(own).parameters
        chart.upright(size, f"law {name}", f"{name} {short(size)}", row)
    words = f"plan: {short(plan.parameters)} on {short(plan.tokens)}"
    chart.dot((plan.parameters, REFIT.loss(*plan.split)), "plan", words)
    return chart


def frontiers(plan: Plan) -> Chart:
    """Best size over compute."""
    own = plan.split
    low, high = own.flops / 1e4, own.flops * 1e3
    sizes = [frontier.at(flops).parameters for frontier in FRONTIERS.values() for flops in (low, high)]
    x = Axis(low, high, "compute (FLOPs, 6 N D)", lambda v: f"{v:.0e}".replace("e+", "e"))
    y = Axis(min(*sizes, own.parameters) / 2, max(*sizes, own.parameters) * 2, "parameters", short)
    chart = Chart(x, y, "best size for a budget, by law")
    for name, frontier in FRONTIERS.items():
        points = [(flops, frontier.at(flops).parameters) for flops in _between(low, high)]
        chart.line(points, f"curve {name}", name)
    chart.dot((own.flops, own.parameters), "plan", f"plan: {short(own.parameters)}")
    return chart


def ratios(plan: Plan) -> Chart:
    """What another number of tokens per parameter costs at the same compute."""
    own = plan.split
    least = REFIT.loss(*REFIT.frontier.at(own.flops))

    def penalty(ratio: float) -> float:
        return REFIT.loss(*split(own.flops, ratio)) - least

    low, high = min(5.0, own.ratio / 2), max(2000.0, own.ratio * 2)
    points = [(ratio, penalty(ratio)) for ratio in _between(low, high)]
    top = max(y for _, y in points)
    x = Axis(low, high, "tokens per parameter", short)
    y = Axis(-0.08 * top, top, "loss above the least (nats)", lambda v: f"{v:.3g}", log=False)
    chart = Chart(x, y, "loss penalty of other ratios")
    chart.line(points, "curve own")
    at = REFIT.loss(*own) - least
    assert math.isfinite(at)
    chart.dot((own.ratio, at), "plan", f"plan: {own.ratio:.1f}", below=at < top / 2)
    return chart


def _table(table: Table) -> str:
    head = _cells("th", table.head, table)
    rows = "".join(f"<tr>{_cells('td', row, table)}</tr>" for row in table.rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    kind = "" if table.head else ' class="facts"'
    return (
        f'<section><h2>{html.escape(table.title)}</h2><div class="scroll"><table{kind}>'
        f"{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{rows}</tbody></table></div>{notes}</section>"
    )


def _cells(tag: str, row: Row, table: Table) -> str:
    kinds = ("" if not table.head or column in table.words else ' class="number"' for column in range(len(row)))
    return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True))
