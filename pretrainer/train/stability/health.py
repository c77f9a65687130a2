"""Early signs that a run goes wrong, from what rank 0 reports anyway; each is told once.

To add one, write a function of what is known so far and list it in SIGNS.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pretrainer.pooled import pooled_loss

WINDOW_STEPS = 32
BEGINNING_STEPS = 100  # steps before the beginning is over, warm-up included
FAR_FROM_CHANCE_NATS = 1.0
WORSE_THAN_FIRST_NATS = 0.5
VANISHED = 1e-3  # of the norm at the beginning
GAP_NATS = 0.2  # by which the held-out loss moves away from the training loss
RESTLESS = 3.0  # times the least that the loss has varied


@dataclass
class Known:
    """What was seen so far."""

    chance: float | None  # ln of the vocabulary: the loss of a uniform guess; None of a model that was loaded
    first_validation: float | None = None  # at step 0, the mean over sources
    step: int = 0
    first_losses: list[float] = field(default_factory=list)
    first_norms: list[float] = field(default_factory=list)
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    least_noise: float = math.inf
    gaps: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss minus training loss)
    held_out: list[float] = field(default_factory=list)  # losses of these steps

    @property
    def is_past_beginning(self) -> bool:
        return self.step > BEGINNING_STEPS and len(self.losses) == WINDOW_STEPS and bool(self.first_losses)

    def add(self, step: dict[str, Any]) -> None:
        """A step that was applied."""
        self.step = step["step"]
        if len(self.first_losses) < WINDOW_STEPS:
            self.first_losses.append(step["loss"])
            self.first_norms.append(step["grad_norm"])
        self.losses.append(step["loss"])
        self.norms.append(step["grad_norm"])
        if self.is_past_beginning:
            self.least_noise = min(self.least_noise, noise(self.losses))


    def validated(self, step: int, loss: float) -> None:
        """A held-out loss behind the beginning, beside the training loss of the last steps."""
        if self.is_past_beginning:
            self.gaps.append((step, loss - level(self.losses)))
            self.held_out.append(loss)


def level(losses: deque[float]) -> float:
    """The loss of now: where a straight line through the last ones ends; their mean lags behind a falling loss."""
    count, mean = len(losses), sum(losses) / len(losses)
    middle = (count - 1) / 2
    slope = sum((n - middle) * loss for n, loss in enumerate(losses)) / sum((n - middle) ** 2 for n in range(count))
    return mean + slope * middle


def noise(losses: deque[float]) -> float:
    """Standard deviation of the loss from step to step: of its differences, over sqrt(2), so that a trend is none."""
    values = list(losses)
    differences = [b - a for a, b in zip(values, values[1:], strict=False)]
    return math.sqrt(sum(d * d for d in differences) / (2 * len(differences)))


def first_loss(known: Known) -> str | None:
    """An untrained model guesses evenly; more is a bad initialisation, less a leak of the targets."""
    first = known.first_validation
    if first is None or known.chance is None or abs(first - known.chance) <= FAR_FROM_CHANCE_NATS:
        return None
    what = "above: look at the initialisation" if first > known.chance else "below: does the model see its targets?"
    return f"before training the loss is {first:.3f}, and a uniform guess has {known.chance:.3f}; it is far {what}"


def divergence(known: Known) -> str | None:
    now, first = median(known.losses), known.first_losses[0]
    if now <= first + WORSE_THAN_FIRST_NATS:
        return None
    return (
        f"the loss is {now:.3f} at step {known.step}, and was {first:.3f} at the beginning: the run diverges; a lower "
        "train.learning_rate or a longer warm-up is the usual remedy"
    )


def vanishing(known: Known) -> str | None:
    now, first = median(known.norms), median(known.first_norms)
    if now >= VANISHED * first:
        return None
    return (
        f"the gradient norm is {now:.2e} at step {known.step}, and was {first:.2e} at the beginning: the gradients "
        "vanish, and the run may learn nothing more"
    )


def restless(known: Known) -> str | None:
    now = noise(known.losses)
    if now <= RESTLESS * known.least_noise:
        return None
    return (
        f"the loss varies by {now:.3f} from step to step at step {known.step}, and varied by {known.least_noise:.3f} "
        "before: often the first sign of a divergence"
    )


def overfitting(known: Known) -> str | None:
    """Sources and their held-out parts may differ by nature, and neighbouring texts are easier than strange ones: what
    counts is that the two losses move apart and the held-out one gets no better."""
    (then, least), (step, now) = min(known.gaps, key=lambda gap: gap[1]), known.gaps[-1]
    if now <= least + GAP_NATS or known.held_out[-1] <= min(known.held_out):
        return None
    return (
        f"the held-out loss is {now:+.3f} from the training loss at step {step}, was {least:+.3f} at step {then} and "
        "gets no better: the model learns its training text by heart; more text, fewer epochs or an earlier end "
        "(evaluation.stop_after_validations) is the usual remedy"
    )


Sign = Callable[[Known], str | None]
SIGNS: dict[str, Sign] = {"divergence": divergence, "vanishing": vanishing, "restless": restless}


class Health:
    """Looks at every event once; `chance` is ln of the vocabulary, None for a model that does not begin by guessing."""

    def __init__(self, chance: float | None) -> None:
        self.known, self.told = Known(chance), set[str]()

    def notice(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Warnings that this event leads to, as events of the recorder."""
        if event["kind"] == "validation" and event["step"] == 0:
            losses = [values["loss"] for values in event["sources"].values()]
            self.known.first_validation = sum(losses) / len(losses)
            return self._tell("first_loss", first_loss(self.known))
        if event["kind"] == "validation":
            self.known.validated(event["step"], pooled_loss(event["sources"]))
            return self._tell("overfitting", overfitting(self.known)) if self.known.gaps else []
        warnings = []
        for step in event["steps"] if event["kind"] == "steps" else ():
            if step["applied"]:
                self.known.add(step)
                if self.known.is_past_beginning:
                    warnings += [w for name, sign in SIGNS.items() for w in self._tell(name, sign(self.known))]
        return warnings

    def _tell(self, name: str, message: str | None) -> list[dict[str, Any]]:
        if message is None or name in self.told:
            return []
        self.told.add(name)
        return [{"kind": "warning", "name": name, "step": self.known.step, "message": message}]
