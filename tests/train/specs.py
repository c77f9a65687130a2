"""A worker's spec with two sources in shares 3 : 1, and the stream that it must get, written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pretrainer.config import Config, DataConfig, SourceConfig, TrainConfig
from pretrainer.data.curriculum import Curriculum, Segment, SegmentOrder
from pretrainer.data.mixture import Mixture
from pretrainer.schema import BOS, FIRST_TEXT_ID, Batch
from pretrainer.train.spec import WorkerSpec

SEQ_LEN, SEQUENCES, BLOCKS_PER_STEP = 8, 2, 6
# Steps of 6 blocks begin inside mixing cycles of 4.
ORDER, PATTERN = SegmentOrder(Mixture((3, 1)), 0, (0, 0)), (0, 1, 0, 0)
CURRICULUM = Curriculum((Segment(0, 0, 0, 9, SEQ_LEN, SEQUENCES, (0.75, 0.25), ORDER),), BLOCKS_PER_STEP)


def worker_spec(run: Path | None = None, blocks_per_step: int = BLOCKS_PER_STEP, recorder: Any = None) -> WorkerSpec:
    sources = tuple(SourceConfig(name=name, uris=("/nowhere",)) for name in ("code", "web"))
    config = Config(
        data=DataConfig(sources=sources, seq_len=SEQ_LEN, slot_sequences=SEQUENCES, mix_cycle=4),
        train=TrainConfig(steps=9, global_batch_tokens=blocks_per_step * SEQUENCES * SEQ_LEN),
    )
    return WorkerSpec(config, 0, 9, 96, ORDER, "data", str(run), "fingerprint", {}, SEQ_LEN, (BOS,), recorder)


def block(number: int) -> Batch:
    """Global slot block `number` of the stream; its tokens tell it from every other."""
    cycles, at = divmod(number, len(PATTERN))
    source = PATTERN[at]
    nth = cycles * PATTERN.count(source) + PATTERN[:at].count(source)
    tokens = np.full((SEQUENCES, SEQ_LEN + 1), FIRST_TEXT_ID + number, np.uint32)
    starts = np.arange(SEQUENCES, dtype=np.int32) * (SEQ_LEN + 1)
    return Batch(source, nth, 0, tokens, starts, np.full(SEQUENCES, SEQ_LEN + 1, np.int32))
