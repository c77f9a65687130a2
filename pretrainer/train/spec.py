"""What a rank is told and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pretrainer.config import Config
from pretrainer.config.evaluation import Cadence
from pretrainer.lease import Fence
from pretrainer.schema import MaskVocabulary, SlotOrder

if TYPE_CHECKING:  # drivers have a spec before they have torch
    import torch

    from pretrainer.model.transformer import Transformer

Tasks = dict[str, Any]


class Evaluator(Protocol):
    """What checkpoints are scored on while training goes on (pipelines/driver/suite.py has it)."""

    @property
    def beside(self) -> bool:
        """Whether a task of its own does it, from the checkpoint, and the workers never call `score`."""

    def score(self, model: Transformer, device: torch.device, cadence: Cadence, tick: Callable[[], None]) -> Tasks:
        """Task -> what came out, as plain values; all ranks call it alike. tick is called now and then."""


@dataclass(frozen=True)
class Origin:
    """The model whose weights a run begins with, as its workers load it."""

    uri: str  # of the folder: a checkpoint of a run, or a Hugging Face folder
    is_checkpoint: bool
    known: int  # ids of the tokenizer that the model was trained with
    pieces: tuple[tuple[int, ...], ...] = ()  # of each token that was added behind them: what its text was before
    sha256: str | None = None  # of what was loaded, once it was


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a rank needs to know; sent once, picklable."""

    config: Config  # as the segment runs it
    segment: int
    end_step: int  # of the segment
    vocab_size: int
    order: SlotOrder
    data_uri: str
    run_uri: str
    fingerprint: str
    held_out_bytes: dict[str, int]
    held_out_seq_len: int
    sample_prompt: tuple[int, ...]
    recorder: Any  # actor handle of recorder.Recorder
    mask_vocabulary: MaskVocabulary | None = None  # with train.objective=mlm
    fence: Fence | None = None  # of the driver's lease; None where there is no driver
    evaluator: Evaluator | None = None  # None where no checkpoint is evaluated while training
    origin: Origin | None = None  # with init.uri


@dataclass
class TrainState:
    """What a checkpoint holds beside weights and optimizer; everything else is a function of the step."""

    step: int = 0
    tokens: int = 0
    order_digest: str = ""
    fingerprint: str = ""
    weights_sha256: str | None = None  # of these weights, in exact mode
    loss_scale: float | None = None  # with train.precision=float16
    good_steps: int = 0  # applied in a row with this scale
    window: dict[str, Any] | None = None  # of the spike detector
    window_segment: int = 0  # that the window was seen in
    best_loss: float | None = None  # held out, in nats per target
    validations_without: int = 0  # in a row that were no better
    init_sha256: str | None = None  # of the model that the run began with, where init.uri names one
