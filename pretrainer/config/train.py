"""Length, batch, optimizer, workers, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pretrainer.errors import require

DEFAULT_WARMUP_STEPS = 100
MOST_BFLOAT16_DECAY = 0.98


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
    objective: Literal["clm", "mlm"] = "clm"
    """clm predicts the next token; mlm predicts masked ones (BERT) and needs model.causal=false."""
    mlm_mask_rate: float = 0.15
    """objective=mlm: share of the tokens that are predicted; 80 % of them are masked, 10 % random, 10 % left."""
    mlm_whole_word: bool = False
    """objective=mlm: all tokens of a word are chosen together."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """The schedule ends at this share of the peak."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; 100 if neither this nor train.warmup_ratio is given."""
    warmup_ratio: float | None = None
    """Linear warm-up as a share of all steps, rounded up; give this or train.warmup_steps."""
    schedule: str = "cosine"
    """A name in pretrainer/train/optim/schedule.py: SCHEDULES, or a function of your own as package.module:function."""
    schedule_cycles: int = 1
    """schedule=cosine_restarts: how many cosines the run has."""
    schedule_power: float = 1.0
    """schedule=polynomial: the exponent."""
    optimizer: str = "adamw"
    """A name in pretrainer/train/optim/optimizer.py: OPTIMIZERS; muon is Muon for matrices, AdamW for the rest."""
    optimizer_state: Literal["float32", "bfloat16"] = "float32"
    """Type of the optimizer's moments; bfloat16 halves their memory, and the arithmetic stays float32."""
    muon_momentum: float = 0.95
    """Muon: share of the momentum that a step keeps."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""
    beta1: float = 0.9
    """AdamW: decay of the first moment."""
    beta2: float = 0.95
    """AdamW: decay of the second moment."""
    eps: float = 1e-8
    """AdamW: epsilon."""
    loss_chunk_tokens: int | None = None
    """Tokens whose logits exist at a time in the loss; by default as many as take 256 MiB in float32."""
    z_loss: float = 0.0
    """Factor of the squared log of the softmax's sum, added to what is minimised; PaLM has 1e-4."""
    clip_norm: float = 1.0
    """The gradient is scaled down to this global norm."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type of matrix products; auto is bfloat16 on GPUs that have it and float32 elsewhere; float16, with loss
    scaling, is for GPUs without bfloat16."""
    float8: bool = False
    """The linear layers inside the blocks multiply in float8, on GPUs of compute capability 8.9 or more; the rest has
    the precision above."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto is cuda when the cluster has GPUs."""
    resize_stable_s: float = 60.0
    """An elastic run grows when more workers have been possible for this long; more after one that did not last."""
    shard_workers: int | None = None
    """Workers that share one copy of the parameters (FSDP); fewer than all make copies of that group (HSDP)."""
    tensor_parallel: int = 1
    """Workers that split each matrix of a block; keep them inside a node."""
    context_parallel: int = 1
    """Workers that split each sequence (ring attention), for texts too long for one GPU."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What a block keeps for the backward pass: all, all but cheap results, or its input alone."""
    compile: bool = False
    """torch.compile of each block: minutes at the first start, cached after it, then faster steps."""
    cpu_offload: bool = False
    """Parameters, gradients and moments stay in CPU memory, and the optimizer runs there: slow, but it fits."""
    cpus_per_worker: float = 0.5
    """CPUs that one trainer asks Ray for; on CPU keep them low enough that data has at least one whole CPU."""
    gpus_per_worker: float = 1.0
    """GPUs that one trainer asks Ray for; a part of one lets several runs of a single worker, trials say, share it."""
    threads_per_worker: int | None = None
    """Torch threads per trainer on CPU; by default its share of the CPUs Ray counts on the node, one in exact mode."""
    exact: bool = False
    """Proof mode, slower: the weights are bit-identical at every number of workers and after any failures."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints."""
    async_checkpoints: bool = True
    """Training goes on while a periodic checkpoint is written from a copy in host memory; false waits, with no copy."""
    keep_checkpoints: int = 3
    """How many recent checkpoints stay in storage."""
    milestone_every_steps: int | None = None
    """Checkpoints of these steps are also copied to milestones/ in the run folder, and stay; none by default."""
    keep_best: bool = False
    """The best checkpoint, by evaluation.best_by, is also copied to best/ in the run folder."""
    export: Literal["newest", "best"] = "newest"
    """The checkpoint that is exported at the end."""
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
        require(1 <= lo <= hi, "train.num_workers", self.num_workers, "use N >= 1 or [min, max] with 1 <= min <= max")
        require(
            (self.steps is None) != (self.tokens is None),
            "train.steps / train.tokens",
            (self.steps, self.tokens),
            "give exactly one of them",
        )
        require(self.steps is None or self.steps >= 1, "train.steps", self.steps, "use 1 or more")
        require(self.tokens is None or self.tokens >= 1, "train.tokens", self.tokens, "use 1 or more")
        rate = self.mlm_mask_rate
        require(0 < rate <= 1, "train.mlm_mask_rate", rate, "use a number above 0, to 1")
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "use a positive number")
        require(0 <= self.min_lr_ratio <= 1, "train.min_lr_ratio", self.min_lr_ratio, "use a number from 0 to 1")
        self._check_schedule()
        self._check_optimizer()
        self._check_precision()
        self._check_parallel()
        chunk = self.loss_chunk_tokens
        require(chunk is None or chunk >= 1, "train.loss_chunk_tokens", chunk, "use 1 or more")
        require(self.z_loss >= 0, "train.z_loss", self.z_loss, "use 0 or more")
        require(self.clip_norm > 0, "train.clip_norm", self.clip_norm, "use a positive number")
        require(self.resize_stable_s >= 0, "train.resize_stable_s", self.resize_stable_s, "use 0 or more seconds")
        require(self.max_failures >= 0, "train.max_failures", self.max_failures, "use 0 or more")
        require(
            self.stall_timeout_s == 0 or self.stall_timeout_s >= 1,
            "train.stall_timeout_s",
            self.stall_timeout_s,
            "use 1 or more seconds, longer than a validation and a checkpoint take, or 0 for no watchdog",
        )
        require(self.cpus_per_worker > 0, "train.cpus_per_worker", self.cpus_per_worker, "use a positive number")
        require(
            self.gpus_per_worker == 1 or (0 < self.gpus_per_worker < 1 and self.worker_range == (1, 1)),
            "train.gpus_per_worker",
            self.gpus_per_worker,
            "use 1, or with train.num_workers=1 a number from 0 to 1: NCCL takes no two workers of a run on one GPU",
        )
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        require(
            self.milestone_every_steps is None
            or (self.milestone_every_steps > 0 and self.milestone_every_steps % self.checkpoint_every_steps == 0),
            "train.milestone_every_steps",
            self.milestone_every_steps,
            f"must be a multiple of train.checkpoint_every_steps={self.checkpoint_every_steps}",
        )
        require(
            not self.keep_best or self.checkpoint_every_steps % self.validate_every_steps == 0,
            "train.keep_best",
            self.keep_best,
            f"needs a validation at every checkpoint: train.validate_every_steps={self.validate_every_steps} must "
            f"divide train.checkpoint_every_steps={self.checkpoint_every_steps}",
        )
        require(
            self.export == "newest" or self.keep_best, "train.export", self.export, "needs train.keep_best=true"
        )
        for name in (
            "checkpoint_every_steps",
            "keep_checkpoints",
            "validate_every_steps",
            "sample_every_steps",
            "log_every_steps",
        ):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "use 1 or more")

    def _check_schedule(self) -> None:
        steps, ratio = self.warmup_steps, self.warmup_ratio
        both = "train.warmup_steps / train.warmup_ratio"
        require(steps is None or ratio is None, both, (steps, ratio), "give one of them, or neither")
        require(steps is None or steps >= 0, "train.warmup_steps", steps, "use 0 or more")
        require(ratio is None or 0 <= ratio <= 1, "train.warmup_ratio", ratio, "use a number from 0 to 1")
        require(self.schedule_cycles >= 1, "train.schedule_cycles", self.schedule_cycles, "use 1 or more")
        require(self.schedule_power > 0, "train.schedule_power", self.schedule_power, "use a positive number")

    def _check_optimizer(self) -> None:
        for name in ("beta1", "beta2", "muon_momentum"):
            require(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "use a number in [0, 1)")
        require(
            self.optimizer_state == "float32" or max(self.beta1, self.beta2, self.muon_momentum) <= MOST_BFLOAT16_DECAY,
            "train.optimizer_state",
            self.optimizer_state,
            f"with beta1, beta2 or muon_momentum above {MOST_BFLOAT16_DECAY} a moment moves by less than its 8 bits "
            "can hold: use float32, or smaller ones",
        )

    def _check_precision(self) -> None:
        require(
            not (self.exact and self.precision == "float16"),
            "train.precision",
            self.precision,
            "exact mode has no loss scaling: use bfloat16 or float32, or set train.exact=false",
        )
        require(
            not (self.float8 and self.exact),
            "train.float8",
            self.float8,
            "exact mode multiplies in bfloat16 or float32: set one of the two to false",
        )
        require(
            not self.float8 or self.precision in ("auto", "bfloat16"),
            "train.float8",
            self.float8,
            f"what is not float8 is bfloat16: set train.precision to auto or bfloat16, it is {self.precision}",
        )

    def _check_parallel(self) -> None:
        for name in ("tensor_parallel", "context_parallel"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "use 1 or more")
        shared, together = self.shard_workers, self.tensor_parallel * self.context_parallel
        require(
            shared is None or (shared >= 1 and shared % together == 0),
            "train.shard_workers",
            shared,
            f"must be a multiple of train.tensor_parallel x train.context_parallel = {together}",
        )
        for count in set(self.worker_range):
            require(
                count % self.worker_multiple == 0,
                "train.num_workers",
                self.num_workers,
                f"must be a multiple of {self.worker_multiple}, the workers of a whole group (train.shard_workers, or "
                "train.tensor_parallel x train.context_parallel)",
            )
        alone = (self.shard_workers, self.tensor_parallel, self.context_parallel, self.compile, self.cpu_offload)
        require(
            not self.exact or alone == (None, 1, 1, False, False),
            "train.exact",
            self.exact,
            "has the whole model on every worker: leave train.shard_workers, tensor_parallel, context_parallel, "
            "compile and cpu_offload at their defaults",
        )

    @property
    def workers_per_stream(self) -> int:
        """Workers that train on the same rows, each on its part of the matrices or of the sequence."""
        return self.tensor_parallel * self.context_parallel

    @property
    def worker_multiple(self) -> int:
        """The number of workers is always a multiple of this."""
        return self.shard_workers or self.workers_per_stream

    def warmup(self, total_steps: int) -> int:
        """Steps of linear warm-up in a run of so many steps."""
        if self.warmup_ratio is not None:
            return math.ceil(self.warmup_ratio * total_steps - 1e-9)  # 0.07 x 100 is 7, whatever floats say
        return DEFAULT_WARMUP_STEPS if self.warmup_steps is None else self.warmup_steps

    @property
    def worker_range(self) -> tuple[int, int]:
        """(min, max) number of workers; equal when the run is not elastic."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers
