"""What the stream is made of: sources, curation, packing, mixing, the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pretrainer.config import curation
from pretrainer.config.dedup import DedupConfig
from pretrainer.config.sources import SourceConfig
from pretrainer.errors import require

MIB = 2**20


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
    extract: curation.ExtractConfig = field(default_factory=curation.ExtractConfig)
    """HTML to text."""
    url: curation.UrlConfig = field(default_factory=curation.UrlConfig)
    """Addresses that are left out."""
    language: curation.LanguageConfig = field(default_factory=curation.LanguageConfig)
    """Languages that are kept."""
    quality: curation.QualityConfig = field(default_factory=curation.QualityConfig)
    """Quality classifier."""
    perplexity: curation.PerplexityConfig = field(default_factory=curation.PerplexityConfig)
    """Perplexity filter."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Exact and near-duplicate removal."""
    pii: curation.PiiConfig = field(default_factory=curation.PiiConfig)
    """Personal data and secrets."""
    toxicity: curation.ToxicityConfig = field(default_factory=curation.ToxicityConfig)
    """Toxic documents and lines."""
    decontamination: curation.DecontaminationConfig = field(default_factory=curation.DecontaminationConfig)
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
    kind: Literal["bpe", "unigram", "char"] = "bpe"
    """Which sentencepiece model is trained; char has a piece for every character."""
    vocab_size: int = 32_768
    """Pieces of the trained tokenizer, special tokens and byte pieces included; of char the most there may be."""
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
