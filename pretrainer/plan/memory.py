"""How a run is laid over GPUs, and the bytes that each of them needs (pretrainer/model/memory_plan.py)."""

from __future__ import annotations

from dataclasses import dataclass

from pretrainer.config import ModelConfig
from pretrainer.model.activations import Checkpointing, Pass
from pretrainer.model.memory_plan import MemoryPlan, StepSetup, sharded_plan


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """GPUs, how they share the model, and the slots of a step."""

    gpus: int
    seq_len: int
    slot_sequences: int
    slot_blocks: int
    """Of a step."""
    micro_sequences: int
    """Rows of a forward pass."""
    tensor_parallel: int = 1
    shard_gpus: int | None = None
    """GPUs that share one copy of the parameters; all by default."""
    checkpointing: Checkpointing = "none"

    @property
    def streams(self) -> int:
        """GPUs, or groups of them, that train on rows of their own."""
        return self.gpus // self.tensor_parallel

    @property
    def batch_tokens(self) -> int:
        return self.slot_blocks * self.slot_sequences * self.seq_len

    @property
    def blocks_each(self) -> int:
        """Slot blocks of a stream in a step."""
        return -(-self.slot_blocks // self.streams)

    @property
    def passes(self) -> int:
        """Forward passes of a GPU in a step."""
        return self.slot_sequences // self.micro_sequences * self.blocks_each


def memory_of(model: ModelConfig, vocab_size: int, run: Arrangement) -> MemoryPlan:
    """Of AdamW with bfloat16 products under FSDP2, for a resolved model."""
    forward = Pass(
        rows=run.micro_sequences,
        seq_len=run.seq_len,
        documents=model.document_mask,
        checkpointing=run.checkpointing,
        tensor_parallel=run.tensor_parallel,
    )
    shards = (run.shard_gpus or run.gpus) // run.tensor_parallel
    setup = StepSetup(run=forward, micro_batches=run.passes, shards=shards, alone=run.gpus == 1)
    return sharded_plan(model, vocab_size, setup)
