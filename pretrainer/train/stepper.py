"""From slot blocks to a trained step, whichever way the config says; the training loop and `replay` share it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pretrainer.config import Config
from pretrainer.model.generate import release_gathered
from pretrainer.model.ring import Ring
from pretrainer.schema import Batch, MaskVocabulary
from pretrainer.train import batch as slots
from pretrainer.train.exact import BlockSum, exact_train_step
from pretrainer.train.feed import Prepared
from pretrainer.train.objective import how_of, lesson
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.spikes import Detector
from pretrainer.train.step import IGNORE, Observer, StepResult, nll_sum, sum_over_ranks, token_group, train_step


def prepare(
    config: Config,
    mask_vocabulary: MaskVocabulary | None,
    device: torch.device,
    ring: Ring | None,
    step: int,
    number: int,
    batch: Batch,
) -> Prepared:
    """A slot block, whose number in the run is `number`, on the device and cut into forward passes."""
    tokens, learned = slots.to_tensor(batch, device), lesson(batch, number, how_of(config, mask_vocabulary))
    micro = slots.micro_batches(
        tokens,
        batch,
        sequences=config.train.micro_batch_sequences or config.data.slot_sequences,
        document_mask=config.model.document_mask,
        run_seed=config.run.seed,
        step=step,
        slot_block=number,
        learned=learned,
        ring=ring,
    )
    return Prepared(tokens, micro, learned.targets)


class Stepper:
    """Trains a step on what this rank has of it; every rank has one."""

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_scale: LossScale | None,
        detector: Detector | None,
        observer: Observer | None = None,
    ) -> None:
        train, blocks = config.train, config.slot_blocks_per_step
        self.model, self.optimizer, self.loss_scale, self.detector = model, optimizer, loss_scale, detector
        self.observer = observer
        self.block_sum = BlockSum(model, blocks, train.global_batch_tokens) if train.exact else None

    def run(
        self, prepared: Sequence[Prepared], most: int, targets: int, learning_rate: float, clip_norm: float
    ) -> StepResult:
        """most: slot blocks of the busiest rank. targets: of all ranks. See `train_step` and `exact_train_step`."""
        by_block = [p.micro_batches for p in prepared]
        step = self.model, self.optimizer
        if self.block_sum is not None:
            return exact_train_step(
                *step, by_block, targets, learning_rate, clip_norm, self.block_sum, self.detector, self.observer
            )
        micro = [one for several in by_block for one in several]
        dummies = most * len(by_block[0]) - len(micro)
        return train_step(
            *step, micro, dummies, targets, learning_rate, clip_norm, self.loss_scale, self.detector, self.observer
        )

    @torch.no_grad()
    def loss(self, prepared: Sequence[Prepared], most: int) -> float:
        """Mean loss of a batch with the weights of now, dropout left out; every rank calls it, and it waits."""
        was_training = self.model.training
        self.model.eval()
        micro = [(batch, True) for one in prepared for batch in one.micro_batches]
        dummies = most * len(prepared[0].micro_batches) - len(micro)
        total = torch.zeros(2, dtype=torch.float64, device=micro[0][0].inputs.device)
        for batch, live in micro + [(micro[-1][0], False)] * dummies:
            total[0] += nll_sum(self.model, batch, live)
            total[1] += (batch.targets != IGNORE).sum() * live
        release_gathered(self.model)
        self.model.train(was_training)
        nats, targets = sum_over_ranks(total, token_group(self.model)).tolist()
        return nats / max(1.0, targets)
