"""Tiny slot blocks and a tiny training loop for the tests of the trainer."""

import math
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.ring import Ring
from pretrainer.schema import BOS, EOS, FIRST_TEXT_ID, PAD, Batch
from pretrainer.train.batch import max_blocks, micro_batches, owned_blocks, to_tensor, valid_targets
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.readback import StepResult
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spikes import REASONS, Verdict
from pretrainer.train.step import train_step
from tests.model.fill import fill

CPU = torch.device("cpu")
VOCAB, SEQ_LEN, SEQUENCES, BLOCKS_PER_STEP = 96, 12, 2, 8
MODEL = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn_hidden=48, tie_embeddings=False, dropout=0.2)
TRAIN = TrainConfig(steps=4, eps=1e-3)


def slot_block(number: int, sequences: int = SEQUENCES, seq_len: int = SEQ_LEN) -> Batch:
    """Documents of random length, joined and split at the row; the last row of every third block is padding."""
    rng = np.random.default_rng(number)
    width = seq_len + 1
    tokens, starts = [], []
    while len(tokens) < sequences * width:
        starts.append(len(tokens))
        tokens += [BOS, *rng.integers(FIRST_TEXT_ID, VOCAB, rng.integers(2, 2 * width)).tolist(), EOS]
    grid = np.array(tokens[: sequences * width], dtype=np.uint32).reshape(sequences, width)
    begins = {s for s in starts if s < sequences * width} | set(range(0, sequences * width, width))
    lengths = np.full(sequences, width, dtype=np.int32)
    if number % 3 == 0:
        grid[-1], lengths[-1] = PAD, 0
        begins = {s for s in begins if s < (sequences - 1) * width}
    return Batch(0, number, 0, grid, np.array(sorted(begins), dtype=np.int32), lengths)


def pieces(number: int, step: int, micro: int = 1, ring: Ring | None = None) -> list:
    block = slot_block(number)
    return micro_batches(
        to_tensor(block), block, sequences=micro, document_mask=True, run_seed=7, step=step, slot_block=number,
        ring=ring,
    )  # fmt: skip


def build(model_config=MODEL, train=TRAIN, ranks=None):
    """(sharded model, optimizer) of this rank."""
    model = fill(build_model(model_config, VOCAB, train, CPU, ranks))
    return model, build_optimizer(model, train)


def run_steps(model, optimizer, rank, world, first, last, ring=None, micro=1, loss_scale=None):
    """Train steps first..last-1 as the trainer does; returns their results. rank and world are those of the streams."""
    results = []
    for step in range(first, last):
        own = owned_blocks(step, BLOCKS_PER_STEP, rank, world)
        batches = [piece for number in own for piece in pieces(number, step, micro, ring)]
        dummies = max_blocks(step, BLOCKS_PER_STEP, world) * (SEQUENCES // micro) - len(batches)
        everything = range(step * BLOCKS_PER_STEP, (step + 1) * BLOCKS_PER_STEP)
        targets = sum(valid_targets(slot_block(number)) for number in everything)
        results.append(train_step(model, optimizer, batches, dummies, targets, 1e-2, TRAIN.clip_norm, loss_scale))
    return results


def full_weights(model):
    """Name -> whole plain tensor; every rank calls it."""
    return {n: whole(p.detach()).clone().numpy() for n, p in model.named_parameters()}


def whole(tensor):
    """All elements of a tensor that may be sharded; every rank calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def result_of(
    loss: float, norm: float, applied: bool = True, reason: str = "", experts: Any = None, loss_bound: float = math.inf
) -> StepResult:
    """A step's result, written down by hand."""
    verdict = Verdict(torch.tensor(applied), torch.tensor(REASONS.index(reason)), torch.tensor([loss_bound, math.inf]))
    return StepResult(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm), verdict, experts)
