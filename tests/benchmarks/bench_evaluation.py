"""What evaluating a checkpoint beside the training costs the training, on this machine's CPU.

    python tests/benchmarks/bench_evaluation.py [--shape llama-1m] [--turns 300]

The trainer's step (one thread, as `bench_step.py` has it) takes turns: with a second process that scores a cloze task
without a pause, and with that process stopped (SIGSTOP). A turn is one step after one that is not timed: with turns of
seconds a machine that others use said 70 % to 146 % for the same code. The ratio is the worst case, in which an
evaluation never ends before the next begins; a run pays it only for the time that its evaluations take. The bar is
97 %.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from multiprocessing import get_context

import torch
import torch.distributed as dist

from pretrainer.evaluation.encoding import Request
from pretrainer.evaluation.scoring import score
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.memory import keep_freed_memory
from tests.benchmarks.bench_step import CPU, SHAPES, our_config, our_step

REQUESTS, REQUEST_TOKENS = 64, 100


def evaluate_for_ever(name: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    shape = SHAPES[name]
    model = Transformer(our_config(shape), shape.vocab_size)
    init_weights(model, 0)
    tokens = torch.randint(0, shape.vocab_size, (REQUESTS, REQUEST_TOKENS)).tolist()
    requests = [Request(tuple(row[:-8]), tuple(row[-8:])) for row in tokens]
    while True:
        score(model, requests, CPU, shape.seq_len, 16_384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-1m")
    parser.add_argument("--turns", type=int, default=300)
    options = parser.parse_args()
    ours, spare = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {ours})  # a process that goes on is begun on the core of who let it
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    step, shape = our_step(SHAPES[options.shape]), SHAPES[options.shape]
    beside = get_context("spawn").Process(target=evaluate_for_ever, args=(options.shape, spare), daemon=True)
    beside.start()
    time.sleep(8)  # until it scores
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    for turn in range(2 * options.turns):
        kind = "alone" if turn % 2 else "beside"
        os.kill(beside.pid or 0, signal.SIGSTOP if kind == "alone" else signal.SIGCONT)
        step()
        began = time.perf_counter()
        step()
        found[kind].append(time.perf_counter() - began)
    os.kill(beside.pid or 0, signal.SIGKILL)
    alone, with_it = (statistics.median(found[kind]) for kind in ("alone", "beside"))
    each = sorted(a / b for a, b in zip(found["alone"], found["beside"], strict=True))
    quarter = len(each) // 4
    print(f"{options.shape}: {shape.tokens / alone:,.0f} tokens/s alone, {shape.tokens / with_it:,.0f} beside a scorer "
          f"that never pauses; of {len(each)} pairs of steps the middle one {statistics.median(each):.1%} "
          f"(quarters {each[quarter]:.1%} and {each[-1 - quarter]:.1%})")  # fmt: skip


if __name__ == "__main__":
    main()
