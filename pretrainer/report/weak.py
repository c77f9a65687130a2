"""What a person should look at in a run: each rule is a function of what is known to one sentence, or None.

To add one, write it and list it in RULES. The limits are rules of thumb, not laws; each sentence carries its numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from pretrainer.report.facts import Facts
from pretrainer.report.story import Story, smooth

SLOW_DATA = 0.05
MUCH_LOST = 0.10
GAP_NATS = 0.5
RISE_NATS = 0.02
FEW_DOCUMENTS = 20
HARSH_FILTER = 0.5
MANY_DEAD = 0.01
OFF_MIXTURE = 0.01
LOW_MFU = 0.3
WORTH_OF_REPEATS = 4  # Muennighoff et al. 2023, arXiv:2305.16264

Rule = Callable[[Facts, Story], str | None]


def not_finished(facts: Facts, story: Story) -> str | None:
    if facts.status == "completed":
        return None
    of = f" of {facts.total_steps:,}" if facts.total_steps else ""
    return f"The run is {facts.status} at step {max(facts.steps, story.last_step):,}{of}. {facts.message}".strip()


def ended_early(facts: Facts, story: Story) -> str | None:
    early = facts.summary.get("early_stop")
    if not early:
        return None
    rule = f"{early['stop_after_validations']} validations in a row were no better by {early['min_improvement']:g} nats"
    return f"It ended early, after step {early['step']:,}: {rule}."


def no_better_than_gzip(facts: Facts, story: Story) -> str | None:
    worse = []
    for name, points in story.held_out("bits_per_byte").items():
        gzip = (facts.held_out.get(name) or {}).get("gzip_bits_per_byte")
        if gzip is not None and points[-1][1] >= gzip:
            worse.append(f"{name} {points[-1][1]:.3f} (gzip -9 {gzip:.3f})")
    return f"Held-out text in bits per byte, no better than gzip makes it: {', '.join(worse)}." if worse else None


def memorised(facts: Facts, story: Story) -> str | None:
    held, train = facts.summary.get("val_loss"), [value for _step, value in smooth(story.curve("loss"), 0.05)]
    if held is None or not train or held - train[-1] < GAP_NATS:
        return None
    return (
        f"Held-out loss is {held:.3f} and training loss {train[-1]:.3f}: a gap of {held - train[-1]:.2f} nats, as "
        "where a model has learned its text by heart, or where the held-out text is of another kind."
    )


def rising(facts: Facts, story: Story) -> str | None:
    worse = []
    for name, points in story.held_out("loss").items():
        step, least = min(points, key=lambda point: point[1])
        if points[-1][1] > least + RISE_NATS:
            worse.append(f"{name} {points[-1][1]:.3f} (least {least:.3f} at step {step:,})")
    return f"Held-out loss rose again: {'; '.join(worse)}." if worse else None


def repeated(facts: Facts, story: Story) -> str | None:
    trained = facts.steps * (facts.batch_tokens or 0)
    often = []
    for name, counts in facts.sources.items():
        share = (facts.mixture.get(name) or {}).get("realised") or 0.0
        epochs = share * trained / max(1, counts.get("tokens") or 0)
        if epochs > WORTH_OF_REPEATS:
            often.append(f"{name} {epochs:.1f} times")
    if not often:
        return None
    return f"Text was repeated more than {WORTH_OF_REPEATS} times, where it is worth little: {', '.join(often)}."


def few_held_out(facts: Facts, story: Story) -> str | None:
    few = [f"{name} {held['documents']}" for name, held in facts.held_out.items() if held["documents"] < FEW_DOCUMENTS]
    return f"Held-out loss rests on few documents: {', '.join(few)}." if few else None


def not_evaluated(facts: Facts, story: Story) -> str | None:
    if any(not name.startswith("held-out") for name in facts.newest_tasks()):
        return None
    return "No task was evaluated: only loss on held-out text says how good the model is (evaluation.tasks)."


def guessing(facts: Facts, story: Story) -> str | None:
    blind = []
    for name, task in facts.newest_tasks().items():
        acc, guess = task["metrics"].get("acc"), task.get("guess")
        if acc is not None and guess is not None and acc["value"] <= guess + 2 * (acc.get("stderr") or 0.0):
            blind.append(f"{name} {acc['value']:.1%} (guess {guess:.1%})")
    return f"No better than a blind guess, within two standard errors: {', '.join(blind)}." if blind else None


def spikes(facts: Facts, story: Story) -> str | None:
    if not facts.heals:
        return None
    left_out = {step for heal in facts.heals for step in range(heal["first_step"], heal["end_step"])}
    reasons = Counter(heal["reason"].replace("_", " ") for heal in facts.heals)
    told = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    return f"Training was not calm: {told}; steps left out: {len(left_out):,}. The documents are named below."


def warned(facts: Facts, story: Story) -> str | None:
    told = [mark.words for mark in story.marks if mark.kind == "warning"]
    return " ".join(f"Warning: {words}." for words in told) or None


def disturbed(facts: Facts, story: Story) -> str | None:
    counts = Counter(mark.kind for mark in story.marks if mark.kind in ("failure", "stall", "preempted", "driver"))
    restarts = max(0, len(facts.attempts) - 1)
    if not counts:
        return None
    told = ", ".join(f"{count} × {kind}" for kind, count in counts.items())
    often = "once" if restarts == 1 else f"{restarts} times"
    return f"Workers were started again {often} ({told}); every step still counts once in the audit log."


def slow_data(facts: Facts, story: Story) -> str | None:
    share = facts.summary.get("data_wait_fraction")
    if share is None:
        waits = [value for _step, value in story.curve("data_wait_fraction")]
        share = sum(waits) / len(waits) if waits else 0.0
    if share < SLOW_DATA:
        return None
    return f"Training waited for data {share:.1%} of its time: curation needs more CPUs."


def little_goodput(facts: Facts, story: Story) -> str | None:
    shares = {name: share for name, share in (facts.goodput.get("share") or {}).items() if name != "useful"}
    if not shares or sum(shares.values()) < MUCH_LOST:
        return None
    name = max(shares, key=lambda one: shares[one])
    return (
        f"Only {facts.goodput['fraction']:.1%} of the workers' time trained new steps; most of the rest, "
        f"{shares[name]:.1%}, was {name.replace('_', ' ')}."
    )


def low_mfu(facts: Facts, story: Story) -> str | None:
    values = sorted(value for _step, value in story.curve("mfu"))
    if not values or values[len(values) // 2] >= LOW_MFU:
        return None
    return f"The devices reached {values[len(values) // 2]:.1%} of their peak (median MFU); {LOW_MFU:.0%} is usual."


def harsh_filter(facts: Facts, story: Story) -> str | None:
    told = []
    for name, counts in facts.sources.items():
        shares = {reason: n / max(1, counts["read"]) for reason, n in counts["dropped"].items()}
        told += [f"{name}: {reason} {share:.0%}" for reason, share in shares.items() if share > HARSH_FILTER]
    return f"One rule dropped most of a source: {'; '.join(told)}." if told else None


def dead_letters(facts: Facts, story: Story) -> str | None:
    shares = {name: counts["dead_letters"] / max(1, counts["read"]) for name, counts in facts.sources.items()}
    told = [f"{name} {share:.1%}" for name, share in shares.items() if share > MANY_DEAD]
    return f"Many records could not be read: {', '.join(told)}." if told else None


def off_mixture(facts: Facts, story: Story) -> str | None:
    told = [
        f"{name} {one['realised']:.2%} (asked {one['asked']:.2%})"
        for name, one in facts.mixture.items()
        if math.fabs(one["realised"] - one["asked"]) > OFF_MIXTURE
    ]
    return f"The mixture is not the one that was asked for: {', '.join(told)}." if told else None


RULES: dict[str, Rule] = {
    "not_finished": not_finished,
    "ended_early": ended_early,
    "no_better_than_gzip": no_better_than_gzip,
    "memorised": memorised,
    "rising": rising,
    "spikes": spikes,
    "warned": warned,
    "disturbed": disturbed,
    "repeated": repeated,
    "few_held_out": few_held_out,
    "not_evaluated": not_evaluated,
    "guessing": guessing,
    "slow_data": slow_data,
    "little_goodput": little_goodput,
    "low_mfu": low_mfu,
    "harsh_filter": harsh_filter,
    "dead_letters": dead_letters,
    "off_mixture": off_mixture,
}


def findings(facts: Facts, story: Story) -> dict[str, str]:
    """The sentences of every rule that has something to say."""
    found = {name: rule(facts, story) for name, rule in RULES.items()}
    return {name: words for name, words in found.items() if words}
