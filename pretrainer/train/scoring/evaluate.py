"""Held-out loss in lockstep on all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pretrainer.model.generate import release_gathered
from pretrainer.train.step import IGNORE, MicroBatch, all_reduce_sum, nll_sum, token_group


@dataclass(frozen=True)
class Evaluation:
    """The same numbers on every rank."""

    loss: float  # nats per target token
    perplexity: float  # exp(loss); a uniform guess has the vocabulary size
    bits_per_byte: float  # of the text behind the targets; does not depend on the tokenizer
    targets: int


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Total negative log-likelihood in nats of a text, per byte of it, in bits."""
    return nats / (math.log(2) * max(1, text_bytes))


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Sequence[MicroBatch], text_bytes: int, rank: int = 0, world: int = 1
) -> Evaluation:
    """Mean negative log-likelihood over held-out micro-batches, summed in their order at every world size.

    Every rank gives the same non-empty list and evaluates every world-th of it; all make the same number of forward
    passes. rank and world are those of the streams (layout.py). text_bytes is the UTF-8 length of the text behind all
    valid targets.
    """
    was_training = model.training
    model.eval()
    nats = torch.zeros(len(batches), dtype=torch.float64, device=batches[0].inputs.device)
    targets = 0
    for first in range(0, len(batches), world):
        mine = first + rank
        batch, live = batches[min(mine, len(batches) - 1)], mine < len(batches)
        nll = nll_sum(model, batch, live)
        if live:
            nats[mine] = nll
            targets += int((batch.targets != IGNORE).sum())
    release_gathered(model)
    model.train(was_training)
    # Each element is zero on all ranks but one (or those of one ring), so this sum has no order.
    *each, all_targets = all_reduce_sum([*nats.tolist(), targets], nats.device, token_group(model))
    total = sum(each)
    loss = total / max(1, all_targets)
    return Evaluation(loss, math.exp(min(loss, 700.0)), bits_per_byte(total, text_bytes), int(all_targets))
