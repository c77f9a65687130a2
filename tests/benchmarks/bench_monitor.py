"""What the monitor costs, by its functions' own time, on this machine's CPU; the bar is 1 % of the time of a step.

    python tests/benchmarks/bench_monitor.py [--steps 200]

A step of 8 slot blocks, at the defaults of `monitor` (a close look every 100 steps, one slot block computed again for
the noise scale) and with none. Losses by source are summed in every forward pass and read every 10 steps, as the loop
does it.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist

from pretrainer.config import MonitorConfig, TrainConfig
from pretrainer.model.transformer import init_weights
from pretrainer.train.feed import Prepared
from pretrainer.train.memory import keep_freed_memory
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.step import MicroBatch, train_step
from pretrainer.train.telemetry.monitor import Monitor
from tests.benchmarks.bench_step import CPU, SHAPES, Shape, our_config

BLOCKS, LOG_EVERY = 8, 10


def prepared(shape: Shape) -> list[Prepared]:
    positions = torch.arange(shape.seq_len).repeat(shape.rows, 1)
    found = []
    for number in range(BLOCKS):
        tokens = torch.randint(0, shape.vocab_size, (shape.rows, shape.seq_len + 1))
        micro = MicroBatch(tokens[:, :-1], tokens[:, 1:], positions, None, slot_block=number)
        found.append(Prepared(tokens, [micro], shape.rows * shape.seq_len))
    return found


def run(shape: Shape, config: MonitorConfig, steps: int) -> tuple[float, float]:
    """(seconds per step, the monitor's share of them)."""
    train = TrainConfig(steps=1)
    model = build_model(our_config(shape), shape.vocab_size, train, CPU)
    init_weights(model, 0)
    optimizer, blocks = build_optimizer(model, train), prepared(shape)
    monitor = Monitor(config, model, 2, lambda number: number % 2, CPU)
    micro = [batch for one in blocks for batch in one.micro_batches]
    targets = sum(one.targets for one in blocks)
    monitor.share()
    began = time.perf_counter()
    for step in range(steps):
        looks = monitor.is_due(step)
        if looks:
            monitor.begin(0, BLOCKS, blocks, None)
        train_step(model, optimizer, micro, 0, targets, 1e-4, 1.0, observer=monitor)
        if looks:
            monitor.end()
        if step % LOG_EVERY == LOG_EVERY - 1:
            monitor.source_losses()
    return (time.perf_counter() - began) / steps, monitor.share()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", default="llama-1m,llama-5m")
    parser.add_argument("--steps", type=int, default=200, help="a multiple of 100")
    options = parser.parse_args()
    keep_freed_memory()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name in options.shapes.split(","):
        run(SHAPES[name], MonitorConfig(), 20)  # memory that the process touches first is slow memory
        default, share = run(SHAPES[name], MonitorConfig(), options.steps)
        without, rest = run(SHAPES[name], MonitorConfig(every_steps=0), options.steps)
        print(f"{name}: {1e3 * default:.1f} ms a step, of which the monitor {share:.2%}; without close looks "
              f"{1e3 * without:.1f} ms, {rest:.2%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
