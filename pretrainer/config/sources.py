"""One corpus of a run: where it is, how it is read, how it is curated, how much of it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.config.limits import parse_limit, parse_limits
from pretrainer.errors import require

STAGES = ("url", "language", "rules", "score", "quality", "perplexity", "pii", "toxicity", "decontamination")
"""Stages of curation that a source can leave out or only annotate, in their order; dedup stands before pii."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    name: str
    """Short name of the source, unique in the run; it appears in reports and in the audit log."""
    uris: tuple[str, ...] = ()
    """Files, folders or globs: local paths, s3://, gs://, hf://, https://, or python-stdlib:// for the built-in one;
    paths+URI is a list of paths, as Common Crawl publishes them."""
    format: Literal["auto", "jsonl", "parquet", "text", "warc", "html", "wikipedia"] = "auto"
    """How shards are read; auto goes by the file name (.jsonl, .parquet, .warc, .wet, .html, *-pages-articles*.xml,
    else text; .gz, .zst, .lz4, .bz2 and .xz are opened)."""
    text_column: str = "text"
    """Column or JSON key that holds the text."""
    id_column: str | None = None
    """Column or JSON key that identifies a document; by default its shard and row do."""
    url_column: str | None = None
    """Column or JSON key of the address that the document comes from; WARC and HTML shards bring their own."""
    language_column: str | None = None
    """Column or JSON key of the document's language, if that is known already."""
    weight: float = 1.0
    """Up-weighting w_i in P(i) = w_i |D_i| / sum_j w_j |D_j|; used when no source gives a share."""
    size: int | None = None
    """Declared |D_i|, tokens or bytes, for every source or for none; by default shard bytes x share kept of a pilot."""
    share: float | None = None
    """Explicit share of the training tokens, 0 to 1; give it to all sources or to none."""
    preset: Literal["web", "prose", "code", "gopher", "c4", "fineweb", "refinedweb", "none"] = "prose"
    """Which quality rules apply: prose is gopher, web is fineweb (gopher, c4's lines and its own), none keeps all."""
    rules: tuple[str, ...] = ()
    """Changes to the preset's rules, for example gopher_too_few_words=20 or c4_curly_bracket=off."""
    scores: tuple[str, ...] = ()
    """Limits to numeric columns, for example similarity>=0.28 or, for one language, similarity[zh]>=0.26."""
    skip: tuple[str, ...] = ()
    """Stages of curation that this source does not go through, for example language, quality and toxicity for code."""
    annotate: tuple[str, ...] = ()
    """Stages that measure and drop nothing, so that data.decisions shows what other thresholds would do."""
    include: tuple[str, ...] = ()
    """Only shards whose path ends in one of these suffixes are read; empty means all."""
    max_epochs: int = 1
    """How often the source may be passed through before the run stops with a clear message."""
    max_bytes: int | None = None
    """Read only the first shards up to this many bytes (sorted by path); none means all."""

    def __post_init__(self) -> None:
        where = f"data.sources[{self.name}]"
        require(
            bool(self.name) and self.name.replace("-", "_").isidentifier(),
            f"{where}.name",
            self.name,
            "use letters, digits, '-' and '_', beginning with a letter",
        )
        require(len(self.uris) > 0, f"{where}.uris", list(self.uris), "name at least one file, folder, glob or URI")
        require(self.weight > 0, f"{where}.weight", self.weight, "use a positive number")
        require(self.size is None or self.size > 0, f"{where}.size", self.size, "use a positive number")
        require(self.share is None or 0 < self.share <= 1, f"{where}.share", self.share, "use a number in (0, 1]")
        parse_limits(self.scores, f"{where}.scores")
        for field_name in ("skip", "annotate"):
            unknown = sorted(set(getattr(self, field_name)) - set(STAGES))
            require(not unknown, f"{where}.{field_name}", unknown, f"use some of {', '.join(STAGES)}")
        require(self.max_epochs >= 1, f"{where}.max_epochs", self.max_epochs, "use 1 or more")
        require(
            self.max_bytes is None or self.max_bytes > 0,
            f"{where}.max_bytes",
            self.max_bytes,
            "use a positive number of bytes",
        )

    @property
    def score_columns(self) -> tuple[str, ...]:
        """Columns that `scores` names, each once."""
        return tuple(dict.fromkeys(parse_limit(score, "scores").name for score in self.scores))
