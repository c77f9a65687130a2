"""A ladder of runs as tables and a page: the law that was fitted, how sure it is, and the run that was held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from pretrainer.config import Config
from pretrainer.errors import UserError
from pretrainer.model.presets import parameter_count, resolve_model_of
from pretrainer.plan.chart import Axis, Chart
from pretrainer.plan.laws import REFIT, LossFit
from pretrainer.plan.page import document
from pretrainer.plan.report import Table
from pretrainer.plan.units import short
from pretrainer.tuning.page import COLOURS, STEPS, loss_axis
from pretrainer.tuning.records import Trial
from pretrainer.tuning.scaling_fit import COVERED, Fit, HeldBack, Run, fit, hold_back
from pretrainer.tuning.space import tokens_of, with_parameters

BEYOND = 4.0
"""The chart goes on to so many times the tokens of the longest run."""


@dataclass(frozen=True)
class Ladder:
    """What a finished ladder says."""

    name: str
    runs: tuple[Run, ...]
    held: HeldBack
    whole: Fit  # of all runs


def runs_of(config: Config, trials: Sequence[Trial], vocab_size: int) -> list[Run]:
    """The completed trials, shortest first; parameters count the embedding, as in `pipelines.plan`."""
    found = []
    for trial in trials:
        if trial.final_loss is None:
            continue
        model = resolve_model_of(with_parameters(config, trial.parameters)).model
        parameters = parameter_count(model, vocab_size, active=True)
        found.append(Run(float(parameters), float(tokens_of(config, trial.parameters)), trial.final_loss))
    return sorted(found, key=lambda run: run.flops)


def climb(config: Config, trials: Sequence[Trial], vocab_size: int) -> Ladder:
    """Fit the ladder without its largest run and with it; UserError for one that is not finished."""
    left = [trial.name for trial in trials if not trial.progress.is_over]
    if left:
        raise UserError(
            f"{len(left)} runs of {config.run.name} are not over: give its `pipelines.tune` command again first"
        )
    runs = runs_of(config, trials, vocab_size)
    return Ladder(config.run.name, tuple(runs), hold_back(runs), fit(runs))


def fit_tables(ladder: Ladder) -> list[Table]:
    return [_held_back(ladder), _law(ladder.whole), _runs(ladder)]


def _held_back(ladder: Ladder) -> Table:
    held = ladder.held
    low, high = held.fit.interval([law.loss(held.run.parameters, held.run.tokens) for law in held.fit.resampled])
    others = max(run.flops for run in held.fit.runs)
    rows = [
        ("run", f"{short(held.run.parameters)} parameters on {short(held.run.tokens)} tokens, "
                f"{held.run.flops / others:.1f} times the compute of the largest other one"),
        ("predicted loss", f"{held.predicted:.4f}; {COVERED:.0%} of {len(held.fit.resampled)} resampled ladders say "
                           f"{low:.4f} to {high:.4f}"),
        ("measured loss", f"{held.run.loss:.4f}"),
        ("error", f"{held.error:+.2%}"),
    ]  # fmt: skip
    return Table("largest run, held back from the fit", (), rows)


def _law(whole: Fit) -> Table:
    def row(words: str, law: LossFit, of: str, form: str) -> tuple[str, ...]:
        def value(one: LossFit) -> float:
            return one.frontier.exponent if of == "exponent" else float(getattr(one, of))

        low, high = whole.interval([value(one) for one in whole.resampled])
        return words, format(value(law), form), f"{low:{form}} to {high:{form}}", format(value(REFIT), form)

    rows = [
        row("E", whole.law, "e", ".3f"),
        row("A", whole.law, "a", ".4g"),
        row("B", whole.law, "b", ".4g"),
        row("alpha", whole.law, "alpha", ".3f"),
        row("beta", whole.law, "beta", ".3f"),
        row("best N grows as C^", whole.law, "exponent", ".3f"),
    ]
    notes = [
        "L(N, D) = E + A / N^alpha + B / D^beta in nats per token, N with embeddings: Huber loss of log losses, L-BFGS "
        "from a grid of starts (Hoffmann et al. 2022, arXiv:2203.15556, D.2). Intervals are of resampled ladders.",
        f"The last column is Chinchilla's ({REFIT.source}), of other data and another tokenizer. E, A and B of a small "
        "ladder hang together: a prediction is surer than its coefficients, and less sure the farther it is away.",
    ]
    return Table("law", ("", "value", f"{COVERED:.0%} interval", "Chinchilla"), rows, notes)


def _runs(ladder: Ladder) -> Table:
    rows = []
    for run in ladder.runs:
        predicted = ladder.whole.law.loss(run.parameters, run.tokens)
        size = (short(run.parameters), short(run.tokens), f"{run.flops:.2e}")
        rows.append((*size, f"{run.loss:.4f}", f"{predicted:.4f}", f"{predicted / run.loss - 1:+.2%}"))
    return Table("runs", ("parameters", "tokens", "FLOPs", "loss", "fitted", "error"), rows, words=())


def render_fit(ladder: Ladder) -> bytes:
    """The HTML file."""
    words = (
        "Final held-out loss over tokens by size of model: dots are runs, lines the law fitted to all of them but the "
        "largest, which is the ring."
    )
    style = files("pretrainer.tuning").joinpath("page.css").read_text(encoding="utf-8")
    return document(f"Scaling law: {ladder.name}", fit_tables(ladder), [(fit_chart(ladder), words)], style)


def fit_chart(ladder: Ladder) -> Chart:
    low = min(run.tokens for run in ladder.runs) / 1.3
    high = max(run.tokens for run in ladder.runs) * BEYOND
    along = [low * (high / low) ** (step / STEPS) for step in range(STEPS + 1)]
    sizes, law = sorted({run.parameters for run in ladder.runs}), ladder.held.fit.law
    curves = {size: [(tokens, law.loss(size, tokens)) for tokens in along] for size in sizes}
    losses = [loss for curve in curves.values() for _tokens, loss in curve] + [run.loss for run in ladder.runs]
    chart = Chart(Axis(low, high, "tokens", short), loss_axis(losses), "loss over tokens by size of model")
    for number, size in enumerate(sizes):
        colour = f"s{number % COLOURS}"
        chart.line(curves[size], f"series {colour}", f"{short(size)} parameters")
        for run in ladder.runs:
            if run.parameters == size:
                kind = "optimum" if run == ladder.held.run else "trial"
                chart.dot((run.tokens, run.loss), f"{kind} {colour}", "")
    return chart
