"""Every limit that can drop a document, and the presets: which groups of rules a source goes through, in order.

A group measures documents, and may edit them; each of its rules drops those whose measure is outside. A reason is a
stable snake_case name, one per rule, because reports count by it and people compare runs.

To add a rule write or find its measure, and add a line to its group. To add a group write a function of the same form
and add its line to GROUPS, and its name to a preset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.filters import c4, code, refinedweb
from pretrainer.data.filters.characters import visible_chars
from pretrainer.data.filters.fineweb import fineweb_measures
from pretrainer.data.filters.gopher import quality_measures
from pretrainer.data.filters.repetition import REPEATED_NGRAMS, TOP_NGRAMS, repetition_measures

Limits = Mapping[str, float]
Measured = tuple[dict[str, np.ndarray], pa.Array]
"""(name -> [N] float64, the texts as they go on)."""


class Rule(NamedTuple):
    """A document whose measure is below `least` or above `most` is dropped for this reason."""

    reason: str
    measure: str
    least: float = -math.inf
    most: float = math.inf

    def passes(self, values: np.ndarray) -> np.ndarray:
        """[N] bool; NaN passes."""
        return ~((values < self.least) | (values > self.most))

    def with_limit(self, limit: float) -> Rule:
        """The same rule with another number in the place of its limit."""
        return self._replace(least=limit) if self.least > -math.inf else self._replace(most=limit)

    @property
    def limit(self) -> float:
        return self.least if self.least > -math.inf else self.most


@dataclass(frozen=True)
class Group:
    """Rules over what one function measures."""

    measure: Callable[[pa.Array, Limits], Measured]
    rules: tuple[Rule, ...]
    line_limits: Limits = field(default_factory=dict)
    """Numbers that the function needs itself, because they decide about lines."""


def measuring(function: Callable[[pa.Array], dict[str, np.ndarray]]) -> Callable[[pa.Array, Limits], Measured]:
    """A function that edits nothing and needs no limits, as a group's."""
    return lambda texts, _limits: (function(texts), texts)


TOP_SHARES, REPEATED_SHARES = (0.20, 0.18, 0.16), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
C4_RULES = (
    Rule("c4_lorem_ipsum", "c4_lorem_ipsum", most=0),
    Rule("c4_curly_bracket", "c4_curly_brackets", most=0),
    Rule("c4_too_few_sentences", "c4_sentences", least=5),
)

GROUPS: dict[str, Group] = {
    "not_empty": Group(measuring(visible_chars), (Rule("empty", "visible_chars", least=1),)),
    "gopher_quality": Group(
        measuring(quality_measures),
        (
            Rule("gopher_too_few_words", "gopher_words", least=50),
            Rule("gopher_too_many_words", "gopher_words", most=100_000),
            Rule("gopher_short_words", "gopher_mean_word_chars", least=3),
            Rule("gopher_long_words", "gopher_mean_word_chars", most=10),
            Rule("gopher_too_many_hashes", "gopher_hash_share", most=0.1),
            Rule("gopher_too_many_ellipses", "gopher_ellipsis_share", most=0.1),
            Rule("gopher_too_many_bullet_lines", "gopher_bullet_line_share", most=0.9),
            Rule("gopher_too_many_ellipsis_lines", "gopher_ellipsis_line_share", most=0.3),
            Rule("gopher_too_few_alphabetic_words", "gopher_alphabetic_share", least=0.8),
            Rule("gopher_too_few_stop_words", "gopher_stop_words", least=2),
        ),
    ),
    "gopher_repetition": Group(
        measuring(repetition_measures),
        (
            Rule("gopher_duplicate_paragraphs", "gopher_duplicate_paragraph_share", most=0.30),
            Rule("gopher_duplicate_paragraph_chars", "gopher_duplicate_paragraph_char_share", most=0.20),
            Rule("gopher_duplicate_lines", "gopher_duplicate_line_share", most=0.30),
            # Dolma 1.5 used 0.3; the paper, datatrove and NeMo Curator have 0.2.
            Rule("gopher_duplicate_line_chars", "gopher_duplicate_line_char_share", most=0.20),
            *(
                Rule(f"gopher_top_{n}gram_chars", f"gopher_top_{n}gram_share", most=share)
                for n, share in zip(TOP_NGRAMS, TOP_SHARES, strict=True)
            ),
            *(
                Rule(f"gopher_repeated_{n}gram_chars", f"gopher_repeated_{n}gram_share", most=share)
                for n, share in zip(REPEATED_NGRAMS, REPEATED_SHARES, strict=True)
            ),
        ),
    ),
    "c4": Group(c4.c4_lines, C4_RULES, c4.LINE_LIMITS),
    "c4_without_punctuation": Group(c4.c4_lines, C4_RULES, {**c4.LINE_LIMITS, "c4_terminal_punctuation": 0}),
    "fineweb": Group(
        measuring(fineweb_measures),
        (
            Rule("fineweb_no_lines", "fineweb_lines", least=1),
            Rule("fineweb_few_ended_lines", "fineweb_ended_line_share", least=0.12),
            Rule("fineweb_short_lines", "fineweb_short_line_share", most=0.67),
            Rule("fineweb_duplicate_chars", "fineweb_duplicate_char_share", most=0.01),
            Rule("fineweb_list", "fineweb_newlines_per_token", most=0.3),
        ),
    ),
    "refinedweb": Group(
        refinedweb.refinedweb_lines,
        (Rule("refinedweb_too_many_removed_words", "refinedweb_removed_word_share", most=0.05),),
        refinedweb.LINE_LIMITS,
    ),
    "code_lines": Group(
        measuring(code.line_measures),
        (
            Rule("code_too_short", "code_stripped_chars", least=50),
            Rule("code_long_line", "code_longest_line_chars", most=1000),
            Rule("code_long_mean_line", "code_mean_line_chars", most=100),
        ),
    ),
    "code_generated": Group(
        measuring(code.generated_measures), (Rule("code_auto_generated", "code_generated_marks", most=0),)
    ),
    "code_alphanumeric": Group(
        measuring(code.alphanumeric_measures),
        (
            Rule("code_low_alphanumeric", "code_alphanumeric_share", least=0.25),
            Rule("code_mostly_digits", "code_digit_share", most=0.5),
        ),
    ),
    "code_encoded_data": Group(
        measuring(code.encoded_measures),
        (
            Rule("code_encoded_run", "code_longest_encoded_chars", most=1024),
            Rule("code_encoded_data", "code_encoded_share", most=0.5),
        ),
    ),
}

# Cheap groups stand first: a document pays for no group after the one that drops it.
PRESETS: dict[str, tuple[str, ...]] = {
    "gopher": ("not_empty", "gopher_quality", "gopher_repetition"),
    "c4": ("not_empty", "c4"),
    "fineweb": ("not_empty", "gopher_quality", "gopher_repetition", "c4_without_punctuation", "fineweb"),
    "refinedweb": ("not_empty", "gopher_quality", "gopher_repetition", "refinedweb"),
    "code": ("not_empty", "code_lines", "code_generated", "code_alphanumeric", "code_encoded_data"),
    "none": (),
}
PRESETS["prose"] = PRESETS["gopher"]
PRESETS["web"] = PRESETS["fineweb"]
