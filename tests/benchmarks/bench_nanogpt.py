"""nanoGPT's recipe for a character model on CPU, and ours for the same text, the same tokens and no more parameters.

    python tests/benchmarks/bench_nanogpt.py                     nanoGPT's and ours, torch alone
    python tests/benchmarks/bench_nanogpt.py --through-ray       ours through python -m pipelines.pretrain
    python tests/benchmarks/bench_nanogpt.py --ours --set train.learning_rate=8e-3 model.layers=3

Text: 1.1 MB of the standard library's documentation (the language reference that `help()` shows, then docstrings),
ASCII alone. It is cut into pieces of 16 kB behind line ends, of which the trainer holds a tenth out by hash. nanoGPT
trains on the rest, joined in order, as one array from which it draws windows of 64 at random; ours on the same pieces,
packed into rows, each of which is trained once an epoch.

Recipe (nanoGPT's README, "train_shakespeare_char on a CPU"): 4 layers, 4 heads, width 128, block 64, batch 12, 2,000
steps, dropout 0, learning rate 1e-3 with 100 steps of warm-up and cosine decay to 1e-4, beta2 .99, weight decay .1,
clipping at 1. nanoGPT reached a validation loss of 1.8857 on Shakespeare with it, in 55 s on 2 cores; that text cannot
be had here, so both are trained on this one.

Both are judged by one function: every held-out piece is cut into windows of 64 characters, and each character but the
first of a piece is predicted once from those before it in its window (1 to 64 of them). The sum of nats over all pieces
is divided by the number of characters predicted. One id is one character in both.

Time is that of the training steps, without start-up, evaluation and checkpoints; through Ray it is what the trainer
logs, with the stream beside it. The first step waits for the stream to begin and belongs to start-up.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.driver.checkpoints import checkpoint_folder, download
from pretrainer.config import Config
from pretrainer.config_load import load_config
from pretrainer.data.packing.packing import empty_row, pack_window, slot_block
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.readers.text import cut_documents
from pretrainer.data.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pretrainer.model.presets import parameter_count
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.schema import Batch, Specials, from_ipc
from pretrainer.storage import Store
from pretrainer.train.batch import valid_targets
from pretrainer.train.checkpoints.checkpoint import load_full_state_dict
from pretrainer.train.memory import keep_freed_memory
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.schedule import learning_rate
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.step import train_step
from pretrainer.train.stepper import prepare

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "characters.yaml"
CPU = torch.device("cpu")
TEXT_BYTES = 1_100_000
BLOCK, BATCH, STEPS = 64, 12, 2000


# ---------------------------------------------------------------------------------------------------------------- text


def library_prose() -> str:
    """Documentation of the installed Python, the same for one version of it."""
    from pydoc_data.topics import topics

    parts = [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "test", "tests"} & {*path.parts}:
            parts += docstrings(path)
    text = "\n\n".join(parts).encode("ascii", "ignore").decode()
    assert len(text) >= TEXT_BYTES, f"this Python has {len(text):,} bytes of documentation alone"
    return text[:TEXT_BYTES]


def docstrings(path: Path) -> Iterator[str]:
    """Those of a file with more than 200 characters."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) > 200:
                yield text


@dataclass(frozen=True)
class Split:
    """Pieces of the text in their order."""

    train: list[str]
    held_out: list[str]


def every_tenth(text: str, piece_bytes: int) -> Split:
    """A split like the trainer's, for trials without Ray."""
    pieces = [piece.decode() for piece in cut_documents(iter([text.encode()]), piece_bytes)]
    return Split([p for i, p in enumerate(pieces) if i % 10 != 5], [p for i, p in enumerate(pieces) if i % 10 == 5])


# ------------------------------------------------------------------------------------------------------------- nanoGPT


class NanoBlock(nn.Module):
    """nanoGPT's Block with bias=False and dropout 0."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.mlp_c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(rows, length, width))
        return x + self.mlp_c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """Learned positions, pre-norm LayerNorm, GELU, tied embeddings, GPT-2's initialisation."""

    def __init__(self, vocab_size: int, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, width), nn.Embedding(BLOCK, width)
        self.blocks = nn.ModuleList(NanoBlock(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = 0.02 / math.sqrt(2 * layers) if "c_proj" in name else 0.02
                nn.init.normal_(parameter, mean=0.0, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def nano_rate(step: int) -> float:
    """Learning rate of a step: linear warm-up, cosine to a tenth."""
    peak, least, warm = 1e-3, 1e-4, 100
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    return least + 0.5 * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm))) * (peak - least)


class Alphabet:
    """nanoGPT's character table."""

    def __init__(self, text: str) -> None:
        self.ids = {character: i for i, character in enumerate(sorted(set(text)))}

    def __call__(self, text: str) -> np.ndarray:
        return np.array([self.ids[character] for character in text], dtype=np.int64)


@dataclass
class Result:
    """What a recipe gave."""

    name: str
    parameters: int
    loss: float  # nats per held-out character
    steps: int
    train_s: float
    start_s: float | None = None  # to the first step, where there is such a thing


def run_nanogpt(split: Split, seed: int, steps: int) -> Result:
    torch.manual_seed(seed)
    encode = Alphabet("".join(split.train + split.held_out))
    data = encode("".join(split.train))
    model = NanoGPT(len(encode.ids))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = nano_rate(step)
        at = torch.randint(len(data) - BLOCK, (BATCH,)).tolist()
        x = torch.from_numpy(np.stack([data[i : i + BLOCK] for i in at]))
        y = torch.from_numpy(np.stack([data[i + 1 : i + 1 + BLOCK] for i in at]))
        loss = F.cross_entropy(model(x).view(-1, len(encode.ids)), y.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    train_s = time.perf_counter() - started
    count = sum(p.numel() for p in model.parameters())
    return Result("nanoGPT", count, nats_per_character(model, encode, split.held_out), steps, train_s)


@torch.no_grad()
def nats_per_character(
    model: Callable[[Tensor], Tensor], encode: Callable[[str], np.ndarray], held_out: Sequence[str]
) -> float:
    """Mean over all characters of the pieces but the first of each; see the top of this file."""
    rows = []
    for piece in held_out:
        ids = torch.from_numpy(encode(piece).astype(np.int64))
        assert len(ids) == len(piece), "one id is one character"
        rows += [ids[start : start + BLOCK + 1] for start in range(0, len(ids) - 1, BLOCK)]
    characters, nats = 0, 0.0
    full = torch.stack([row for row in rows if len(row) == BLOCK + 1])
    batches = [*full.split(256), *(row[None] for row in rows if len(row) < BLOCK + 1)]
    for batch in batches:
        logits = model(batch[:, :-1])
        nats += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        characters += batch[:, 1:].numel()
    return nats / characters


# ---------------------------------------------------------------------------------------------------------------- ours


def our_tokenizer(config: Config, split: Split) -> Tokenizer:
    return Tokenizer.from_bytes(train_tokenizer(split.train, config.tokenizer.kind, config.tokenizer.vocab_size))


def slot_blocks(config: Config, split: Split, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Epoch after epoch, packed and shuffled as the stream does it with one pack window."""
    data, specials = config.data, Specials(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    table = pa.table({"tokens": pa.array([tokenizer.encode(piece) for piece in split.train], pa.list_(pa.uint32()))})
    for epoch in range(1000):
        rows, _packed = pack_window([table], data.seq_len, data.packing, specials, ("text", epoch, data.order_seed))
        rows += [empty_row(data.seq_len, specials)] * (-len(rows) % data.slot_sequences)
        for first in range(0, len(rows), data.slot_sequences):
            (row,) = slot_block(rows[first : first + data.slot_sequences], 0, first, epoch).to_pylist()
            yield Batch.from_row(row, data.seq_len)


def run_ours(config: Config, split: Split, steps: int) -> Result:
    """The trainer's model, optimizer, schedule and step on the trainer's rows, in this process."""
    assert config.slot_blocks_per_step == 1 and config.train.global_batch_tokens == BLOCK * BATCH
    tokenizer = our_tokenizer(config, split)
    model = build_model(config.model, tokenizer.vocab_size, config.train, CPU)
    init_weights(model, config.run.seed)
    optimizer = build_optimizer(model, config.train)
    blocks = slot_blocks(config, split, tokenizer)
    started = time.perf_counter()
    for step in range(steps):
        batch = next(blocks)
        micro = prepare(config, None, CPU, None, step, step, batch).micro_batches
        rate = learning_rate(config.train, step, steps)
        train_step(model, optimizer, micro, 0, valid_targets(batch), rate, config.train.clip_norm)
    train_s = time.perf_counter() - started
    count = parameter_count(config.model, tokenizer.vocab_size)
    loss = nats_per_character(as_function(model), tokenizer.encode, split.held_out)
    return Result("ours", count, loss, steps, train_s)


def as_function(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda tokens: model(tokens, torch.arange(tokens.shape[1]).repeat(len(tokens), 1))


# --------------------------------------------------------------------------------------------------------- through Ray


def run_through_ray(text: str, folder: Path, overrides: Sequence[str]) -> tuple[Result, Split]:
    """The command that a person would give; the split is read from the run's folder."""
    (folder / "input.txt").write_text(text)
    given = [f"data.sources.0.uris={folder / 'input.txt'}", f"run.storage={folder / 'runs'}", *overrides]
    command = ["-m", "pipelines.pretrain", "--config", str(CONFIG), *given]
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True)
    config, run = load_config(str(CONFIG), given), Store(str(folder / "runs" / "characters"))
    summary = json.loads(run.read("summary.json"))
    held_out = from_ipc(run.read("data/held_out/text.documents.arrow")).column("text").to_pylist()
    pieces = [piece.decode() for piece in cut_documents(iter([text.encode()]), config.data.chunk_bytes)]
    assert set(held_out) < set(pieces), "the trainer cuts and keeps pieces as they are"
    split = Split([piece for piece in pieces if piece not in set(held_out)], held_out)
    tokenizer = load_tokenizer(run.child("data").uri)
    loss = nats_per_character(trained(config, run, tokenizer.vocab_size), tokenizer.encode, held_out)
    train_s, start_s = summary["tokens"] / summary["tokens_per_s"], summary["time_to_first_step_s"]
    return Result("ours, through Ray", summary["parameters"], loss, summary["steps"], train_s, start_s), split


def trained(config: Config, run: Store, vocab_size: int) -> Callable[[Tensor], Tensor]:
    """The model of the last checkpoint."""
    model = Transformer(config.model, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        download(run.child(checkpoint_folder(run, None)), Path(folder))
        model.load_state_dict(load_full_state_dict(folder))
    return as_function(model)


def table(results: Sequence[Result], characters: int) -> str:
    lines = [f"{'':<20}{'parameters':>12}{'val nats/char':>15}{'training s':>12}{'ms/step':>9}{'start-up s':>12}"]
    for found in results:
        start = "-" if found.start_s is None else f"{found.start_s:.1f}"
        lines.append(f"{found.name:<20}{found.parameters:>12,}{found.loss:>15.4f}{found.train_s:>12.1f}"
                     f"{found.train_s / found.steps * 1e3:>9.2f}{start:>12}")  # fmt: skip
    return "\n".join([*lines, f"{characters:,} held-out characters"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--through-ray", action="store_true", help="ours by the command that a person would give")
    parser.add_argument("--ours", action="store_true", help="leave nanoGPT's out")
    parser.add_argument("--seeds", type=int, default=1, help="how often nanoGPT's is run; the median loss counts")
    parser.add_argument("--steps", type=int, default=STEPS, help="a short try-out, torch alone")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.field=value", help="changes of the config")
    options = parser.parse_args()
    text = library_prose()
    config = load_config(str(CONFIG), options.set)
    results = []
    if options.through_ray:
        with tempfile.TemporaryDirectory() as folder:
            ours, split = run_through_ray(text, Path(folder), options.set)
        results.append(ours)
    else:
        split = every_tenth(text, config.data.chunk_bytes)
    keep_freed_memory()
    if not options.through_ray:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        results.append(run_ours(config, split, options.steps))
    if not options.ours:
        found = [run_nanogpt(split, seed, options.steps) for seed in range(options.seeds)]
        middle = statistics.median_low(one.loss for one in found)
        results.insert(0, next(one for one in found if one.loss == middle))
    print(table(results, sum(len(piece) - 1 for piece in split.held_out)))


if __name__ == "__main__":
    main()
