"""Tokens per second of exact mode against normal mode on one rank of this machine's CPU, at the same threads.

    python tests/benchmarks/bench_exact.py [threads]
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.presets import parameter_count
from pretrainer.model.transformer import init_weights
from pretrainer.train.exact import BlockSum, exact_train_step, make_deterministic
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.step import MicroBatch, train_step

CPU = torch.device("cpu")
BLOCKS, SEQUENCES, SEQ_LEN = 4, 4, 256
MODELS = {
    "tiny": (ModelConfig(layers=2, hidden=64, heads=4), 1024),
    "5M": (ModelConfig(layers=4, hidden=256, heads=4), 8192),
}


def slot_blocks(vocab_size: int) -> list[list[MicroBatch]]:
    """One micro-batch per slot block, of random tokens without documents."""
    generator, positions = np.random.default_rng(0), torch.arange(SEQ_LEN).expand(SEQUENCES, -1)
    blocks = []
    for _ in range(BLOCKS):
        tokens = torch.from_numpy(generator.integers(0, vocab_size, (SEQUENCES, SEQ_LEN + 1)))
        blocks.append([MicroBatch(tokens[:, :-1], tokens[:, 1:], positions, None)])
    return blocks


def step_of(exact: bool, model_config: ModelConfig, vocab_size: int) -> Callable[[], object]:
    train = TrainConfig(steps=1, exact=exact, precision="float32")
    model = build_model(model_config, vocab_size, train, CPU)
    init_weights(model, 0)
    optimizer, blocks = build_optimizer(model, train), slot_blocks(vocab_size)
    targets = BLOCKS * SEQUENCES * SEQ_LEN
    if exact:
        total = BlockSum(model, BLOCKS, targets)
        return lambda: exact_train_step(model, optimizer, blocks, targets, 1e-3, 1.0, total)
    micro = [one for block in blocks for one in block]
    return lambda: train_step(model, optimizer, micro, 0, targets, 1e-3, 1.0)


def tokens_per_cpu_s(step: Callable[[], object], repeats: int = 12) -> float:
    """By CPU time, which other work on the machine disturbs less; the best of some steps."""
    best = math.inf
    for _ in range(repeats):
        started = time.process_time()
        step()
        best = min(best, time.process_time() - started)
    return BLOCKS * SEQUENCES * SEQ_LEN / best


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        for name, (config, vocab_size) in MODELS.items():
            torch.use_deterministic_algorithms(False)
            normal = tokens_per_cpu_s(step_of(False, config, vocab_size))
            make_deterministic(threads)
            exact = tokens_per_cpu_s(step_of(True, config, vocab_size))
            print(
                f"{name:<6}{parameter_count(config, vocab_size):>12,} parameters, {threads} threads: normal "
                f"{normal:>9,.0f} tokens per CPU second, exact {exact:>9,.0f}, ratio {exact / normal:.2f}"
            )
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
