"""What streaming costs the trainer: pipelines.pretrain with curation running, against a bare PyTorch loop.

    python tests/benchmarks/bench_stream.py [--steps 120]

Both train the same model of about 5 M parameters on the same number of tokens per step, with one torch thread and one
process; the bare loop has its tokens in memory, no Ray, no FSDP, no checkpoints. They run in turns. Rates are medians
over log intervals, the warm second half of each run; the table says whether curation was still running then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.optimizer import build_optimizer
from pretrainer.train.step import MicroBatch, train_step

REPOSITORY = Path(__file__).parents[2]
MODEL = {"layers": 4, "hidden": 256, "heads": 4}
VOCABULARY, SEQ_LEN, SLOT_SEQUENCES, SLOT_BLOCKS, LOG_EVERY = 8192, 256, 4, 4, 5
BATCH_TOKENS = SEQ_LEN * SLOT_SEQUENCES * SLOT_BLOCKS


def corpus(folder: Path, megabytes: int) -> Path:
    """JSONL of the standard library's code, each copy of a file made different, until it is large enough."""
    folder.mkdir(parents=True)
    texts = [p.read_text(errors="replace") for p in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    written, number = 0, 0
    while written < megabytes * 2**20:
        lines = [json.dumps({"text": text.replace("self", f"self_{number}")}) for text in texts[:100]]
        data = "\n".join(lines) + "\n"
        (folder / f"{number:04d}.jsonl").write_text(data)
        written, number = written + len(data), number + 1
    return folder


def config(folder: Path, steps: int) -> Path:
    source = {"name": "code", "uris": [str(folder / "corpus")], "preset": "code", "max_epochs": 1}
    values: dict[str, Any] = {
        "run": {"storage": str(folder / "runs")},
        "data": {
            "sources": [source],
            "seq_len": SEQ_LEN,
            "slot_sequences": SLOT_SEQUENCES,
            "pack_window_tokens": 131_072,
            "chunk_bytes": 262_144,
            "held_out_max_tokens": 2048,
            "look_ahead_chunks": 4,
            "read_cpus": 0.25,
        },
        "tokenizer": {"vocab_size": VOCABULARY, "train_bytes": 4_000_000},
        "model": MODEL,
        "train": {
            "steps": steps,
            "global_batch_tokens": BATCH_TOKENS,
            "cpus_per_worker": 0.5,
            "threads_per_worker": 1,
            "warmup_steps": 10,
            "checkpoint_every_steps": 10 * steps,
            "validate_every_steps": 10 * steps,
            "sample_every_steps": 10 * steps,
            "log_every_steps": LOG_EVERY,
        },
    }
    path = folder / "bench.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def streamed(path: Path, name: str) -> tuple[float, float, bool]:
    """(median tokens/s, share of time waiting for data, whether curation ran to the end) of the warm half."""
    from mlflow import MlflowClient

    command = [sys.executable, "-m", "pipelines.pretrain", "--config", str(path), f"run.name={name}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())
    client, run_id = MlflowClient(summary["mlflow"]["uri"]), summary["mlflow"]["run_id"]
    half = summary["steps"] // 2
    rates = [m.value for m in client.get_metric_history(run_id, "speed/tokens_per_s") if m.step > half]
    waits = [m.value for m in client.get_metric_history(run_id, "speed/data_wait_fraction") if m.step > half]
    chunks = sorted(Path(path.parent / "runs" / name / "data/ledger").glob("*/chunks/*.json"), key=os.path.getmtime)
    still_curating = chunks[-1].stat().st_mtime > time.time() - summary["wall_s"] / 4
    return statistics.median(rates), statistics.mean(waits), still_curating


def bare(steps: int) -> float:
    """Median tokens/s of a plain loop over tokens in memory."""
    torch.set_num_threads(1)
    model = Transformer(ModelConfig(**MODEL), VOCABULARY)
    init_weights(model, 0)
    train = TrainConfig(steps=steps, global_batch_tokens=BATCH_TOKENS)
    optimizer = build_optimizer(model, train)
    generator = torch.Generator().manual_seed(0)
    shape = (SLOT_SEQUENCES, SEQ_LEN + 1)
    tokens = [torch.randint(0, VOCABULARY, shape, generator=generator) for _ in range(SLOT_BLOCKS)]
    positions = torch.arange(SEQ_LEN).expand(SLOT_SEQUENCES, SEQ_LEN).contiguous()
    documents = (torch.arange(SEQ_LEN) >= 100).long().expand(SLOT_SEQUENCES, SEQ_LEN).contiguous()
    micro = [MicroBatch(t[:, :-1], t[:, 1:], positions, documents) for t in tokens]
    rates = []
    for _ in range(steps // LOG_EVERY):
        started_s = time.perf_counter()
        for _ in range(LOG_EVERY):
            train_step(model, optimizer, micro, 0, BATCH_TOKENS, 3e-4, 1.0)
        rates.append(LOG_EVERY * BATCH_TOKENS / (time.perf_counter() - started_s))
    return statistics.median(rates[len(rates) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus(folder / "corpus", megabytes=options.steps * BATCH_TOKENS * 8 // 2**20 + 8)
        path = config(folder, options.steps)
        print("turn  bare tokens/s  streamed tokens/s  ratio  data wait  curating", flush=True)
        for turn in range(options.turns):
            plain = bare(options.steps)
            rate, wait, curating = streamed(path, f"turn-{turn}")
            ran = "yes" if curating else "no"
            print(f"{turn:>4}{plain:>15,.0f}{rate:>19,.0f}{rate / plain:>7.1%}{wait:>11.2%}  {ran}", flush=True)


if __name__ == "__main__":
    main()
