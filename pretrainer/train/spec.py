"""What a rank is told and what a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrainer.config import Config
from pretrainer.schema import SlotOrder


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a rank needs to know; sent once, picklable."""

    config: Config
    vocab_size: int
    order: SlotOrder
    data_uri: str
    run_uri: str
    fingerprint: str
    held_out_bytes: dict[str, int]
    sample_prompt: tuple[int, ...]
    recorder: Any  # actor handle of recorder.Recorder


@dataclass
class TrainState:
    """What a checkpoint holds beside weights and optimizer; everything else is a function of the step."""

    step: int = 0
    tokens: int = 0
    order_digest: str = ""
    fingerprint: str = ""
