"""What streaming costs the trainer: pipelines.pretrain with curation running, against a bare PyTorch loop.

    python tests/benchmarks/bench_stream.py [--windows 8]

Both train the same model of about 5 M parameters on the same number of tokens per step, with one torch thread and one
process; the bare loop has its tokens in memory, no Ray, no FSDP, no checkpoints, and C's malloc as it comes (with
--keep-memory it has the trainer's setting of it, see pretrainer/train/memory.py). A machine's speed drifts by more than
what is measured, so the two take turns of some seconds: while one works, the other's processes stand still (SIGSTOP),
data workers included. Only steps that lie inside a turn count; the first turn of each warms up.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.memory import keep_freed_memory
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.step import MicroBatch, train_step

REPOSITORY = Path(__file__).parents[2]
MODEL = {"layers": 4, "hidden": 256, "heads": 4}
VOCABULARY, SEQ_LEN, SLOT_SEQUENCES, SLOT_BLOCKS = 8192, 256, 4, 4
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
            "log_every_steps": 1,
        },
    }
    path = folder / "bench.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def bare(report: Path, keep_memory: bool) -> None:
    """A plain loop over tokens in memory, for ever; one line per step in `report`: the time of its end."""
    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(1)
    model = Transformer(ModelConfig(**MODEL), VOCABULARY)
    init_weights(model, 0)
    optimizer = build_optimizer(model, TrainConfig(steps=1, global_batch_tokens=BATCH_TOKENS))
    generator = torch.Generator().manual_seed(0)
    shape = (SLOT_SEQUENCES, SEQ_LEN + 1)
    tokens = [torch.randint(0, VOCABULARY, shape, generator=generator) for _ in range(SLOT_BLOCKS)]
    positions = torch.arange(SEQ_LEN).expand(SLOT_SEQUENCES, SEQ_LEN).contiguous()
    documents = (torch.arange(SEQ_LEN) >= 100).long().expand(SLOT_SEQUENCES, SEQ_LEN).contiguous()
    micro = [MicroBatch(t[:, :-1], t[:, 1:], positions, documents) for t in tokens]
    with report.open("a", buffering=1) as lines:
        while True:
            train_step(model, optimizer, micro, 0, BATCH_TOKENS, 3e-4, 1.0)
            lines.write(f"{time.time()}\n")


class Streamed:
    """The pipeline in the background; each step's end is the time of its metrics in MLflow."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "pipelines.pretrain", "--config", str(path), "run.name=streamed"]
        self.folder, self.log = path.parent / "runs/streamed", path.parent / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)

    def history(self, name: str) -> list[tuple[float, float]]:
        """(time, value) of a metric, a step each."""
        from mlflow import MlflowClient

        known = json.loads((self.folder / "mlflow.json").read_text())
        found = MlflowClient(known["uri"]).get_metric_history(known["run_id"], name)
        return [(metric.timestamp / 1000, metric.value) for metric in found]

    def wait_for_steps(self, count: int) -> None:
        told = f"step {count:>6}/"
        while told not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.5)

    def processes(self) -> list[psutil.Process]:
        """All that work for the stream: Ray's workers, not its head."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.is_running() and any("ray::" in word for word in child.cmdline())]

    def chunks(self) -> int:
        return len(list((self.folder / "data/ledger").rglob("chunks/*.json")))


def signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def rates(ends: list[float], turns: list[tuple[float, float]]) -> list[float]:
    """Tokens/s of the steps that lie inside one of the turns, one number per turn."""
    found = []
    for first, last in turns:
        inside = [end for end in ends if first < end < last]
        if len(inside) > 1:
            found.append((len(inside) - 1) * BATCH_TOKENS / (inside[-1] - inside[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=24)
    parser.add_argument("--keep-memory", action="store_true", help="the bare loop too keeps memory that a step frees")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.keep_memory)
    steps = int(options.windows * options.seconds) + 60  # more than it can train
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus(folder / "corpus", megabytes=steps * BATCH_TOKENS * 8 // 2**20 + 8)
        stream = Streamed(config(folder, steps))
        turns: dict[str, list[tuple[float, float]]] = {"bare": [], "streamed": []}
        bare_loop = [sys.executable, __file__, "--bare", str(folder / "bare")]
        bare_loop += ["--keep-memory"] if options.keep_memory else []
        loop = subprocess.Popen(bare_loop, cwd=REPOSITORY)
        plain = psutil.Process(loop.pid)
        try:
            plain.suspend()
            stream.wait_for_steps(5)
            began = stream.chunks()
            for _ in range(options.windows):
                for kind in turns:
                    works, stands = ([plain], stream.processes())[:: 1 if kind == "bare" else -1]
                    signal_all(stands, signal.SIGSTOP)
                    signal_all(works, signal.SIGCONT)
                    started_s = time.time()
                    time.sleep(options.seconds)
                    turns[kind].append((started_s, time.time()))
            waits = stream.history("speed/data_wait_fraction")
            ends = {"streamed": [time_s for time_s, _value in stream.history("train/loss")]}
            curated = stream.chunks() - began
        finally:
            signal_all([plain, *stream.processes()], signal.SIGKILL)
            stream.process.send_signal(signal.SIGTERM)
            stream.process.wait(120)
        ends["bare"] = [float(line) for line in (folder / "bare").read_text().split()]
    found = {kind: rates(ends[kind], turns[kind][1:]) for kind in turns}
    wait = statistics.mean(value for time_s, value in waits if any(a < time_s < b for a, b in turns["streamed"][1:]))
    ratios = [s / p for p, s in zip(found["bare"], found["streamed"], strict=True)]
    print("turn     bare  streamed  ratio   (tokens/s)")
    for turn, (p, s) in enumerate(zip(found["bare"], found["streamed"], strict=True), 1):
        print(f"{turn:>4}{p:>9,.0f}{s:>10,.0f}{s / p:>7.1%}")
    print(f"median ratio {statistics.median(ratios):.1%}, data wait {wait:.2%}, {curated} chunks curated meanwhile")


if __name__ == "__main__":
    main()
