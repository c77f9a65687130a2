"""How a run is laid over GPUs, and about how many bytes each of them needs.

An estimate of large terms, made before there is a config: on the safe side of what fits, not a promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pretrainer.config import ModelConfig
from pretrainer.model.flops import optimizer_state_bytes
from pretrainer.model.presets import block_parameters, parameter_count

GIB = 2**30
USABLE = 0.9
"""Of a GPU's memory; the rest is the driver's, NCCL's, and what the allocator cannot use."""
LOSS_BYTES = 256 * 2**20
"""Logits that exist at a time, by the default of train.loss_chunk_tokens."""

Checkpointing = Literal["none", "selective", "full"]


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
    def passes(self) -> int:
        """Forward passes of a GPU in a step."""
        return self.slot_sequences // self.micro_sequences * -(-self.slot_blocks // self.streams)


class Memory(NamedTuple):
    """Bytes of one GPU by what they hold."""

    state: float  # shards of float32 parameters, gradients and moments
    gradients: float  # whole ones: summed over forward passes, or on their way into shards
    gathered: float  # bfloat16 parameters of the root and of the two blocks at work, and the buffers they arrive in
    activations: float
    loss: float

    @property
    def total(self) -> float:
        return sum(self)


def memory_of(model: ModelConfig, vocab_size: int, run: Arrangement) -> Memory:
    """Of AdamW in float32 under FSDP2, for a resolved model."""
    parallel = run.tensor_parallel
    parameters, block = parameter_count(model, vocab_size) / parallel, block_parameters(model) / parallel
    root = parameters - model.layers * block
    shards = (run.shard_gpus or run.gpus) // parallel
    state = (8 * parameters + optimizer_state_bytes(model, vocab_size) / parallel) / shards
    gradients = 4 * parameters if run.passes > 1 else 8 * max(block, root)
    tokens = run.micro_sequences * run.seq_len
    activations = 2 * tokens * _kept(model, parallel, run.checkpointing)
    return Memory(state, gradients, 2 * (root + 4 * block), activations, _loss(model, vocab_size, tokens, parallel))


def _kept(model: ModelConfig, parallel: int, checkpointing: Checkpointing) -> float:
    """Elements that the forward pass keeps of a token: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.

    Departures: attention keeps no scores (FlashAttention), and a gated feed-forward layer keeps four of its width.
    """
    heads = 2 * (model.heads + model.num_kv_heads) * model.width_per_head
    inner = (4 if model.gated else 2) * model.ffn_width
    block = 4 * model.hidden + (heads + inner) / parallel
    share = {"none": block, "selective": model.hidden + block / 2, "full": model.hidden}[checkpointing]
    return model.layers * share + (0 if checkpointing == "none" else block)


def _loss(model: ModelConfig, vocab_size: int, tokens: int, parallel: int) -> float:
    """Logits with their gradients: all of them, or of a chunk beside the gradient of the output layer."""
    if 4 * tokens * vocab_size <= LOSS_BYTES:
        return 12 * tokens * vocab_size
    return 3 * LOSS_BYTES + 4 * vocab_size * model.hidden / parallel + 2 * tokens * model.hidden
