"""From scores of examples to the metrics of a task, by the names and rules of lm-evaluation-harness 0.4.13.

    choice     acc: the right choice is the likeliest; acc_norm: after division by its characters; acc_bytes: by its
               UTF-8 bytes (the first one wins a tie)
    cloze      acc: every token of the answer is the most likely one; perplexity: exp of the mean negative likelihood
    generate   exact_match
    text       top1: share of tokens that are the most likely one; bits_per_byte, byte_perplexity, word_perplexity
               (words are what whitespace separates)

Standard errors are those of a mean over lines, with n - 1; of a ratio over texts (top1, bits_per_byte) and of a
perplexity by the delta method, where the harness draws 100,000 bootstrap samples or gives none.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pretrainer.config import TaskConfig
from pretrainer.evaluation.kinds import Example, Scoring
from pretrainer.evaluation.scoring import Score


class Metric(NamedTuple):
    value: float
    stderr: float | None = None  # None for fewer than two lines, and where no rule is known


Metrics = dict[str, Metric]
_PUNCTUATION = str.maketrans("", "", string.punctuation)

HUMAN_TOP1, GPT3_TOP1 = 0.29, 0.56
"""Top-1 accuracy of people and of GPT-3 on OpenWebText in GPT-2's tokens (Shlegeris et al. 2022, arXiv:2212.11281):
yardsticks, comparable only on such text with such a vocabulary."""


def mean(values: Sequence[float]) -> Metric:
    average = sum(values) / len(values)
    if len(values) < 2:
        return Metric(average)
    variance = sum((value - average) ** 2 for value in values) / (len(values) - 1)
    return Metric(average, math.sqrt(variance / len(values)))


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Metric:
    """Sum of the parts over sum of the wholes; its error counts texts, not tokens, which depend on each other."""
    whole = sum(wholes)
    value = sum(parts) / whole
    if len(parts) < 2:
        return Metric(value)
    squares = sum((part - value * size) ** 2 for part, size in zip(parts, wholes, strict=True))
    return Metric(value, math.sqrt(squares * len(parts) / (len(parts) - 1)) / whole)


def _likeliest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda choice: values[choice])


def choice_metrics(examples: Sequence[Example], scores: Sequence[Sequence[Score]]) -> Metrics:
    lengths: dict[str, Callable[[str], int]] = {
        "acc": lambda choice: 1, "acc_norm": len, "acc_bytes": lambda choice: len(choice.encode()),
    }  # fmt: skip
    return {name: mean([_is_right(*one, length) for one in zip(examples, scores, strict=True)])
            for name, length in lengths.items()}  # fmt: skip


def _is_right(example: Example, scores: Sequence[Score], length: Callable[[str], int]) -> float:
    values = [one.log_likelihood / length(choice) for one, choice in zip(scores, example.choices, strict=True)]
    return float(_likeliest(values) == example.right)


def cloze_metrics(examples: Sequence[Example], scores: Sequence[Sequence[Score]]) -> Metrics:
    likelihood = mean([one[0].log_likelihood for one in scores])
    perplexity = math.exp(min(-likelihood.value, 700.0))
    error = None if likelihood.stderr is None else perplexity * likelihood.stderr
    return {"acc": mean([float(one[0].is_greedy) for one in scores]), "perplexity": Metric(perplexity, error)}


def text_metrics(examples: Sequence[Example], scores: Sequence[Sequence[Score]]) -> Metrics:
    """Each text has the scores of its windows."""
    texts = [example.pairs[0][1] for example in examples]
    nats = [-sum(one.log_likelihood for one in windows) for windows in scores]
    tokens = [float(sum(one.tokens for one in windows)) for windows in scores]
    hits = [float(sum(one.top1 for one in windows)) for windows in scores]
    sizes = [float(len(text.encode())) for text in texts]
    per_byte = ratio([part / math.log(2) for part in nats], sizes)
    per_word = ratio(nats, [float(len(re.split(r"\s+", text))) for text in texts])
    return {
        "top1": ratio(hits, tokens),
        "bits_per_byte": per_byte,
        "byte_perplexity": Metric(2 ** min(per_byte.value, 1000.0)),
        "word_perplexity": Metric(math.exp(min(per_word.value, 700.0))),
    }


def answer_metrics(config: TaskConfig, examples: Sequence[Example], answers: Sequence[str]) -> Metrics:
    """exact_match: the answer is one of the targets, but for what the config ignores."""
    pairs = zip(examples, answers, strict=True)
    return {"exact_match": mean([float(is_match(text, example.targets, config.ignore)) for example, text in pairs])}


def is_match(answer: str, targets: Sequence[str], ignore: Sequence[str]) -> bool:
    """As the harness's exact_match with ignore_case and ignore_punctuation, behind its filter remove_whitespace."""

    def normal(text: str) -> str:
        text = text.lower() if "case" in ignore else text
        return text.translate(_PUNCTUATION) if "punctuation" in ignore else text

    answer = answer.strip() if "whitespace" in ignore else answer
    return normal(answer) in map(normal, targets)


def guess(scoring: Scoring, examples: Sequence[Example]) -> float | None:
    """Accuracy of a blind guess among choices; None where there are none."""
    return sum(1 / len(example.choices) for example in examples) / len(examples) if scoring == "choice" else None


METRICS: dict[Scoring, Callable[[Sequence[Example], Sequence[Sequence[Score]]], Metrics]] = {
    "choice": choice_metrics, "cloze": cloze_metrics, "text": text_metrics,
}  # fmt: skip
