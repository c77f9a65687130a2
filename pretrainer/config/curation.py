"""What curation does to documents beside the quality rules and dedup; every section is off until it is given something,
but for decontamination. `data.sources[].skip` leaves a stage out for one source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pretrainer.config.limits import parse_limits
from pretrainer.errors import require

BUILT_IN_WORD_LISTS = ("en",)
PII_KINDS = ("email", "phone", "ip", "credit_card", "iban", "us_ssn", "secret")


def _require_share(field: str, value: float | None) -> None:
    require(value is None or 0 <= value <= 1, field, value, "use a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How HTML becomes text; `readers.extract`."""

    method: Literal["auto", "trafilatura", "resiliparse"] = "auto"
    """auto is resiliparse where a cheap signal says that no boilerplate is left and trafilatura elsewhere."""
    max_page_bytes: int = 4 * 2**20
    """A larger page is a dead letter (page_too_long) that no parser sees."""
    max_nodes: int = 100_000
    """A page with more elements and comments is a dead letter (page_too_many_nodes)."""
    max_depth: int = 512
    """A page whose elements nest deeper is a dead letter (page_too_deep); browsers stop at 512 as well."""
    timeout_s: float = 30.0
    """A page that takes more seconds of CPU is a dead letter (extraction_timeout), which the ledger records."""
    memory_bytes: int = 2 * 2**30
    """Address space of the process that extracts; a page that needs more is a dead letter (extraction_memory)."""
    recycle_pages: int = 5000
    """The process that extracts is replaced after so many pages, because extractors leak memory."""

    def __post_init__(self) -> None:
        for name in ("max_page_bytes", "max_nodes", "max_depth", "recycle_pages"):
            require(getattr(self, name) >= 1, f"data.extract.{name}", getattr(self, name), "use 1 or more")
        require(self.timeout_s > 0, "data.extract.timeout_s", self.timeout_s, "use a positive number of seconds")
        require(
            self.memory_bytes >= 2**28, "data.extract.memory_bytes", self.memory_bytes, f"use at least {2**28}"
        )


@dataclass(frozen=True, kw_only=True)
class UrlConfig:
    """Which addresses are left out; `filters.urls`."""

    blocked_domains: tuple[str, ...] = ()
    """Files (paths or URIs) with a domain per line; pages of it and of its subdomains are dropped."""
    blocked_words: tuple[str, ...] = ()
    """Files with a word or phrase per line; one in an address, between characters that are not alphanumeric, drops
    the page."""
    blocked_substrings: tuple[str, ...] = ()
    """Files with a piece of a word per line; one anywhere in an address, whose other characters than letters and
    digits are left out for this, drops the page."""
    soft_words: tuple[str, ...] = ()
    """Files with a word per line; max_soft_words + 1 different ones in an address drop the page."""
    max_soft_words: int = 1
    """How many different words of soft_words an address may hold."""
    blocked_patterns: tuple[str, ...] = ()
    """Regular expressions (RE2) that drop a page whose canonical address one of them matches somewhere."""

    def __post_init__(self) -> None:
        require(self.max_soft_words >= 0, "data.url.max_soft_words", self.max_soft_words, "use 0 or more")

    @property
    def files(self) -> tuple[str, ...]:
        """Every list that is named."""
        return (*self.blocked_domains, *self.blocked_words, *self.blocked_substrings, *self.soft_words)

    @property
    def is_on(self) -> bool:
        return bool(self.files or self.blocked_patterns)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Which languages are kept; `filters.language`."""

    keep: tuple[str, ...] = ()
    """Languages and their least score, for example en>=0.65 and de>=0.5; none keeps all and identifies nothing."""

    def __post_init__(self) -> None:
        for limit in parse_limits(self.keep, "data.language.keep"):
            require(
                limit.language is None and limit.is_least and 0 <= limit.limit <= 1,
                "data.language.keep",
                list(self.keep),
                "write a language and its least score from 0 to 1, for example en>=0.65",
            )


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """A linear classifier over hashed word n-grams; `quality.classifier`, trained by pipelines.train_quality."""

    model: str | None = None
    """Model file (path or URI) that pipelines.train_quality wrote; none: no classifier."""
    min_score: float | None = None
    """Documents whose calibrated score is below are dropped; or give keep_share."""
    keep_share: float | None = None
    """Keep this share of documents like the model's negatives, by the quantiles of those it was not fitted to."""

    def __post_init__(self) -> None:
        _require_share("data.quality.min_score", self.min_score)
        require(
            self.keep_share is None or 0 < self.keep_share <= 1,
            "data.quality.keep_share",
            self.keep_share,
            "use a number above 0 and up to 1, or leave the model out",
        )
        require(
            self.model is None or (self.min_score is None) != (self.keep_share is None),
            "data.quality.min_score",
            self.min_score,
            "give either data.quality.min_score or data.quality.keep_share with a model",
        )


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """An n-gram model over tokenizer pieces; `quality.perplexity`, trained by pipelines.train_perplexity."""

    model: str | None = None
    """Model file (path or URI) that pipelines.train_perplexity wrote; none: no perplexity filter."""
    keep: tuple[Literal["head", "middle", "tail"], ...] = ("head", "middle")
    """Buckets of CCNet that are kept, lowest perplexity first: thirds of what the model's cut-offs were measured on."""
    max_perplexity: float | None = None
    """A cut-off of its own instead of the buckets."""

    def __post_init__(self) -> None:
        require(len(self.keep) > 0, "data.perplexity.keep", list(self.keep), "keep at least one of head, middle, tail")
        require(set(self.keep) != {"head", "tail"}, "data.perplexity.keep", list(self.keep), "keep the middle too")
        require(
            self.max_perplexity is None or self.max_perplexity > 1,
            "data.perplexity.max_perplexity",
            self.max_perplexity,
            "use a number above 1",
        )


@dataclass(frozen=True, kw_only=True)
class PiiConfig:
    """Personal data and secrets; `filters.pii`. Names and postal addresses are not handled."""

    kinds: tuple[Literal["email", "phone", "ip", "credit_card", "iban", "us_ssn", "secret"], ...] = ()
    """What is replaced by a placeholder such as <EMAIL>; none leaves texts as they are."""
    max_found: int | None = None
    """A document with more finds than this is dropped instead (pii_too_much); none keeps all."""

    def __post_init__(self) -> None:
        require(len(set(self.kinds)) == len(self.kinds), "data.pii.kinds", list(self.kinds), "name each kind once")
        require(
            self.max_found is None or self.max_found >= 0, "data.pii.max_found", self.max_found, "use 0 or more"
        )
        require(
            self.max_found is None or self.is_on,
            "data.pii.max_found",
            self.max_found,
            "name the kinds that count in data.pii.kinds",
        )

    @property
    def is_on(self) -> bool:
        return bool(self.kinds)


@dataclass(frozen=True, kw_only=True)
class ToxicityConfig:
    """Word lists and a classifier; `filters.toxicity`."""

    word_lists: tuple[str, ...] = ()
    """Built-in lists by language (en), or files (paths or URIs) with a word or phrase per line; de=URI counts in German
    documents alone, and in those of unknown language."""
    max_word_share: float = 0.01
    """A document with a larger share of listed words is dropped."""
    classifier: bool = False
    """Score documents and lines with the offline classifier (English)."""
    max_score: float = 0.9
    """A document that scores higher is dropped."""
    max_line_score: float | None = None
    """Lines that score higher are removed; none removes no line. A document without another line is dropped."""

    def __post_init__(self) -> None:
        _require_share("data.toxicity.max_word_share", self.max_word_share)
        _require_share("data.toxicity.max_score", self.max_score)
        _require_share("data.toxicity.max_line_score", self.max_line_score)
        require(
            self.max_line_score is None or self.classifier,
            "data.toxicity.max_line_score",
            self.max_line_score,
            "lines are scored by the classifier: set data.toxicity.classifier to true",
        )
        for language, uri in map(split_word_list, self.word_lists):
            require(
                bool(uri) or language in BUILT_IN_WORD_LISTS,
                "data.toxicity.word_lists",
                language,
                f"built-in lists are {', '.join(BUILT_IN_WORD_LISTS)}: give a file, for example {language}=URI",
            )

    @property
    def files(self) -> tuple[str, ...]:
        """Every list that is no built-in one."""
        return tuple(uri for _language, uri in map(split_word_list, self.word_lists) if uri)

    @property
    def is_on(self) -> bool:
        return bool(self.word_lists or self.classifier)


def split_word_list(entry: str) -> tuple[str, str]:
    """(language, URI) of an entry of word_lists: ("en", "") is built in, ("", URI) counts in every language."""
    if re.fullmatch("[a-z]{2,3}", entry):
        return entry, ""
    tagged = re.fullmatch("([a-z]{2,3})=(.+)", entry)
    return (tagged[1], tagged[2]) if tagged else ("", entry)


@dataclass(frozen=True, kw_only=True)
class DecontaminationConfig:
    """Evaluation text is kept out of training; `decontamination`."""

    held_out: bool = True
    """Drop documents that hold passages of the run's own held-out documents."""
    benchmarks: tuple[str, ...] = ()
    """JSONL files (paths, folders, globs or URIs, compressed or not) whose texts must not be trained on."""
    fields: tuple[str, ...] = ()
    """JSON keys of a benchmark's line that hold its texts; none takes every string in the line."""
    ngram_words: int = 13
    """A match of fewer words counts as none, and a text of fewer words must be found whole; case, accents, punctuation
    and layout never count."""
    passage_words: int = 100
    """A longer text is judged by its passages of so many words."""
    max_overlap: float = 0.5
    """A document is dropped when more than this share of the words of a text, or of a passage of it, is found in one
    place of it; 1 drops none."""

    def __post_init__(self) -> None:
        require(self.ngram_words >= 5, "data.decontamination.ngram_words", self.ngram_words, "use at least 5")
        require(
            self.ngram_words <= self.passage_words <= 1000,
            "data.decontamination.passage_words",
            self.passage_words,
            "use a number from data.decontamination.ngram_words to 1000",
        )
        _require_share("data.decontamination.max_overlap", self.max_overlap)
