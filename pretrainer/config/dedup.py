"""Duplicates: documents, lines and spans that are left out because they stood in an earlier document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pretrainer.errors import require


@dataclass(frozen=True, kw_only=True)
class LineDedupConfig:
    max_documents: int = 0
    """A line that so many earlier kept documents hold is removed from later ones; 2 or more, 0 leaves lines alone."""
    unit: Literal["line", "paragraph"] = "line"
    """What is compared: lines, or paragraphs (text between empty lines)."""
    min_chars: int = 30
    """Shorter lines stay; blanks at the ends do not count."""
    min_share_left: float = 0.5
    """A document of which less than this share is left is dropped (duplicate_lines)."""

    def __post_init__(self) -> None:
        where = "data.dedup.lines"
        require(
            self.max_documents == 0 or 2 <= self.max_documents < 2**31,
            f"{where}.max_documents",
            self.max_documents,
            "use 2 or more, or 0 to leave lines alone",
        )
        require(self.min_chars >= 1, f"{where}.min_chars", self.min_chars, "use 1 or more")
        require(
            0 <= self.min_share_left <= 1, f"{where}.min_share_left", self.min_share_left, "use a number from 0 to 1"
        )


class DedupPreset(NamedTuple):
    """Near-dup with published shingles and bands; candidates are verified under every preset, as published or not."""

    threshold: float
    shingle_size: int
    bands: int
    rows_per_band: int
    shingle_unit: Literal["words", "characters"] = "words"


DEDUP_PRESETS: dict[str, DedupPreset] = {
    # Bands for recall, since verification removes what they find too much.
    "default": DedupPreset(threshold=0.8, shingle_size=5, bands=18, rows_per_band=6),
    # Penedo et al. 2024, arXiv:2406.17557, section 3.4 and appendix E.1, and datatrove's MinhashConfig: 112 values in
    # 14 buckets of 8 over 5-grams, for documents "at least 75 % similar", of which 77 % are found (56 % at 0.7, 92 % at
    # 0.8). They verify nothing and drop all but one of a connected component. datatrove's words are those of a
    # tokenizer of the language, and it writes all numbers as 0; here words and numbers stand as they are.
    "fineweb": DedupPreset(threshold=0.75, shingle_size=5, bands=14, rows_per_band=8),
    # Defaults of FuzzyDeduplicationWorkflow (nemo_curator/stages/deduplication/fuzzy/workflow.py, 2025):
    # char_ngrams=24, num_bands=20, minhashes_per_band=13, no verification. FuzzyDuplicatesConfig of 2024 had the same
    # bands, char_ngrams=5 (now a warning below 20, for about 5 % false positives), and false_positive_check with
    # jaccard_threshold=0.8, which is the threshold here. The bands find 68 % of the pairs at that similarity.
    "nemo_curator": DedupPreset(
        threshold=0.8, shingle_size=24, bands=20, rows_per_band=13, shingle_unit="characters"
    ),
    # Penedo et al. 2023, arXiv:2306.01116, appendix G.3.1, after Lee et al. 2022 (arXiv:2107.06499, section 4.2): 9,000
    # values in 450 buckets of 20 over 5-grams. Section 3.3 says 20 buckets of 450, which would find nothing below 0.99;
    # only 450 of 20 give the 76 % at 0.75 and 99.4 % at 0.8 that the appendix states, and FineWeb reads it so too. The
    # paper verifies nothing and names no threshold: 0.75 is the lower of those two, Lee et al. verify Jaccard and edit
    # similarity at 0.8. Its 5-grams are of tokens of normalised text, here of words. DCLM (arXiv:2406.11794, appendix
    # L) imitates the curve with 93 bands of 15. 80 times FineWeb's work, and 450 keys to hold for each document.
    "refinedweb": DedupPreset(threshold=0.75, shingle_size=5, bands=450, rows_per_band=20),
}


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    exact: bool = True
    """Drop documents whose normalised text was seen before."""
    near: bool = True
    """Drop documents that are verified near-duplicates of a document kept earlier."""
    url: bool = False
    """Drop documents whose canonical address was seen before."""
    preset: Literal["default", "fineweb", "nemo_curator", "refinedweb"] = "default"
    """Where threshold, shingles and bands come from that are not given."""
    threshold: float = 0
    """Jaccard similarity of shingles from which two documents count as near-duplicates; 0: the preset's (0.8)."""
    shingle_size: int = 0
    """Words (or characters) per shingle; 0: the preset's (5)."""
    shingle_unit: Literal["", "words", "characters"] = ""
    """What a shingle is made of; empty: the preset's (words)."""
    bands: int = 0
    """LSH bands; more bands find more candidates (18 x 6 finds 99.6 % of pairs at similarity 0.8). 0: the preset's."""
    rows_per_band: int = 0
    """MinHash values per band; 0: the preset's (6)."""
    permutations: int = 0
    """MinHash values that are drawn, of which the first bands x rows_per_band are computed; 0: just these."""
    lines: LineDedupConfig = field(default_factory=LineDedupConfig)
    """Lines that many documents share."""
    substring_tokens: int = 0
    """Spans of at least so many words that stood in an earlier document are removed, for example 50; 0: none are."""
    substring_mode: Literal["remove", "drop"] = "remove"
    """remove takes repeated spans out; drop only drops documents past substring_max_share and edits none."""
    substring_max_share: float = 0.8
    """A document is dropped (duplicate_substring) when more than this share of it is repeated spans."""
    sealed: tuple[str, ...] = ()
    """Data folders or ledgers of prepared runs (paths or URIs): what they kept counts as seen before, in this order."""
    max_memory_bytes: int = 0
    """The run stops when the index of one source outgrows this; 0: no limit."""

    def __post_init__(self) -> None:
        preset = DEDUP_PRESETS[self.preset]
        for name in ("threshold", "shingle_size", "shingle_unit", "bands", "rows_per_band"):
            object.__setattr__(self, name, getattr(self, name) or getattr(preset, name))
        object.__setattr__(self, "permutations", self.permutations or self.bands * self.rows_per_band)
        require(0 < self.threshold <= 1, "data.dedup.threshold", self.threshold, "use a number in (0, 1]")
        require(self.shingle_size >= 1, "data.dedup.shingle_size", self.shingle_size, "use 1 or more")
        require(
            self.bands >= 1 and self.rows_per_band >= 1, "data.dedup.bands", self.bands, "use 1 or more bands and rows"
        )
        require(
            self.permutations >= self.bands * self.rows_per_band,
            "data.dedup.permutations",
            self.permutations,
            f"use at least bands x rows_per_band = {self.bands * self.rows_per_band}",
        )
        require(
            self.substring_tokens == 0 or self.substring_tokens >= 8,
            "data.dedup.substring_tokens",
            self.substring_tokens,
            "use 8 or more (50 is usual), or 0 to leave repeated spans alone",
        )
        require(
            0 <= self.substring_max_share <= 1,
            "data.dedup.substring_max_share",
            self.substring_max_share,
            "use a number from 0 to 1",
        )
        require(len(set(self.sealed)) == len(self.sealed), "data.dedup.sealed", self.sealed, "name each index once")
        require(self.max_memory_bytes >= 0, "data.dedup.max_memory_bytes", self.max_memory_bytes, "use 0 or more bytes")

    @property
    def edits_text(self) -> bool:
        """Whether lines or spans are looked at, so that dedup may change what it keeps."""
        return self.lines.max_documents > 0 or self.substring_tokens > 0
