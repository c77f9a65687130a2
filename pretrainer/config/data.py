"""What the stream is made of: sources, curation, packing, mixing, the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pretrainer.config.curation import (
    DecontaminationConfig,
    ExtractConfig,
    LanguageConfig,
    PerplexityConfig,
    PiiConfig,
    QualityConfig,
    ToxicityConfig,
    UrlConfig,
)
from pretrainer.config.limits import parse_limit, parse_limits
from pretrainer.errors import require

MIB = 2**20
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
    """Near-dup with published parameters; candidates are verified under every preset, as published or not."""

    threshold: float
    shingle_size: int
    bands: int
    rows_per_band: int
    shingle_unit: Literal["words", "characters"] = "words"


DEDUP_PRESETS: dict[str, DedupPreset] = {
    # Bands for recall, since verification removes what they find too much.
    "default": DedupPreset(threshold=0.8, shingle_size=5, bands=18, rows_per_band=6),
    # Penedo et al. 2024: 112 values; they expect 0.75 to be found with 77 %.
    "fineweb": DedupPreset(threshold=0.75, shingle_size=5, bands=14, rows_per_band=8),
    # FuzzyDeduplicationWorkflow: char_ngrams=24, num_bands=20, minhashes_per_band=13; about 0.8.
    "nemo_curator": DedupPreset(
        threshold=0.8, shingle_size=24, bands=20, rows_per_band=13, shingle_unit="characters"
    ),
    # Penedo et al. 2023, appendix G: 9,000 values in 450 bands of 20 (their text says 20 buckets of 450, whose
    # threshold would be 0.993). 80 times the work of the default, and 450 keys to hold for each document.
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


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    until: float = 1.0
    """The segment ends at this share of the run's steps; segments ascend and the last one ends at 1."""
    shares: tuple[float, ...] | None = None
    """Shares of the training tokens in the order of data.sources, 0 leaves one out; the sources' own if none."""
    seq_len: int | None = None
    """Tokens of context in this segment, data.seq_len if none; a slot block keeps its tokens, so it has other rows."""

    def __post_init__(self) -> None:
        where = "data.curriculum[]"
        require(0 < self.until <= 1, f"{where}.until", self.until, "use a number in (0, 1]")
        require(
            self.shares is None or (min(self.shares, default=-1) >= 0 and abs(sum(self.shares) - 1) < 1e-6),
            f"{where}.shares",
            self.shares,
            "give every source of data.sources a share from 0 to 1; they must add up to 1",
        )
        require(self.seq_len is None or self.seq_len >= 8, f"{where}.seq_len", self.seq_len, "use at least 8")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[SourceConfig, ...] = ()
    """The corpora of the run."""
    order_seed: int = 0
    """Seed of the order of chunks and of sequences in a pack window."""
    chunk_bytes: int = 8 * MIB
    """Unit of curation: decompressed bytes of text per chunk."""
    max_document_bytes: int = 32 * MIB
    """A single document longer than this becomes a dead letter."""
    seq_len: int = 1024
    """Tokens of context; a packed row holds seq_len + 1 token ids."""
    slot_sequences: int = 8
    """Sequences per slot block (K), the smallest piece of a global batch; it runs as one micro-batch or several."""
    pack_window_tokens: int = 4 * MIB
    """A pack window closes after this many kept tokens; it is the unit of shuffling and of resume."""
    packing: Literal["concat", "best_fit", "pad"] = "concat"
    """How documents become rows: concat joins and cuts, best_fit cuts only what is too long, pad gives each its own."""
    mix_cycle: int = 64
    """Slot blocks per mixing cycle; a power of two makes the pattern exactly periodic."""
    curriculum: tuple[SegmentConfig, ...] = ()
    """Stretches of the run with a mixture and a sequence length of their own; none: one stretch."""
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    """HTML to text."""
    url: UrlConfig = field(default_factory=UrlConfig)
    """Addresses that are left out."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Languages that are kept."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Quality classifier."""
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)
    """Perplexity filter."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Exact and near-duplicate removal."""
    pii: PiiConfig = field(default_factory=PiiConfig)
    """Personal data and secrets."""
    toxicity: ToxicityConfig = field(default_factory=ToxicityConfig)
    """Toxic documents and lines."""
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """Held-out and benchmark text is kept out of training."""
    decisions: bool = False
    """Write one Parquet row per document read: what became of it, why, and every measure that was taken."""
    held_out_chunks: int = 4
    """Leading chunks of each source from which held-out documents are chosen by hash."""
    held_out_share: float = 0.02
    """Share of the documents in those chunks that is held out for validation."""
    held_out_max_tokens: int = 65_536
    """At most this many tokens per source are evaluated on."""
    max_dead_letter_share: float = 0.05
    """The run stops when a larger share of a source's documents could not be read."""
    max_shard_failures: int = 3
    """Content that took its reader's process with it so often is read apart, and left out if that dies as well."""
    read_cpus: float = 0.25
    """CPUs that one reading or tokenizing task asks Ray for; fractions let data and trainers share few cores."""
    look_ahead_chunks: int = 32
    """At most this many chunks of a source are in flight before the oldest one is packed."""

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "data.sources", [], "name at least one source")
        names = [s.name for s in self.sources]
        require(len(set(names)) == len(names), "data.sources", names, "give every source its own name")
        shares = [s.share for s in self.sources if s.share is not None]
        require(
            len(shares) in (0, len(self.sources)),
            "data.sources[].share",
            shares,
            "give a share to every source or to none",
        )
        require(not shares or abs(sum(shares) - 1) < 1e-6, "data.sources[].share", shares, "shares must add up to 1")
        sizes = [s.size for s in self.sources if s.size is not None]
        require(len(sizes) in (0, len(names)), "data.sources[].size", sizes, "give it to all sources or to none")
        self._check_curriculum()
        require(self.chunk_bytes >= 1024, "data.chunk_bytes", self.chunk_bytes, "use at least 1024")
        require(self.seq_len >= 8, "data.seq_len", self.seq_len, "use at least 8")
        require(self.slot_sequences >= 1, "data.slot_sequences", self.slot_sequences, "use 1 or more")
        require(
            self.pack_window_tokens >= 64 * (self.seq_len + 1),
            "data.pack_window_tokens",
            self.pack_window_tokens,
            f"a window needs at least 64 rows: use {64 * (self.seq_len + 1)} or more",
        )
        require(
            self.mix_cycle & (self.mix_cycle - 1) == 0 and self.mix_cycle >= len(self.sources),
            "data.mix_cycle",
            self.mix_cycle,
            "use a power of two that is at least the number of sources",
        )
        require(
            0 < self.held_out_share < 1, "data.held_out_share", self.held_out_share, "use a number between 0 and 1"
        )
        require(self.held_out_chunks >= 1, "data.held_out_chunks", self.held_out_chunks, "use 1 or more")
        require(
            0 <= self.max_dead_letter_share <= 1,
            "data.max_dead_letter_share",
            self.max_dead_letter_share,
            "use a number from 0 to 1",
        )
        require(self.max_shard_failures >= 1, "data.max_shard_failures", self.max_shard_failures, "use 1 or more")
        require(0 < self.read_cpus, "data.read_cpus", self.read_cpus, "use a positive number of CPUs")
        require(self.look_ahead_chunks >= 2, "data.look_ahead_chunks", self.look_ahead_chunks, "use 2 or more")

    def _check_curriculum(self) -> None:
        ends = [segment.until for segment in self.curriculum]
        require(
            not ends or (ends == sorted(set(ends)) and ends[-1] == 1),
            "data.curriculum[].until",
            ends,
            "segments must ascend and the last one must end at 1",
        )
        for segment in self.curriculum:
            require(
                segment.shares is None or len(segment.shares) == len(self.sources),
                "data.curriculum[].shares",
                segment.shares,
                f"give one share for each of the {len(self.sources)} sources",
            )
            seq_len, slot_tokens = segment.seq_len or self.seq_len, self.seq_len * self.slot_sequences
            require(
                slot_tokens % seq_len == 0 and self.pack_window_tokens >= 64 * (seq_len + 1),
                "data.curriculum[].seq_len",
                seq_len,
                f"must divide data.seq_len x data.slot_sequences = {slot_tokens} and be at most "
                f"{self.pack_window_tokens // 64 - 1} for data.pack_window_tokens={self.pack_window_tokens}",
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    uri: str | None = None
    """Load this sentencepiece .model or Hugging Face tokenizer.json instead of training one."""
    kind: Literal["bpe", "unigram"] = "bpe"
    """Which sentencepiece model is trained."""
    vocab_size: int = 32_768
    """Pieces of the trained tokenizer, special tokens and byte pieces included."""
    train_bytes: int = 64 * MIB
    """Bytes of filtered text, from chunks chosen by hash, that the tokenizer is trained on."""

    def __post_init__(self) -> None:
        require(
            self.vocab_size >= 512,
            "tokenizer.vocab_size",
            self.vocab_size,
            "use at least 512 (69 special and 256 byte pieces come first)",
        )
        require(self.train_bytes >= 10_000, "tokenizer.train_bytes", self.train_bytes, "use at least 10000")
