"""Everything that a run can be told, as frozen dataclasses: a default on the field, a sentence under it.

This module needs the standard library alone, so that `pretrainer.model` runs on a bare GPU machine.
Reading YAML and command-line overrides is the work of `pretrainer.config_load`.

What the run *is* (`data`, `tokenizer`, `model`, `train`) decides the tokens and the weights; where it runs
(`run.storage`, `tracking`, `cluster`) never does. `train.num_workers` belongs to the second kind although
people look for it under `train`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pretrainer.errors import ConfigError

MIB = 2**20


def _require(ok: bool, name: str, value: object, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"{name}={value!r} is not possible: {remedy}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = "quickstart"
    """Name of the run; its folder is <storage>/<name>, and the same name continues the run."""
    storage: str = "~/pretrainer-runs"
    """Folder or URI (s3://, gs://, local path) under which run folders are made."""
    seed: int = 0
    """Seed of initialisation and dropout; it does not change the order of the data."""

    def __post_init__(self) -> None:
        _require(
            bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name) and self.name[0].isalnum(),
            "run.name",
            self.name,
            "use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    name: str
    """Short name of the source, unique in the run; it appears in reports and in the audit log."""
    uris: tuple[str, ...] = ()
    """Files, folders or globs: local paths, s3://, gs://, hf://, https://, or python-stdlib:// for the built-in one."""
    format: Literal["auto", "jsonl", "parquet", "text"] = "auto"
    """How shards are read; auto goes by the file name (.jsonl, .json, .parquet, else text; .gz and .zst are opened)."""
    text_column: str = "text"
    """Column or JSON key that holds the text."""
    id_column: str | None = None
    """Column or JSON key that identifies a document; by default its shard and row do."""
    weight: float = 1.0
    """Up-weighting w_i in P(i) = w_i |D_i| / sum_j w_j |D_j|; used when no source gives a share."""
    size: int | None = None
    """Declared |D_i|, tokens or bytes, for every source or for none; by default shard bytes x share kept of a pilot."""
    share: float | None = None
    """Explicit share of the training tokens, 0 to 1; give it to all sources or to none."""
    preset: Literal["web", "prose", "code", "none"] = "prose"
    """Which quality rules apply: prose and web are the Gopher rules, code has its own, none keeps everything."""
    include: tuple[str, ...] = ()
    """Only shards whose path ends in one of these suffixes are read; empty means all."""
    max_epochs: int = 1
    """How often the source may be passed through before the run stops with a clear message."""
    max_bytes: int | None = None
    """Read only the first shards up to this many bytes (sorted by path); none means all."""

    def __post_init__(self) -> None:
        where = f"data.sources[{self.name}]"
        _require(
            bool(self.name) and self.name.replace("-", "_").isidentifier(),
            f"{where}.name",
            self.name,
            "use letters, digits, '-' and '_', beginning with a letter",
        )
        _require(len(self.uris) > 0, f"{where}.uris", list(self.uris), "name at least one file, folder, glob or URI")
        _require(self.weight > 0, f"{where}.weight", self.weight, "use a positive number")
        _require(self.size is None or self.size > 0, f"{where}.size", self.size, "use a positive number")
        _require(self.share is None or 0 < self.share <= 1, f"{where}.share", self.share, "use a number in (0, 1]")
        _require(self.max_epochs >= 1, f"{where}.max_epochs", self.max_epochs, "use 1 or more")
        _require(
            self.max_bytes is None or self.max_bytes > 0,
            f"{where}.max_bytes",
            self.max_bytes,
            "use a positive number of bytes",
        )


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    exact: bool = True
    """Drop documents whose normalised text was seen before."""
    near: bool = True
    """Drop documents that are verified near-duplicates of a document kept earlier."""
    threshold: float = 0.8
    """Jaccard similarity of word shingles from which two documents count as near-duplicates."""
    shingle_words: int = 5
    """Words per shingle."""
    bands: int = 18
    """LSH bands; more bands find more candidates (18 x 6 finds 99.6 % of pairs at similarity 0.8)."""
    rows_per_band: int = 6
    """MinHash values per band."""
    permutations: int = 256
    """MinHash values per document; all of them verify a candidate, the first bands x rows_per_band find it."""

    def __post_init__(self) -> None:
        _require(0 < self.threshold <= 1, "data.dedup.threshold", self.threshold, "use a number in (0, 1]")
        _require(self.shingle_words >= 1, "data.dedup.shingle_words", self.shingle_words, "use 1 or more")
        _require(
            self.bands >= 1 and self.rows_per_band >= 1, "data.dedup.bands", self.bands, "use 1 or more bands and rows"
        )
        _require(
            self.permutations >= max(128, self.bands * self.rows_per_band),
            "data.dedup.permutations",
            self.permutations,
            "use at least 128 and at least bands x rows_per_band, or candidates cannot be verified",
        )


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
        _require(0 < self.until <= 1, f"{where}.until", self.until, "use a number in (0, 1]")
        _require(
            self.shares is None or (min(self.shares, default=-1) >= 0 and abs(sum(self.shares) - 1) < 1e-6),
            f"{where}.shares",
            self.shares,
            "give every source of data.sources a share from 0 to 1; they must add up to 1",
        )
        _require(self.seq_len is None or self.seq_len >= 8, f"{where}.seq_len", self.seq_len, "use at least 8")


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
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Exact and near-duplicate removal."""
    held_out_chunks: int = 4
    """Leading chunks of each source from which held-out documents are chosen by hash."""
    held_out_share: float = 0.02
    """Share of the documents in those chunks that is held out for validation."""
    held_out_max_tokens: int = 65_536
    """At most this many tokens per source are evaluated on."""
    max_dead_letter_share: float = 0.05
    """The run stops when a larger share of a source's documents could not be read."""
    read_cpus: float = 0.25
    """CPUs that one reading or tokenizing task asks Ray for; fractions let data and trainers share few cores."""
    look_ahead_chunks: int = 32
    """At most this many chunks of a source are in flight before the oldest one is packed."""

    def __post_init__(self) -> None:
        _require(len(self.sources) > 0, "data.sources", [], "name at least one source")
        names = [s.name for s in self.sources]
        _require(len(set(names)) == len(names), "data.sources", names, "give every source its own name")
        shares = [s.share for s in self.sources if s.share is not None]
        _require(
            len(shares) in (0, len(self.sources)),
            "data.sources[].share",
            shares,
            "give a share to every source or to none",
        )
        _require(not shares or abs(sum(shares) - 1) < 1e-6, "data.sources[].share", shares, "shares must add up to 1")
        sizes = [s.size for s in self.sources if s.size is not None]
        _require(len(sizes) in (0, len(names)), "data.sources[].size", sizes, "give it to all sources or to none")
        self._check_curriculum()
        _require(self.chunk_bytes >= 1024, "data.chunk_bytes", self.chunk_bytes, "use at least 1024")
        _require(self.seq_len >= 8, "data.seq_len", self.seq_len, "use at least 8")
        _require(self.slot_sequences >= 1, "data.slot_sequences", self.slot_sequences, "use 1 or more")
        _require(
            self.pack_window_tokens >= 64 * (self.seq_len + 1),
            "data.pack_window_tokens",
            self.pack_window_tokens,
            f"a window needs at least 64 rows: use {64 * (self.seq_len + 1)} or more",
        )
        _require(
            self.mix_cycle & (self.mix_cycle - 1) == 0 and self.mix_cycle >= len(self.sources),
            "data.mix_cycle",
            self.mix_cycle,
            "use a power of two that is at least the number of sources",
        )
        _require(
            0 < self.held_out_share < 1, "data.held_out_share", self.held_out_share, "use a number between 0 and 1"
        )
        _require(self.held_out_chunks >= 1, "data.held_out_chunks", self.held_out_chunks, "use 1 or more")
        _require(
            0 <= self.max_dead_letter_share <= 1,
            "data.max_dead_letter_share",
            self.max_dead_letter_share,
            "use a number from 0 to 1",
        )
        _require(0 < self.read_cpus, "data.read_cpus", self.read_cpus, "use a positive number of CPUs")
        _require(self.look_ahead_chunks >= 2, "data.look_ahead_chunks", self.look_ahead_chunks, "use 2 or more")

    def _check_curriculum(self) -> None:
        ends = [segment.until for segment in self.curriculum]
        _require(
            not ends or (ends == sorted(set(ends)) and ends[-1] == 1),
            "data.curriculum[].until",
            ends,
            "segments must ascend and the last one must end at 1",
        )
        for segment in self.curriculum:
            _require(
                segment.shares is None or len(segment.shares) == len(self.sources),
                "data.curriculum[].shares",
                segment.shares,
                f"give one share for each of the {len(self.sources)} sources",
            )
            seq_len, slot_tokens = segment.seq_len or self.seq_len, self.seq_len * self.slot_sequences
            _require(
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
        _require(
            self.vocab_size >= 512,
            "tokenizer.vocab_size",
            self.vocab_size,
            "use at least 512 (69 special and 256 byte pieces come first)",
        )
        _require(self.train_bytes >= 10_000, "tokenizer.train_bytes", self.train_bytes, "use at least 10000")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    preset: str | None = None
    """A row of pretrainer/model/presets.py; fields given here override it."""
    layers: int = 12
    """Transformer blocks."""
    hidden: int = 768
    """Width of the residual stream."""
    heads: int = 12
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads (grouped-query attention); by default as many as query heads."""
    ffn_hidden: int | None = None
    """Width of the SwiGLU layer; by default 8/3 of hidden, rounded up to a multiple of 64."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    norm_eps: float = 1e-5
    """Epsilon of RMSNorm."""
    dropout: float = 0.0
    """Dropout on embeddings and on the output of each sub-layer."""
    tie_embeddings: bool = True
    """Share the input embedding with the output layer."""
    document_mask: bool = True
    """Attention stays inside a document of a packed row; positions restart there."""

    def __post_init__(self) -> None:
        _require(self.layers >= 1, "model.layers", self.layers, "use 1 or more")
        _require(
            self.heads >= 1 and self.hidden % self.heads == 0,
            "model.hidden",
            self.hidden,
            f"must be a multiple of model.heads={self.heads}",
        )
        _require(
            (self.hidden // self.heads) % 2 == 0,
            "model.heads",
            self.heads,
            "the head width hidden/heads must be even for RoPE",
        )
        _require(
            self.kv_heads is None or (self.kv_heads >= 1 and self.heads % self.kv_heads == 0),
            "model.kv_heads",
            self.kv_heads,
            f"must divide model.heads={self.heads}",
        )
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "use a number in [0, 1)")

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_width(self) -> int:
        return self.ffn_hidden or -(-(8 * self.hidden // 3) // 64) * 64


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    num_workers: int | tuple[int, int] = 1
    """Trainer processes (one per GPU): N, or [min, max] for an elastic run."""
    steps: int | None = None
    """Optimizer steps of the run; give this or train.tokens."""
    tokens: int | None = None
    """Training tokens of the run, rounded up to whole steps; give this or train.steps."""
    global_batch_tokens: int = 524_288
    """Tokens per optimizer step; a multiple of data.seq_len x data.slot_sequences, the same at every world size."""
    micro_batch_sequences: int | None = None
    """Sequences per forward pass; by default a whole slot block."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """The schedule ends at this share of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    schedule: str = "cosine"
    """A name in pretrainer/train/schedule.py: SCHEDULES."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""
    beta1: float = 0.9
    """AdamW: decay of the first moment."""
    beta2: float = 0.95
    """AdamW: decay of the second moment."""
    eps: float = 1e-8
    """AdamW: epsilon."""
    clip_norm: float = 1.0
    """The gradient is scaled down to this global norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of matrix products; auto is bfloat16 on GPUs that have it and float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto is cuda when the cluster has GPUs."""
    resize_stable_s: float = 60.0
    """An elastic run grows when more workers have been possible for this long; more after one that did not last."""
    cpus_per_worker: float = 0.5
    """CPUs that one trainer asks Ray for; on CPU keep them low enough that data has at least one whole CPU."""
    threads_per_worker: int | None = None
    """Torch threads per trainer on CPU; by default the node's cores shared by the trainers on it, one in exact mode."""
    exact: bool = False
    """Proof mode, slower: the weights are bit-identical at every number of workers and after any failures."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """How many recent checkpoints stay in storage."""
    validate_every_steps: int = 500
    """Steps between validations on the held-out documents."""
    sample_every_steps: int = 500
    """Steps between samples of generated text."""
    log_every_steps: int = 10
    """Steps between logged metrics."""
    max_failures: int = 5
    """The run gives up after more worker failures than this without a new checkpoint; preemptions do not count."""
    stall_timeout_s: float = 1800.0
    """Seconds in which no rank moves before the workers are restarted from the last checkpoint; 0 never restarts."""

    def __post_init__(self) -> None:
        lo, hi = self.worker_range
        _require(1 <= lo <= hi, "train.num_workers", self.num_workers, "use N >= 1 or [min, max] with 1 <= min <= max")
        _require(
            (self.steps is None) != (self.tokens is None),
            "train.steps / train.tokens",
            (self.steps, self.tokens),
            "give exactly one of them",
        )
        _require(self.steps is None or self.steps >= 1, "train.steps", self.steps, "use 1 or more")
        _require(self.tokens is None or self.tokens >= 1, "train.tokens", self.tokens, "use 1 or more")
        _require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "use a positive number")
        _require(0 <= self.min_lr_ratio <= 1, "train.min_lr_ratio", self.min_lr_ratio, "use a number from 0 to 1")
        _require(self.warmup_steps >= 0, "train.warmup_steps", self.warmup_steps, "use 0 or more")
        _require(self.clip_norm > 0, "train.clip_norm", self.clip_norm, "use a positive number")
        _require(self.resize_stable_s >= 0, "train.resize_stable_s", self.resize_stable_s, "use 0 or more seconds")
        _require(self.max_failures >= 0, "train.max_failures", self.max_failures, "use 0 or more")
        _require(
            self.stall_timeout_s == 0 or self.stall_timeout_s >= 1,
            "train.stall_timeout_s",
            self.stall_timeout_s,
            "use 1 or more seconds, longer than a validation and a checkpoint take, or 0 for no watchdog",
        )
        _require(self.cpus_per_worker > 0, "train.cpus_per_worker", self.cpus_per_worker, "use a positive number")
        for name in (
            "checkpoint_every_steps",
            "keep_checkpoints",
            "validate_every_steps",
            "sample_every_steps",
            "log_every_steps",
        ):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "use 1 or more")

    @property
    def worker_range(self) -> tuple[int, int]:
        """(min, max) number of workers; equal when the run is not elastic."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    uri: str | None = None
    """MLflow tracking URI; by default sqlite and artifacts beside the runs (local storage), or none on a remote one."""
    experiment: str = "pretrainer"
    """MLflow experiment."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    address: str = "auto"
    """auto joins the cluster of this machine or job and starts one if there is none; or host:port."""
    object_store_bytes: int | None = None
    """Object store of a cluster started here; Ray's default if none."""
    autoscaling: bool = False
    """The cluster can grow, so what it has now says nothing about whether the run fits."""
    worker_logs: bool = False
    """Also print what Ray's workers log; they are in the Ray dashboard either way."""
    shared_storage: bool = False
    """All nodes mount the local folder run.storage; without this a local folder is refused on more than one node."""
    heartbeat_s: float = 10.0
    """Seconds between two signs of life that the driver leaves in the run folder."""
    takeover_s: float = 60.0
    """A driver whose sign of life has not changed for so many seconds has lost the run to the next one."""

    def __post_init__(self) -> None:
        _require(self.heartbeat_s > 0, "cluster.heartbeat_s", self.heartbeat_s, "use a positive number")
        _require(
            self.takeover_s >= 3 * self.heartbeat_s,
            "cluster.takeover_s",
            self.takeover_s,
            f"use at least three times cluster.heartbeat_s={self.heartbeat_s:g}",
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    """Name, place and seed."""
    data: DataConfig
    """Sources, curation, packing and mixing."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The tokenizer: trained on the sources or loaded."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The architecture."""
    train: TrainConfig
    """Length, batch, optimizer, checkpoints."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster."""

    def __post_init__(self) -> None:
        slot = self.data.seq_len * self.data.slot_sequences
        batch = self.train.global_batch_tokens
        _require(
            batch > 0 and batch % slot == 0,
            "train.global_batch_tokens",
            batch,
            f"must be a multiple of data.seq_len x data.slot_sequences = {slot}: the nearest are "
            f"{max(1, batch // slot) * slot} and {(batch // slot + 1) * slot}",
        )
        micro = self.train.micro_batch_sequences
        _require(
            micro is None or (micro >= 1 and self.data.slot_sequences % micro == 0),
            "train.micro_batch_sequences",
            micro,
            f"must divide data.slot_sequences={self.data.slot_sequences}",
        )
        _require(
            self.train.worker_range[1] <= self.slot_blocks_per_step,
            "train.num_workers",
            self.train.num_workers,
            f"a step has {self.slot_blocks_per_step} slot blocks and cannot feed more workers than that: "
            "use fewer workers, a larger train.global_batch_tokens or a smaller data.slot_sequences",
        )

    @property
    def slot_blocks_per_step(self) -> int:
        """G: slot blocks in one global batch."""
        return self.train.global_batch_tokens // (self.data.seq_len * self.data.slot_sequences)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; the schedule's horizon."""
        return self.train.steps or -(-(self.train.tokens or 0) // self.train.global_batch_tokens)
