"""A sweep as tables of words: the terminal and the page show the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretrainer.config import Config
from pretrainer.config.sweep import LENGTH, Value
from pretrainer.model.presets import parameter_count
from pretrainer.plan.batch import BATCH_LAWS
from pretrainer.plan.report import Table
from pretrainer.plan.units import short
from pretrainer.tuning.fit import COVERED, Interval, Point, Slope, Valley, best_batch, rate_over_batch, tolerable_batch
from pretrainer.tuning.records import COMPLETED, FAILED, STOPPED, Trial
from pretrainer.tuning.space import BATCH, LEARNING_RATE, longest, total_tokens

TOKENS_PER_PARAMETER = 20
WORDS = {COMPLETED: "completed", STOPPED: "ended early", FAILED: "failed"}


@dataclass(frozen=True)
class Sweep:
    """What is known when a sweep ends, or stops."""

    config: Config
    trials: Sequence[Trial]
    valleys: Sequence[Valley]
    vocab_size: int

    @property
    def winner(self) -> Trial | None:
        """The completed trial of the least held-out loss; the first one of equals."""
        done = [trial for trial in self.trials if trial.final_loss is not None and math.isfinite(trial.final_loss)]
        return min(done, key=lambda trial: (trial.final_loss or 0.0, trial.number)) if done else None

    @property
    def slope(self) -> Slope | None:
        return rate_over_batch(self.valleys)

    @property
    def noise_scale_tokens(self) -> float | None:
        """Of the winner, as its last looks measured it."""
        return self.winner.progress.noise_scale_tokens if self.winner else None

    @property
    def trained_tokens(self) -> int:
        """Over all trials; one that goes on trains no token twice but those behind its last checkpoint."""
        return sum(trial.progress.trained_tokens for trial in self.trials)

    @property
    def whole_tokens(self) -> int:
        """Had every trial gone to its end."""
        return sum(total_tokens(self.config, trial.parameters) for trial in self.trials)

    @property
    def is_ladder(self) -> bool:
        """Trials of several lengths, for a scaling law: their losses are not compared with each other."""
        return any(dimension.field == LENGTH for dimension in self.config.sweep.space)


def points(config: Config, trials: Sequence[Trial]) -> list[Point]:
    """Completed trials on the axes rate and batch, the best of those that differ in other fields only."""
    best: dict[tuple[int, float], Point] = {}
    for trial in trials:
        if trial.final_loss is None:
            continue
        batch = int(trial.parameters.get(BATCH, config.train.global_batch_tokens))
        rate = float(trial.parameters.get(LEARNING_RATE, config.train.learning_rate))
        point = Point(batch, rate, trial.final_loss)
        best[batch, rate] = min(best.get((batch, rate), point), point, key=lambda one: one.loss)
    return list(best.values())


def tables(sweep: Sweep) -> list[Table]:
    found = [_result(sweep)]
    if is_grid_of_rates(sweep):
        found.append(grid_table(sweep.config, sweep.trials))
    found.append(_trials(sweep))
    if sweep.valleys:
        found += [_optima(sweep), _batches(sweep)]
    if sweep.winner is not None and sweep.config.sweep.target.parameters is not None:
        found.append(_target(sweep, sweep.winner))
    return found


def is_grid_of_rates(sweep: Sweep) -> bool:
    return not sweep.is_ladder and any(d.field in (BATCH, LEARNING_RATE) for d in sweep.config.sweep.space)


def plain(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# ----------------------------------------------------------------------------------------------------------- tables


def _result(sweep: Sweep) -> Table:
    counts = [(words, sum(t.progress.status == status for t in sweep.trials)) for status, words in WORDS.items()]
    left = sum(not trial.progress.is_over for trial in sweep.trials)
    told = ", ".join(f"{count} {words}" for words, count in [*counts, ("not over", left)] if count)
    winner = sweep.winner
    share = sweep.trained_tokens / max(1, sweep.whole_tokens)
    rows = [
        ("trials", told),
        (
            "tokens",
            f"{sweep.trained_tokens:,} trained, {share:.0%} of the {sweep.whole_tokens:,} of all trials to their ends; "
            f"{longest(sweep.config):,} in {'the longest' if sweep.is_ladder else 'a whole'} trial",
        ),
    ]
    if winner is not None:
        rows.append(("best", ", ".join(f"{name}={plain(value)}" for name, value in winner.parameters.items())))
        last = winner.progress.reports[-1]
        rows.append(("its held-out loss", f"{last.loss:.4f}, {last.bits_per_byte:.4f} bits per byte"))
    return Table("sweep", (), rows)


def grid_table(config: Config, trials: Sequence[Trial]) -> Table:
    """Loss by batch and rate: final, or so far with the share of its tokens."""
    batches = sorted({int(t.parameters.get(BATCH, config.train.global_batch_tokens)) for t in trials})
    rates = sorted({float(t.parameters.get(LEARNING_RATE, config.train.learning_rate)) for t in trials})

    def cell(batch: int, rate: float) -> str:
        here = [
            t for t in trials
            if int(t.parameters.get(BATCH, config.train.global_batch_tokens)) == batch
            and float(t.parameters.get(LEARNING_RATE, config.train.learning_rate)) == rate
        ]  # fmt: skip
        return min((loss_words(trial, config) for trial in here), default="")

    rows = [(f"{batch:,} tokens", *(cell(batch, rate) for rate in rates)) for batch in batches]
    return Table("held-out loss by batch and learning rate", ("batch", *(f"{rate:.3g}" for rate in rates)), rows)


def loss_words(trial: Trial, config: Config) -> str:
    if trial.progress.status == FAILED:
        return "failed"
    if not trial.losses:
        return "…"
    if trial.progress.status == COMPLETED:
        return f"{trial.losses[-1]:.4f}"
    return f"{trial.losses[-1]:.4f} at {len(trial.losses) / config.sweep.reports:.0%}"


def _trials(sweep: Sweep) -> Table:
    rows = [
        (
            trial.name,
            WORDS.get(trial.progress.status, "not over"),
            f"{trial.losses[-1]:.4f}" if trial.losses else "-",
            f"{trial.progress.trained_tokens:,}",
            f"{trial.progress.seconds:,.0f}",
            trial.progress.message,
        )
        for trial in sorted(sweep.trials, key=lambda t: (t.final_loss is None, t.losses[-1] if t.losses else math.inf))
    ]
    return Table("trials", ("trial", "status", "last loss", "tokens", "seconds", "why"), rows, words=(0, 1, 5))


def _optima(sweep: Sweep) -> Table:
    rows = [
        (
            f"{valley.batch_tokens:,} tokens",
            f"{valley.best:.3g}",
            interval_words(valley.interval),
            f"{valley.floor:.4f}",
            f"{valley.lowest.learning_rate:.3g}",
            f"{valley.lowest.loss:.4f}",
            "inside" if valley.is_inside else "at the edge: widen the space",
        )
        for valley in sweep.valleys
    ]
    head = ("batch", "fitted best rate", f"{COVERED:.0%} interval", "fitted loss", "best tried", "its loss", "where")
    return Table("optimum of the learning rate", head, rows, list(_optimum_notes(sweep)), words=(0, 6))


def interval_words(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    low = "0" if interval.low == 0 else f"{interval.low:.3g}"
    return f"{low} to {'any' if math.isinf(interval.high) else f'{interval.high:.3g}'}"


def _optimum_notes(sweep: Sweep) -> Iterator[str]:
    yield (
        "Least squares of loss on the logarithm of the rate, through the best rate and two neighbours on each side. "
        "The interval redraws the losses with the spread that the parabolas leave, pooled over batches: one seed was "
        "trained for each setting, and a lopsided valley counts as spread."
    )
    if sweep.slope is not None:
        power = f"batch^{sweep.slope.power:.2f}"
        more = f" ({interval_words(sweep.slope.interval)})" if sweep.slope.interval else ""
        yield f"Over these batches the best rate grows as {power}{more}; for Adam the root of the batch is usual."


def _batches(sweep: Sweep) -> Table:
    noise, best = sweep.noise_scale_tokens, best_batch(sweep.valleys)
    rows = []
    for valley in sweep.valleys:
        steps = total_tokens(sweep.config) // valley.batch_tokens
        rows.append(
            (
                f"{valley.batch_tokens:,} tokens",
                f"{steps:,}",
                f"{valley.floor:.4f}",
                f"{valley.floor / best.floor - 1:+.2%}",
                "-" if noise is None else f"{valley.batch_tokens / noise:.2f}",
                "-" if noise is None else f"{1 + valley.batch_tokens / noise:.2f}",
            )
        )
    head = ("batch", "steps", "loss at the best rate", "above the least", "of the noise scale", "tokens needed")
    return Table("batch size at equal tokens", head, rows, list(_batch_notes(sweep)))


def _batch_notes(sweep: Sweep) -> Iterator[str]:
    noise, most = sweep.noise_scale_tokens, tolerable_batch(sweep.valleys)
    if noise is None:
        yield "No gradient noise scale was measured: set monitor.every_steps so that a trial takes several close looks."
    else:
        yield (
            f"The gradient noise scale of the best trial is {noise:,.0f} tokens at its end, its critical batch by "
            "McCandlish et al. 2018 (arXiv:1812.06162): a batch B needs 1 + B/noise times the tokens of a tiny one for "
            "the same loss. It takes no account of curvature or of Adam, and grows while the loss falls."
        )
    yield (
        f"Measured here: up to {most.batch_tokens:,} tokens the loss at the best rate is within 1 % of the least, so "
        "that batch may be used where it trains faster."
    )


def _target(sweep: Sweep, winner: Trial) -> Table:
    """The winner's rate and batch moved along published laws, as ratios: their exponents, this sweep's level."""
    config, target = sweep.config, sweep.config.sweep.target
    assert target.parameters is not None
    n_here, d_here = float(parameter_count(config.model, sweep.vocab_size)), float(total_tokens(config))
    n_there = target.parameters
    d_there = target.tokens or TOKENS_PER_PARAMETER * n_there
    batch = float(winner.parameters.get(BATCH, config.train.global_batch_tokens))
    rate = float(winner.parameters.get(LEARNING_RATE, config.train.learning_rate))
    slot, rows = config.data.seq_len * config.data.slot_sequences, []
    for name, law in BATCH_LAWS.items():
        here, there = law(n_here, d_here), law(n_there, d_there)
        to_batch = max(slot, round(batch * there.tokens / here.tokens / slot) * slot)
        told = "-"
        if here.learning_rate is not None and there.learning_rate is not None:
            told = f"{rate * there.learning_rate / here.learning_rate:.3g}"
        rows.append((name, f"{to_batch:,}", told))
    notes = [
        f"From {short(n_here)} parameters and {short(d_here)} tokens to {short(n_there)} and {short(d_there)}: the "
        "best batch and rate of this sweep times the ratio of each law between the two (pretrainer/plan/batch.py).",
        "This assumes that a law's exponents hold from here to there, and the same data, tokenizer, context, "
        "optimizer, schedule and shape of model; none of that was tried in this sweep. Where the laws differ by more "
        "than 2, sweep again at a size between.",
    ]
    return Table("extrapolation", ("law", "batch (tokens)", "learning rate"), rows, notes)
