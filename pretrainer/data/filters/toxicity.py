"""Toxicity: the share of words that stand in word lists, and an English classifier of documents and lines.

    toxicity_word_share       words in a listed phrase / words
    toxicity_score            the classifier's probability for the whole text, from 0 to 1
    toxicity_worst_line       the highest of its lines that have a word of two letters; NaN without one
    toxicity_removed_lines    share of those lines that were removed (max_line_score)
    toxicity_lines_left       how many of them are left; NaN where none was removed

The text is scored as one and not as the mean of its lines: the classifier weighs a word by its share in the text, so
one insult in a long text costs that line at most and a text of insults goes as a whole. All measures are of the text as
it came in, before lines are removed.

A list of a language (`en`, `de=URI`) counts in documents of that language, and in those whose language is not known; a
list without one counts everywhere. The classifier scores documents in English and those whose language is not known;
any other has NaN, which no rule drops, and keeps its lines. Both find words, not hostility: a civil threat passes, and
a text about slurs may not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pretrainer.config.curation import ToxicityConfig, split_word_list
from pretrainer.config.limits import language_tag
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage, with_texts
from pretrainer.data.filters.toxic_scores import load_classifier, score_texts, without_lines
from pretrainer.data.filters.toxic_words import WordList, listed_share, word_list
from pretrainer.data.filters.word_lists import WORD_LISTS
from pretrainer.data.resources import Read
from pretrainer.errors import UserError

Phrases = dict[str, list[str]]
"""Language ("" for any) -> phrases."""


def toxicity_stage(config: ToxicityConfig, read: Read) -> Stage:
    """Word lists (read once, here) and classifier, each where the config asks for it."""
    parts: list[Callable[[pa.Table], Measured]] = []
    rules: list[Rule] = []
    if config.word_lists:
        phrases = read_word_lists(config, read)
        parts.append(functools.partial(_measure_words, phrases, functools.cache(functools.partial(_lists, phrases))))
        rules.append(Rule("toxic_words", "toxicity_word_share", most=config.max_word_share))
    if config.classifier:
        parts.append(functools.partial(_measure_scores, config.max_line_score))
        rules.append(Rule("toxic_document", "toxicity_score", most=config.max_score))
    if config.classifier and config.max_line_score is not None:
        rules.append(Rule("toxic_lines", "toxicity_lines_left", least=1))

    def measure(docs: pa.Table) -> Measured:
        measures: dict[str, np.ndarray] = {}
        for part in parts:
            found, docs = part(docs)
            measures |= found
        return measures, docs

    return Stage("toxicity", measure, tuple(rules))


def check_toxicity_config(config: ToxicityConfig, read: Read | None = None) -> None:
    """UserError where the classifier's package is not the one, and, given the lists, about one that cannot be used."""
    if config.classifier:
        load_classifier()
    if read is not None:
        _lists(read_word_lists(config, read), "")


def read_word_lists(config: ToxicityConfig, read: Read) -> Phrases:
    """A phrase per line; lines that begin with # are comments. UserError for a file that is no UTF-8 or has none."""
    phrases: Phrases = {}
    for entry in config.word_lists:
        language, uri = split_word_list(entry)
        lines = list(WORD_LISTS[language]) if not uri else _lines_of(uri, read)
        phrases.setdefault(language_tag(language), []).extend(lines)
    return phrases


def _lines_of(uri: str, read: Read) -> list[str]:
    try:
        lines = [line.strip() for line in read(uri).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"data.toxicity.word_lists: {uri} is not UTF-8 ({error}): save it as UTF-8") from None
    phrases = [line for line in lines if line and not line.startswith("#")]
    if not phrases:
        raise UserError(f"data.toxicity.word_lists: {uri} has no words: write one word or phrase per line")
    return phrases


def _languages(docs: pa.Table) -> tuple[list[str], np.ndarray]:
    """(the different languages, [N] which of them a document has)."""
    codes = docs.column("language").combine_chunks().dictionary_encode()
    return [language_tag(code) for code in codes.dictionary.to_pylist()], codes.indices.to_numpy()


def _lists(phrases: Phrases, language: str) -> WordList | None:
    """What counts in documents of a language: its lists and those of any; "" is any language."""
    chosen = [one for name, several in phrases.items() if not language or name in ("", language) for one in several]
    return word_list(chosen) if chosen else None


def _measure_words(phrases: Phrases, lists: Callable[[str], WordList | None], docs: pa.Table) -> Measured:
    languages, which = _languages(docs)
    texts, shares = docs.column("text").combine_chunks(), np.zeros(docs.num_rows)
    # A language without lists of its own is "*": the lists of any language alone.
    keys = np.array([name if not name or name in phrases else "*" for name in languages], object)[which]
    for key in sorted(set(keys.tolist())):
        listed = lists(key)
        if listed is not None:
            shares += listed_share(texts, keys == key, listed)
    return {"toxicity_word_share": shares}, docs


def _measure_scores(max_line_score: float | None, docs: pa.Table) -> Measured:
    languages, which = _languages(docs)
    english = np.array([name in ("", "en") for name in languages], bool)[which]
    texts = docs.column("text").combine_chunks()
    scores = score_texts(texts, english, np.inf if max_line_score is None else max_line_score)
    measures = {"toxicity_score": scores.document, "toxicity_worst_line": scores.worst_line}
    if max_line_score is None:
        return measures, docs
    share = np.where(english, scores.removed / np.maximum(scores.lines, 1), np.nan)
    left = np.where(scores.removed > 0, scores.lines - scores.removed, np.nan)
    measures |= {"toxicity_removed_lines": share, "toxicity_lines_left": left}
    return measures, with_texts(docs, without_lines(texts, scores.is_removed)) if scores.is_removed.any() else docs
