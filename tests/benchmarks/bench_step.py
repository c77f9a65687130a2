"""Our training step against a minimal loop in plain PyTorch, of the same model and batch, on this machine's CPU.

    python tests/benchmarks/bench_step.py [--builds 6] [--seconds 20] [--threads 2] [--profile llama-5m]

Ours is what a trainer runs: `build_model` (one rank: no FSDP2), `build_optimizer` and `train_step`. The plain loop is
written here and shares no code with it: modules, `scaled_dot_product_attention`, `cross_entropy`, fused AdamW, clipping
of the gradient. Both have C's malloc set as trainers on CPU have it. They take turns step by step in one process, since
this machine's speed drifts by more than what is measured, and both are built anew several times, since where a tensor
lies in memory decides some per cent. The ratio of the median steps of a build counts, of the builds their median. The
bar is 97 %. The smallest shape shows what an operation costs beside its arithmetic.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.transformer import init_weights
from pretrainer.train.memory import keep_freed_memory
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.step import MicroBatch, train_step

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """A model, and a step of so many micro-batches."""

    kind: str  # llama or gpt2
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab_size: int
    seq_len: int
    rows: int
    micro_batches: int

    @property
    def tokens(self) -> int:
        return self.rows * self.seq_len * self.micro_batches


SHAPES = {
    "llama-5m": Shape("llama", 4, 256, 4, 704, 8192, 256, 4, 4),
    "gpt2-5m": Shape("gpt2", 4, 256, 4, 1024, 8192, 256, 4, 4),
    "llama-1m": Shape("llama", 4, 128, 4, 384, 2048, 256, 4, 2),
    "gpt2-nanogpt": Shape("gpt2", 4, 128, 4, 512, 96, 64, 12, 1),
}

Step = Callable[[], object]


# ------------------------------------------------------------------------------------------------------ the plain loop


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class PlainAttention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.bias = shape.heads, shape.kind == "gpt2"
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden, bias=self.bias)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=self.bias)

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(rows, length, width))


class PlainFeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gated, bias = shape.kind == "llama", shape.kind == "gpt2"
        self.up = nn.Linear(shape.hidden, shape.ffn, bias=bias)
        self.gate = nn.Linear(shape.hidden, shape.ffn, bias=bias) if self.gated else None
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def plain_norm(shape: Shape) -> nn.Module:
    return nn.RMSNorm(shape.hidden, eps=1e-5) if shape.kind == "llama" else nn.LayerNorm(shape.hidden)


class PlainBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1, self.attention = plain_norm(shape), PlainAttention(shape)
        self.norm2, self.ffn = plain_norm(shape), PlainFeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.ffn(self.norm2(x))


class Plain(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.hidden)
        self.positions = nn.Embedding(shape.seq_len, shape.hidden) if shape.kind == "gpt2" else None
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.norm = plain_norm(shape)
        width = shape.hidden // shape.heads
        turns = torch.arange(shape.seq_len)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("cos", torch.cat((turns, turns), -1).cos())
        self.register_buffer("sin", torch.cat((turns, turns), -1).sin())
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x, cos, sin = self.embed(tokens), self.cos, self.sin
        if self.positions is not None:
            x, cos, sin = x + self.positions.weight, None, None
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batches(shape: Shape) -> list[tuple[Tensor, Tensor]]:
    tokens = torch.randint(0, shape.vocab_size, (shape.micro_batches, shape.rows, shape.seq_len + 1))
    return [(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in tokens]


def plain_step(shape: Shape) -> Step:
    model, data = Plain(shape), batches(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        total = 0.0
        for tokens, targets in data:
            loss = model(tokens, targets) / len(data)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


# ---------------------------------------------------------------------------------------------------------------- ours


def our_config(shape: Shape) -> ModelConfig:
    common = {"layers": shape.layers, "hidden": shape.hidden, "heads": shape.heads, "ffn_hidden": shape.ffn}
    if shape.kind == "llama":
        return ModelConfig(**common)
    gpt2 = {"norm": "layernorm", "bias": "all", "ffn": "gelu_tanh", "positions": "learned", "context": shape.seq_len}
    return ModelConfig(**common, **gpt2)


def our_step(shape: Shape) -> Step:
    train = TrainConfig(steps=1)
    model = build_model(our_config(shape), shape.vocab_size, train, CPU)
    init_weights(model, 0)
    optimizer = build_optimizer(model, train)
    positions = torch.arange(shape.seq_len).repeat(shape.rows, 1)
    micro = [MicroBatch(tokens, targets, positions, None) for tokens, targets in batches(shape)]
    return lambda: train_step(model, optimizer, micro, 0, shape.tokens, 1e-4, 1.0)


# ------------------------------------------------------------------------------------------------------------ the race


@dataclass(frozen=True)
class Race:
    """Median seconds per step in one build."""

    plain_s: float
    ours_s: float

    @property
    def ratio(self) -> float:
        return self.plain_s / self.ours_s


def race(shape: Shape, seconds: float, ours_first: bool) -> Race:
    """Both are built, in this order, and take turns for so many seconds, four steps each at least."""
    kinds: list[tuple[str, Callable[[Shape], Step]]] = [("plain", plain_step), ("ours", our_step)]
    steps = {name: build(shape) for name, build in (reversed(kinds) if ours_first else kinds)}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(found["ours"]) < 4:
        for name in sorted(steps, reverse=bool(len(found["ours"]) % 2)):
            started_s = time.perf_counter()
            steps[name]()
            found[name].append(time.perf_counter() - started_s)
    return Race(statistics.median(found["plain"]), statistics.median(found["ours"]))


def profile(step: Step) -> str:
    for _ in range(3):
        step()
    with torch.profiler.profile() as found:
        for _ in range(5):
            step()
    return found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--builds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the race in one build")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", choices=SHAPES, help="print where both steps of one shape spend their time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if options.profile:
        print(profile(plain_step(SHAPES[options.profile])), profile(our_step(SHAPES[options.profile])), sep="\n")
        return
    print(f"{'shape':<14}{'tokens/step':>12}{'plain tok/s':>13}{'ours tok/s':>12}{'ratio':>8}   of each build")
    for name in options.shapes.split(","):
        shape = SHAPES[name]
        found = [race(shape, options.seconds, ours_first=bool(build % 2)) for build in range(options.builds)]
        each = sorted(one.ratio for one in found)
        plain, ours = (shape.tokens / statistics.median(times) for times in
                       ([one.plain_s for one in found], [one.ours_s for one in found]))  # fmt: skip
        print(f"{name:<14}{shape.tokens:>12,}{plain:>13,.0f}{ours:>12,.0f}{statistics.median(each):>8.1%}   "
              + " ".join(f"{ratio:.1%}" for ratio in each), flush=True)  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
