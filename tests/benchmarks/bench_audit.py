"""What the audit costs: its own time per step against a training step's, without Ray.

    python -m tests.benchmarks.bench_audit [--steps 30]

One process, torch on the CPU, random slot blocks; the audit's time is that of `Audit.add` (which digests the step
before) plus its share of `Audit.write`, with storage in a temporary folder and a checkpoint every 30 steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from pretrainer.config import Config, DataConfig, ModelConfig, SourceConfig, TrainConfig
from pretrainer.data.curriculum import SegmentOrder
from pretrainer.data.mixture import Mixture
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.schema import BOS, FIRST_TEXT_ID, Batch
from pretrainer.train.batch import micro_batches, to_tensor, valid_targets
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.spec import TrainState, WorkerSpec
from pretrainer.train.step import train_step
from pretrainer.train.telemetry.audit import Audit

# name: (layers, hidden, heads, vocabulary, S, K, G)
SIZES = {
    "tiny": (1, 32, 2, 600, 32, 2, 8),
    "5M": (6, 256, 4, 2048, 256, 4, 4),
    "25M": (8, 512, 8, 4096, 256, 4, 4),
}


def config(layers: int, hidden: int, heads: int, seq_len: int, sequences: int, blocks: int) -> Config:
    return Config(
        data=DataConfig(
            sources=(SourceConfig(name="random", uris=("/nowhere",)),), seq_len=seq_len, slot_sequences=sequences
        ),
        model=ModelConfig(layers=layers, hidden=hidden, heads=heads),
        train=TrainConfig(steps=1000, global_batch_tokens=seq_len * sequences * blocks),
    )


def slot_block(number: int, config: Config, vocab: int) -> Batch:
    shape = config.data.slot_sequences, config.data.seq_len + 1
    tokens = np.random.default_rng(number).integers(FIRST_TEXT_ID, vocab, shape, dtype=np.uint32)
    starts = np.arange(0, tokens.size, shape[1], dtype=np.int32)
    return Batch(0, number, 0, tokens, starts, np.full(shape[0], shape[1], np.int32))


def measure(name: str, steps: int, folder: Path) -> tuple[float, float, int]:
    """(seconds per step without audit, the audit's own seconds per step, parameters)."""
    layers, hidden, heads, vocab, seq_len, sequences, blocks = SIZES[name]
    made = config(layers, hidden, heads, seq_len, sequences, blocks)
    model = Transformer(made.model, vocab)
    init_weights(model, 0)
    optimizer = build_optimizer(model, made.train)
    spec = WorkerSpec(
        made, 0, 1, vocab, SegmentOrder(Mixture((1,)), 0, (0,)), "", str(folder / name), "", {}, 1, (BOS,), None
    )
    audit, step_s, audit_s = Audit.begin(spec, 0, 1, 0), [], []
    for step in range(steps):
        numbers = range(step * blocks, (step + 1) * blocks)
        mine = [(n, slot_block(n, made, vocab)) for n in numbers]
        started = time.perf_counter()
        tensors = [to_tensor(batch) for _n, batch in mine]
        micro = [
            one
            for (n, batch), tensor in zip(mine, tensors, strict=True)
            for one in micro_batches(tensor, batch, sequences=sequences, document_mask=True, run_seed=0,
                                     step=step, slot_block=n)
        ]  # fmt: skip
        targets = sum(valid_targets(batch) for _n, batch in mine)
        result = train_step(model, optimizer, micro, 0, targets, 1e-4, 1.0)
        trained = time.perf_counter()
        audit.add(step, mine, tensors, result)
        audit_s.append(time.perf_counter() - trained)
        step_s.append(trained - started)
    started = time.perf_counter()
    audit.write(replace(TrainState(), step=steps))
    written_s = (time.perf_counter() - started) / steps
    return median(step_s), median(audit_s) + written_s, sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    options = parser.parse_args()
    print(f"{'model':>6} {'parameters':>12} {'tokens/step':>12} {'step ms':>10} {'audit ms':>10} {'share':>8}")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        for name in options.sizes:
            step_s, audit_s, parameters = measure(name, options.steps, Path(folder))
            _layers, _hidden, _heads, _vocab, seq_len, sequences, blocks = SIZES[name]
            print(f"{name:>6} {parameters:>12,} {seq_len * sequences * blocks:>12,} {step_s * 1e3:>10.2f} "
                  f"{audit_s * 1e3:>10.3f} {audit_s / step_s:>8.2%}")  # fmt: skip
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
