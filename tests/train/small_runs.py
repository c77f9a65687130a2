"""Small trainings without Ray: the trainer's own steps, schedule and checkpoints on texts made here, one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrainer.config import Config, DataConfig, ModelConfig, SourceConfig, TrainConfig
from pretrainer.schema import BOS, FIRST_TEXT_ID, Batch
from pretrainer.storage import Store
from pretrainer.train.checkpoints.checkpoint import save_sharded
from pretrainer.train.initialise import initialise
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.schedule import learning_rate
from pretrainer.train.scoring.evaluate import evaluate
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spec import Origin
from pretrainer.train.stepper import Stepper, prepare

CPU = torch.device("cpu")
VOCAB = FIRST_TEXT_ID + 40
ROWS = 16

Texts = Callable[[np.random.Generator], np.ndarray]
"""A row of seq_len + 1 ids, one document."""


def config_of(model: ModelConfig, seq_len: int, steps: int, **train: object) -> Config:
    sources = (SourceConfig(name="a", uris=("/nowhere",)), SourceConfig(name="b", uris=("/nowhere",)))
    return Config(
        data=DataConfig(sources=sources, seq_len=seq_len, slot_sequences=ROWS),
        model=model,
        train=TrainConfig(**{"steps": steps, "global_batch_tokens": seq_len * ROWS, "warmup_steps": 10} | train),  # type: ignore[arg-type]
    )


def batch(texts: Texts, number: int) -> Batch:
    """Slot block `number` of these texts."""
    tokens = np.stack([texts(np.random.default_rng([number, row])) for row in range(ROWS)]).astype(np.uint32)
    width = tokens.shape[1]
    starts = np.arange(ROWS, dtype=np.int32) * width
    return Batch(0, number, 0, tokens, starts, np.full(ROWS, width, np.int32))


def train(
    config: Config, texts_of: Callable[[int], Texts], folder: Path, origin: Origin | None = None
) -> tuple[torch.nn.Module, Origin]:
    """(the trained model, where its checkpoint is): the texts of step n are texts_of(n), one slot block a step."""
    model = build_model(config.model, VOCAB, config.train, CPU)
    initialise(model, config.run.seed, origin, Store(str(folder / "run")), local_rank=0)
    optimizer = build_optimizer(model, config.train)
    stepper = Stepper(config, model, optimizer, None, None)
    for step in range(config.total_steps):
        ready = prepare(config, None, CPU, None, step, step, batch(texts_of(step), step))
        rate = learning_rate(config.train, step, config.total_steps)
        stepper.run([ready], 1, ready.targets, rate, config.train.clip_norm)
    save_sharded(model, optimizer, {}, folder / "checkpoint")
    return model, Origin(str(folder / "checkpoint"), True, VOCAB)


def held_out(model: torch.nn.Module, config: Config, texts: Texts, count: int = 4) -> float:
    """Loss on blocks that no step has."""
    numbers = range(10**6, 10**6 + count)
    micro = [m for n in numbers for m in prepare(config, None, CPU, None, 0, n, batch(texts, n)).micro_batches]
    return evaluate(model, micro, 1).loss


# ------------------------------------------------------------------------------------------------------------- texts


def chain(seed: int, seq_len: int) -> Texts:
    """A language in which each token has two successors, most often the first of them."""
    successors = np.random.default_rng(seed).integers(FIRST_TEXT_ID, VOCAB, (VOCAB, 2))

    def text(rng: np.random.Generator) -> np.ndarray:
        row = [BOS, int(rng.integers(FIRST_TEXT_ID, VOCAB))]
        for draw in rng.random(seq_len - 1):
            row.append(int(successors[row[-1], int(draw < 0.2)]))
        return np.array(row)

    return text


VALUES, ASK, NOISE = 8, FIRST_TEXT_ID, FIRST_TEXT_ID + 1
FIRST_VALUE = FIRST_TEXT_ID + 2


def recall(seq_len: int, questions: int = 6, shortest: int = 2) -> Texts:
    """A value, noise, and further on, at least `shortest` tokens behind it, questions whose answer is the value."""
    places = np.arange(shortest + 2, seq_len - 1, 2)

    def text(rng: np.random.Generator) -> np.ndarray:
        row, value = np.full(seq_len + 1, NOISE), FIRST_VALUE + rng.integers(VALUES)
        row[0], row[1] = BOS, value
        for at in rng.choice(places, questions, replace=False):
            row[at], row[at + 1] = ASK, value
        return row

    return text


@torch.no_grad()
def answer_loss(model: torch.nn.Module, texts: Texts, count: int = 8) -> float:
    """Nats of the answers in texts of `recall`."""
    losses: list[Tensor] = []
    for number in range(10**6, 10**6 + count):
        tokens = torch.from_numpy(batch(texts, number).tokens.astype(np.int64))
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        positions = torch.arange(inputs.shape[1]).expand(len(inputs), -1)
        nll = -model(inputs, positions).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        losses.append(nll[inputs == ASK])
    return float(torch.cat(losses).mean())
