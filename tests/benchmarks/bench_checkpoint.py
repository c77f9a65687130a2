"""Seconds that training waits for a checkpoint of some 50 million parameters, written at once and in the background.

    python -m tests.benchmarks.bench_checkpoint [--device cuda] [--repeats 5]

One rank, a temporary folder as storage, and no Ray: what its upload and commit take comes on top of the total, and with
train.async_checkpoints=false of the waiting too. Steps are trained until the checkpoint is committed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.presets import parameter_count
from pretrainer.model.transformer import init_weights
from pretrainer.train.checkpoints.saving import Saving
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spec import TrainState
from pretrainer.train.step import MicroBatch, train_step
from tests.train.commits import LocalCommits, make_saving

MODEL, VOCAB = ModelConfig(layers=10, hidden=512, heads=8), 32_768
SEQUENCES, SEQ_LEN = 2, 256


class Trainer:
    """A model and one step of it, on random tokens."""

    def __init__(self, device: torch.device) -> None:
        train = TrainConfig(steps=1, precision="auto" if device.type == "cuda" else "float32")
        self.model = build_model(MODEL, VOCAB, train, device)
        init_weights(self.model, 0)
        self.optimizer, self.device = build_optimizer(self.model, train), device
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, VOCAB, (SEQUENCES, SEQ_LEN + 1), generator=generator).to(device)
        positions = torch.arange(SEQ_LEN, device=device).expand(SEQUENCES, -1)
        self.micro = [MicroBatch(tokens[:, :-1], tokens[:, 1:], positions, None)]

    def step_s(self) -> float:
        started_s = time.perf_counter()
        train_step(self.model, self.optimizer, self.micro, 0, SEQUENCES * SEQ_LEN, 1e-3, 1.0)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started_s


def saving_of(trainer: Trainer, folder: Path, asynchronous: bool) -> Saving:
    commits = LocalCommits(folder)
    return make_saving(commits, trainer.model, trainer.optimizer, audited=False, async_checkpoints=asynchronous)


def one(saving: Saving, trainer: Trainer, step: int, folder: Path) -> tuple[float, float, list[float]]:
    """(seconds that training waited, seconds until the commit, seconds of each step in between)."""
    trainer.step_s()
    saving.save(TrainState(step=step))
    steps = []
    while not (found := saving.check()):
        steps.append(trainer.step_s())
    shutil.rmtree(folder / "checkpoints")
    return found[0].blocking_s, found[0].total_s, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trainer = Trainer(torch.device(options.device))
        alone_s = median(trainer.step_s() for _ in range(6))
        savings = {mode: saving_of(trainer, folder, mode == "background") for mode in ("at once", "background")}
        costs: dict[str, list[tuple[float, float]]] = {mode: [] for mode in savings}
        beside: list[float] = []
        for number in range(1 + options.repeats):
            for mode, saving in savings.items():
                wait_s, total_s, steps = one(saving, trainer, number, folder)
                costs[mode].append((wait_s, total_s))
                beside += steps
        parameters = parameter_count(MODEL, VOCAB)
        print(f"{parameters:,} parameters, {12 * parameters / 1e6:,.0f} MB of weights and moments, {options.device}")
        report(costs, alone_s, beside)
        dist.destroy_process_group()


def report(costs: dict[str, list[tuple[float, float]]], alone_s: float, beside: list[float]) -> None:
    """Medians; the first checkpoint of each mode is shown apart, because it makes the buffers."""
    waits = {mode: median(wait_s for wait_s, _total_s in each[1:]) for mode, each in costs.items()}
    for mode, each in costs.items():
        total_s = median(total_s for _wait_s, total_s in each[1:])
        print(f"  {mode:<12}training waits {waits[mode]:7.3f} s of {total_s:.3f} s; the first time {each[0][0]:.3f} s")
    print(f"  in the background it waits for 1/{waits['at once'] / waits['background']:.1f} of the time")
    print(f"  a step takes {alone_s:.3f} s, and {median(beside):.3f} s beside a checkpoint, ", end="")
    print(f"ratio {median(beside) / alone_s:.2f}")


if __name__ == "__main__":
    main()
