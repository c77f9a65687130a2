"""What curation does to documents beside the quality rules and dedup; every section is off until it is given something,
but for decontamination. `data.sources[].skip` leaves a stage out for one source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.errors import require

PII_KINDS = ("email", "phone", "ip", "credit_card", "iban", "us_ssn", "secret")


def _require_share(field: str, value: float | None) -> None:
    require(value is None or 0 <= value <= 1, field, value, "use a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How HTML becomes text; `readers.extract`."""

    method: Literal["auto", "trafilatura", "resiliparse"] = "auto"
    """auto is resiliparse where a cheap signal says that no boilerplate is left and trafilatura elsewhere."""
    timeout_s: float = 30.0
    """A page that takes longer is a dead letter (extraction_timeout); the verdict is recorded in the ledger."""
    memory_bytes: int = 2 * 2**30
    """Address space of the process that extracts; a page that needs more is a dead letter (extraction_memory)."""
    recycle_pages: int = 5000
    """The process that extracts is replaced after so many pages, because extractors leak memory."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, "data.extract.timeout_s", self.timeout_s, "use a positive number of seconds")
        require(
            self.memory_bytes >= 2**28, "data.extract.memory_bytes", self.memory_bytes, f"use at least {2**28}"
        )
        require(self.recycle_pages >= 1, "data.extract.recycle_pages", self.recycle_pages, "use 1 or more")


@dataclass(frozen=True, kw_only=True)
class UrlConfig:
    """Which addresses are left out; `filters.urls`."""

    blocked_domains: tuple[str, ...] = ()
    """Files (paths or URIs) with a domain per line; pages of it and of its subdomains are dropped."""
    blocked_words: tuple[str, ...] = ()
    """Files with a word per line; one of them in an address, between other characters, drops the page."""
    soft_words: tuple[str, ...] = ()
    """Files with a word per line; max_soft_words + 1 different ones in an address drop the page."""
    max_soft_words: int = 1
    """How many different words of soft_words an address may hold."""
    blocked_patterns: tuple[str, ...] = ()
    """Regular expressions (RE2) that drop a page whose canonical address one of them matches somewhere."""

    def __post_init__(self) -> None:
        require(self.max_soft_words >= 0, "data.url.max_soft_words", self.max_soft_words, "use 0 or more")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Which languages are kept; `filters.language`."""

    keep: tuple[str, ...] = ()
    """Languages and their least score, for example en>=0.65 and de>=0.5; none keeps all and identifies nothing."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """A linear classifier over hashed word n-grams; `quality.classifier`, trained by pipelines.train_quality."""

    model: str | None = None
    """Model file (path or URI) that pipelines.train_quality wrote; none: no classifier."""
    min_score: float | None = None
    """Documents whose calibrated score is below are dropped; or give keep_share."""
    keep_share: float | None = None
    """Drop all but this share of documents like those that the model's keep-rate curve was measured on."""

    def __post_init__(self) -> None:
        _require_share("data.quality.min_score", self.min_score)
        _require_share("data.quality.keep_share", self.keep_share)
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
    """Buckets of CCNet that are kept: the thirds of the model's reference corpus by perplexity, lowest first."""
    max_perplexity: float | None = None
    """A cut-off of its own instead of the buckets."""

    def __post_init__(self) -> None:
        require(len(self.keep) > 0, "data.perplexity.keep", list(self.keep), "keep at least one of head, middle, tail")
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
    """What is replaced by a placeholder such as <EMAIL>: none leaves texts as they are."""
    max_found: int | None = None
    """A document with more finds than this is dropped instead (pii_too_much); none keeps all."""

    def __post_init__(self) -> None:
        require(
            self.max_found is None or self.max_found >= 0, "data.pii.max_found", self.max_found, "use 0 or more"
        )


@dataclass(frozen=True, kw_only=True)
class ToxicityConfig:
    """Word lists and a classifier; `filters.toxicity`."""

    word_lists: tuple[str, ...] = ()
    """Built-in lists by language (en) or files (paths or URIs) with a word or phrase per line."""
    max_word_share: float = 0.01
    """A document with a larger share of listed words is dropped."""
    classifier: bool = False
    """Score documents and lines with the offline classifier (English)."""
    max_score: float = 0.9
    """A document that scores higher is dropped."""
    max_line_score: float | None = None
    """Lines that score higher are removed; none removes no line."""

    def __post_init__(self) -> None:
        _require_share("data.toxicity.max_word_share", self.max_word_share)
        _require_share("data.toxicity.max_score", self.max_score)
        _require_share("data.toxicity.max_line_score", self.max_line_score)


@dataclass(frozen=True, kw_only=True)
class DecontaminationConfig:
    """Evaluation text is kept out of training; `decontamination`."""

    held_out: bool = True
    """Drop documents that hold passages of the run's own held-out documents."""
    benchmarks: tuple[str, ...] = ()
    """JSONL files (paths, globs or URIs) whose texts must not be trained on."""
    fields: tuple[str, ...] = ()
    """JSON keys of a benchmark's line that hold its text; none takes every string in the line."""
    ngram_words: int = 13
    """Words per n-gram of the index, lower-cased and without punctuation; a shorter text is matched as a whole."""
    max_overlap: float = 0.5
    """A document is dropped when more than this share of a benchmark text's n-grams, nearly equal ones included, is in
    it."""

    def __post_init__(self) -> None:
        require(self.ngram_words >= 3, "data.decontamination.ngram_words", self.ngram_words, "use at least 3")
        _require_share("data.decontamination.max_overlap", self.max_overlap)
