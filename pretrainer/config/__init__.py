"""Everything that a run can be told, as frozen dataclasses: a default on the field, a sentence under it.

This package needs the standard library alone, so that `pretrainer.model` runs on a bare GPU machine.
Reading YAML and command-line overrides is the work of `pretrainer.config_load`.

What the run *is* (`data`, `tokenizer`, `model`, `init`, `train`) decides the tokens and the weights; where it runs
(`run.storage`, `tracking`, `cluster`) never does. `train.num_workers` belongs to the second kind although
people look for it under `train`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
from pretrainer.config.data import DataConfig, SegmentConfig, TokenizerConfig
from pretrainer.config.dedup import DedupConfig, LineDedupConfig
from pretrainer.config.evaluation import EvaluationConfig, TaskConfig
from pretrainer.config.init import InitConfig
from pretrainer.config.model import ModelConfig, MoeConfig, RopeScalingConfig
from pretrainer.config.monitor import MonitorConfig
from pretrainer.config.sources import SourceConfig
from pretrainer.config.stability import StabilityConfig
from pretrainer.config.sweep import DimensionConfig, SweepConfig, TargetConfig
from pretrainer.config.train import TrainConfig
from pretrainer.errors import require

__all__ = [
    "ClusterConfig", "Config", "DataConfig", "DecontaminationConfig", "DedupConfig", "DimensionConfig",
    "EvaluationConfig", "ExtractConfig", "InitConfig", "LanguageConfig", "LineDedupConfig", "ModelConfig",
    "MoeConfig", "MonitorConfig", "PerplexityConfig", "PiiConfig", "QualityConfig", "RopeScalingConfig",
    "RunConfig", "SegmentConfig", "SourceConfig", "StabilityConfig", "SweepConfig", "TargetConfig", "TaskConfig",
    "TokenizerConfig", "ToxicityConfig", "TrackingConfig", "TrainConfig", "UrlConfig",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = "quickstart"
    """Name of the run; its folder is <storage>/<name>, and the same name continues the run."""
    storage: str = "~/pretrainer-runs"
    """Folder or URI (s3://, gs://, local path) under which run folders are made."""
    copy_to: str | None = None
    """A second folder or URI that gets a copy of every checkpoint, under the run's name; none by default."""
    data_from: str | None = None
    """A run (folder, URI or name) whose prepared tokens this one trains on, as the trials of a sweep do; its own by
    default."""
    seed: int = 0
    """Seed of initialisation and dropout; it does not change the order of the data."""

    def __post_init__(self) -> None:
        require(
            bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name) and self.name[0].isalnum(),
            "run.name",
            self.name,
            "use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )


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
    data_subcluster: str | None = None
    """Data stages run on nodes labelled ray-subcluster=<this> alone, trainers on nodes without that label; if none,
    both run wherever there is room."""
    shared_storage: bool = False
    """All nodes mount the local folder run.storage; without this a local folder is refused on more than one node."""
    heartbeat_s: float = 10.0
    """Seconds between two signs of life that the driver leaves in the run folder."""
    takeover_s: float = 60.0
    """A driver whose sign of life has not changed for so many seconds has lost the run to the next one."""

    def __post_init__(self) -> None:
        require(self.heartbeat_s > 0, "cluster.heartbeat_s", self.heartbeat_s, "use a positive number")
        require(
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
    init: InitConfig = field(default_factory=InitConfig)
    """Continued pre-training: the model that the run begins with."""
    train: TrainConfig
    """Length, batch, optimizer, checkpoints."""
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    """Loss spikes, and what is done about them."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Norms, activations and the gradient noise scale."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Task files that a trained model is scored on."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """What `pipelines.tune` searches; training alone does not read it."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Ray cluster."""

    def __post_init__(self) -> None:
        slot = self.data.seq_len * self.data.slot_sequences
        batch = self.train.global_batch_tokens
        require(
            batch > 0 and batch % slot == 0,
            "train.global_batch_tokens",
            batch,
            f"must be a multiple of data.seq_len x data.slot_sequences = {slot}: the nearest are "
            f"{max(1, batch // slot) * slot} and {(batch // slot + 1) * slot}",
        )
        longest = max(self.data.seq_len, *(segment.seq_len or 0 for segment in self.data.curriculum), 0)
        require(
            self.model.positions != "learned" or self.model.context is None or longest <= self.model.context,
            "model.context",
            self.model.context,
            f"model.positions=learned has no row for position {longest - 1} of the data's {longest} tokens: use "
            f"{longest} or more",
        )
        micro = self.train.micro_batch_sequences
        require(
            micro is None or (micro >= 1 and self.data.slot_sequences % micro == 0),
            "train.micro_batch_sequences",
            micro,
            f"must divide data.slot_sequences={self.data.slot_sequences}",
        )
        require(
            self.train.worker_range[1] <= self.slot_blocks_per_step * self.train.workers_per_stream,
            "train.num_workers",
            self.train.num_workers,
            f"a step has {self.slot_blocks_per_step} slot blocks and cannot feed more workers than that"
            f"{f' x {self.train.workers_per_stream}' if self.train.workers_per_stream > 1 else ''}: "
            "use fewer workers, a larger train.global_batch_tokens or a smaller data.slot_sequences",
        )
        self._check_parallel()
        self._check_evaluation()
        require(
            self.model.causal == (self.train.objective == "clm"),
            "model.causal",
            self.model.causal,
            "train.objective=mlm reads in both directions: set model.causal=false"
            if self.model.causal
            else "train.objective=clm would see its own targets: set train.objective=mlm, or model.causal=true",
        )

    def check_widths(self) -> None:
        """Raise ConfigError for widths that train.tensor_parallel does not divide; a preset's are there when it is
        filled in (model/presets.py), those of a loaded model when it is known."""
        parts, model = self.train.tensor_parallel, self.model
        widths = {"heads": model.heads, "kv_heads": model.num_kv_heads, "ffn_hidden": model.ffn_width}
        for name, width in widths.items():
            require(width % parts == 0, "train.tensor_parallel", parts, f"must divide model.{name}={width}")

    def _check_parallel(self) -> None:
        if self.model.preset is None and self.init.uri is None:
            self.check_widths()
        pieces = 2 * self.train.context_parallel
        lengths = {self.data.seq_len, *(segment.seq_len or self.data.seq_len for segment in self.data.curriculum)}
        for length in lengths if pieces > 2 else ():
            require(
                length % pieces == 0,
                "train.context_parallel",
                self.train.context_parallel,
                f"must divide half of every data.seq_len, and {length} is no multiple of {pieces}",
            )

    def _check_evaluation(self) -> None:
        """What is evaluated is a checkpoint; a model that fills masks gives no text a likelihood."""
        every, evaluation = self.train.checkpoint_every_steps, self.evaluation
        for name in ("medium_every_steps", "full_every_steps"):
            value = getattr(evaluation, name)
            multiple = f"must be a multiple of train.checkpoint_every_steps={every}"
            require(value is None or value % every == 0, f"evaluation.{name}", value, multiple)
            needs = "needs model.causal=true: a model that fills masks gives no text a likelihood"
            require(value is None or self.model.causal, f"evaluation.{name}", value, needs)
        require(
            evaluation.best_by == "val_loss" or evaluation.is_periodic,
            "evaluation.best_by",
            evaluation.best_by,
            "is never measured: set evaluation.medium_every_steps or evaluation.full_every_steps",
        )

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, as far as it is known before the tokenizer is trained or loaded."""
        return self.model.vocab_size or self.tokenizer.vocab_size

    @property
    def slot_blocks_per_step(self) -> int:
        """G: slot blocks in one global batch."""
        return self.train.global_batch_tokens // (self.data.seq_len * self.data.slot_sequences)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; the schedule's horizon."""
        return self.train.steps or -(-(self.train.tokens or 0) // self.train.global_batch_tokens)
