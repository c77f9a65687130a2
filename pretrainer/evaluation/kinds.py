"""How a line of a task file is read: a function per kind of file, and its line in `KINDS`.

    context | delimiter + answer        is one example; only what stands behind the | is scored

Data sets that are read as they are published give the texts that lm-evaluation-harness 0.4.13 makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pretrainer.config import TaskConfig
from pretrainer.evaluation.template import LineError, expand, fill, texts, value_at

Line = dict[str, Any]
Scoring = Literal["choice", "cloze", "generate", "text"]
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class Example:
    """One line, without what stands before it."""

    pairs: tuple[tuple[str, str], ...]  # (context, continuation): one per choice, else one
    shot: str = ""  # the example as it is shown before others, without shot_delimiter
    choices: tuple[str, ...] = ()  # choice: texts whose lengths the likelihoods are divided by
    right: int = 0  # choice: number of the right one
    targets: tuple[str, ...] = ()  # generate: each is right


class Kind(NamedTuple):
    read: Callable[[Line, TaskConfig], Example]
    scoring: Scoring


def _multiple_choice(line: Line, config: TaskConfig) -> Example:
    context = fill(config.context or "{context}", line)
    choices = expand(config.choices or ("{choices}",), line)
    return _choice(context, choices, _number(value_at(config.answer or "{answer}", line), choices), config)


def _choice(context: str, choices: Sequence[str], right: int, config: TaskConfig) -> Example:
    if not all(choices) or len(choices) < 2 or not 0 <= right < len(choices):
        raise LineError(f"needs two or more choices with text and a right one among them, has {right} of {choices!r}")
    pairs = tuple((context, config.delimiter + choice) for choice in choices)
    return Example(pairs, context + config.delimiter + choices[right], tuple(choices), right)


def _number(answer: Any, choices: Sequence[str]) -> int:
    """Place of the right choice: the answer is its text, else its number."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, bool) or not (isinstance(answer, int) or (isinstance(answer, str) and answer.isdecimal())):
        raise LineError(f"has the answer {answer!r}, which is neither a choice nor the number of one")
    return int(answer)


def _cloze(line: Line, config: TaskConfig) -> Example:
    context, answer = fill(config.context or "{context}", line), fill(config.answer or "{answer}", line)
    if not answer:
        raise LineError("has an empty answer")
    return Example(((context, config.delimiter + answer),), context + config.delimiter + answer)


def _generate(line: Line, config: TaskConfig) -> Example:
    context, targets = fill(config.context or "{context}", line), texts(config.answer or "{answer}", line)
    if not targets:
        raise LineError("has no answer")
    return Example(((context, ""),), context + config.delimiter + targets[0], targets=targets)


def _text(line: Line, config: TaskConfig) -> Example:
    text = fill(config.context or "{text}", line)
    if not text:
        raise LineError("has an empty text")
    return Example((("", text),))


def _hellaswag(line: Line, config: TaskConfig) -> Example:
    """Zellers et al. 2019, arXiv:1905.07830: ctx_a, ctx_b, activity_label, endings, label."""
    first, second = fill("{ctx_a}", line), fill("{ctx_b}", line)
    context = _without_marks(f"{fill('{activity_label}', line)}: {first} {second.capitalize()}")
    endings = [_without_marks(ending) for ending in expand(("{endings}",), line)]
    return _choice(context, endings, _number(value_at("{label}", line), ()), config)


def _without_marks(text: str) -> str:
    """WikiHow's [title] and other marks in brackets, as the harness takes them out of HellaSwag."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


def _arc(line: Line, config: TaskConfig) -> Example:
    """Clark et al. 2018, arXiv:1803.05457: question, choices with text and label, answerKey."""
    labels = expand(("{choices.label}",), line)
    key = fill("{answerKey}", line)
    if key not in labels:
        raise LineError(f"has the answerKey {key!r}, and labels {labels!r}")
    context = f"Question: {fill('{question}', line)}\nAnswer:"
    return _choice(context, expand(("{choices.text}",), line), labels.index(key), config)


def _lambada(line: Line, config: TaskConfig) -> Example:
    """Paperno et al. 2016, arXiv:1606.06031: the last word of text. As in the harness the space before the word is its
    own, so that a shot has it and the delimiter."""
    context, _space, word = fill("{text}", line).rpartition(" ")
    if not word:
        raise LineError("has a text without a last word")
    return Example(((context, f" {word}"),), f"{context}{config.delimiter} {word}")


def _winogrande(line: Line, config: TaskConfig) -> Example:
    """Sakaguchi et al. 2019, arXiv:1907.10641: sentence with _, option1, option2, answer. What follows the gap is
    scored behind each option (partial evaluation, Trinh and Le 2018, arXiv:1806.02847)."""
    sentence, options = fill("{sentence}", line), expand(("{option1}", "{option2}"), line)
    before, gap, behind = sentence.partition("_")
    right = _number(value_at("{answer}", line), ()) - 1
    if not gap or not behind.strip() or right not in (0, 1):
        raise LineError("needs a sentence with _ before its end, and the answer 1 or 2")
    continuation = config.delimiter + behind.strip()
    contexts = [before + option for option in options]
    pairs = tuple((context, continuation) for context in contexts)
    return Example(pairs, contexts[right] + continuation, (continuation, continuation), right)


KINDS: dict[str, Kind] = {
    "multiple_choice": Kind(_multiple_choice, "choice"),
    "cloze": Kind(_cloze, "cloze"),
    "generate": Kind(_generate, "generate"),
    "text": Kind(_text, "text"),
    "hellaswag": Kind(_hellaswag, "choice"),
    "arc": Kind(_arc, "choice"),
    "lambada": Kind(_lambada, "cloze"),
    "winogrande": Kind(_winogrande, "choice"),
}
