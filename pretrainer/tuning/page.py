"""The picture of a sweep: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files

from pretrainer.plan.chart import Axis, Chart
from pretrainer.plan.page import document
from pretrainer.plan.units import short
from pretrainer.tuning.fit import COVERED, Valley
from pretrainer.tuning.records import COMPLETED, Trial
from pretrainer.tuning.report import Sweep, tables
from pretrainer.tuning.space import BATCH, longest

COLOURS = 6
STEPS = 60
ROOM = 1.25
"""Factor of the rate beyond the outermost trials."""
FLOOR = 0.12
"""Share of the losses' range that is left below them, for words."""
EARLY = 0.2
"""The learning curves are scaled without this share of the tokens at their beginning."""


def render(sweep: Sweep) -> bytes:
    """The HTML file."""
    charts = [(curves(sweep), CURVES)] if any(len(trial.losses) > 1 for trial in sweep.trials) else []
    if sweep.valleys and len({p.learning_rate for v in sweep.valleys for p in v.points}) > 1:
        charts.insert(0, (rates(sweep), RATES))
    if len(sweep.valleys) > 1:
        charts.append((batches(sweep), BATCHES))
    style = files("pretrainer.tuning").joinpath("page.css").read_text(encoding="utf-8")
    return document(f"Sweep: {sweep.config.run.name}", tables(sweep), charts, style)


RATES = (
    "Final held-out loss over the learning rate. Dots are trials; lines are the parabolas through the best ones of "
    f"each batch; a ring is the fitted optimum, the bar under it holds it with {COVERED:.0%}."
)
CURVES = (
    "Held-out loss while the trials trained; thin lines ended early. All are at the same tokens at the same place, "
    "whatever their batch."
)
BATCHES = (
    "Loss at the best learning rate of each batch, at equal tokens; the upright line is the gradient noise scale of "
    "the best trial."
)


def loss_axis(losses: Sequence[float], above: float = 0.04) -> Axis:
    """Room below for words, and above."""
    low, high = min(losses), max(losses)
    span = max(high - low, 1e-3 * abs(high))
    low, high = low - FLOOR * span, high + above * span
    return Axis(low, high, "held-out loss (nats per token)", lambda v: f"{v:.4g}", log=False)


def rates(sweep: Sweep) -> Chart:
    """Loss over learning rate, a colour for each batch."""
    tried = [point for valley in sweep.valleys for point in valley.points]
    low, high = min(p.learning_rate for p in tried) / ROOM, max(p.learning_rate for p in tried) * ROOM
    y = loss_axis([point.loss for point in tried])
    chart = Chart(Axis(low, high, "peak learning rate", lambda v: f"{v:.2g}"), y, "loss over learning rate by batch")
    for number, valley in enumerate(sweep.valleys):
        _valley(chart, valley, f"s{number % COLOURS}", low, high, y.high)
    return chart


def _valley(chart: Chart, valley: Valley, colour: str, low: float, high: float, top: float) -> None:
    words = f"{valley.batch_tokens:,} tokens"
    if valley.coefficients is None:
        chart.line([(p.learning_rate, p.loss) for p in valley.points], f"series tried {colour}", words)
    else:
        chart.line([(p.learning_rate, p.loss) for p in valley.points], f"tried {colour}")
        along = [low * (high / low) ** (step / STEPS) for step in range(STEPS + 1)]
        first, last = valley.fitted[0].learning_rate / ROOM, valley.fitted[-1].learning_rate * ROOM
        shown = [(rate, valley.at(rate)) for rate in along if first <= rate <= last and valley.at(rate) <= top]
        chart.line(shown, f"series {colour}", words)
    for point in valley.points:
        chart.dot((point.learning_rate, point.loss), f"trial {colour}", "")
    if valley.is_inside:
        if valley.interval is not None:
            ends = [min(max(end, low), high) for end in valley.interval]
            chart.line([(end, valley.floor) for end in ends], f"interval {colour}")
        chart.dot((valley.best, valley.floor), f"optimum {colour}", f"{valley.best:.2g}")


def curves(sweep: Sweep) -> Chart:
    """Loss over tokens of every trial; what is far above at the beginning is cut off."""
    config, shown = sweep.config, [trial for trial in sweep.trials if _finite(trial)]
    batch_of = {t.name: int(t.parameters.get(BATCH, config.train.global_batch_tokens)) for t in shown}
    order = sorted(set(batch_of.values()))
    total = float(longest(config))
    late = [loss for trial in shown for tokens, loss in _finite(trial) if tokens >= EARLY * total]
    y = loss_axis(late or [loss for trial in shown for _tokens, loss in _finite(trial)])
    chart = Chart(Axis(0.0, total, "tokens", short, log=False), y, "loss over tokens by trial")
    told: set[int] = set()
    for trial in sorted(shown, key=lambda one: one.losses[-1]):
        batch = batch_of[trial.name]
        kind = f"series s{order.index(batch) % COLOURS}{'' if trial.progress.status == COMPLETED else ' early'}"
        path = [(tokens, min(loss, y.high)) for tokens, loss in _finite(trial)]
        is_first = batch not in told and trial.progress.status == COMPLETED
        chart.line(path, kind, f"{batch:,} tokens" if is_first else "")
        told |= {batch} if is_first else set()
    return chart


def _finite(trial: Trial) -> list[tuple[int, float]]:
    return [(report.tokens, report.loss) for report in trial.progress.reports if math.isfinite(report.loss)]


def batches(sweep: Sweep) -> Chart:
    """Loss at the best rate over the batch."""
    found = [(float(valley.batch_tokens), valley.floor) for valley in sweep.valleys]
    noise = sweep.noise_scale_tokens
    ends = [batch for batch, _loss in found] + ([noise] if noise else [])
    x = Axis(min(ends) / 1.5, max(ends) * 1.5, "batch (tokens)", short)
    chart = Chart(x, loss_axis([loss for _batch, loss in found], above=0.2), "loss over batch")
    chart.line(found, "series s0")
    for batch, loss in found:
        chart.dot((batch, loss), "trial s0", f"{loss:.4f}")
    if noise:
        chart.upright(noise, "noise", f"noise scale {short(noise)}", 0)
    return chart
