"""Is a GPU's arithmetic that of the CPU? With torch alone, a process group of one rank; about two minutes on an H200.

    python tests/benchmarks/gpu_checks.py
    python tests/benchmarks/gpu_checks.py --only step            # the checks whose names hold a word
    python tests/benchmarks/gpu_checks.py --part 1/4             # every fourth one: four processes share a GPU well
    python tests/benchmarks/gpu_checks.py --device cpu           # the checks themselves, tried without a GPU

Every kernel that only a GPU has (FlexAttention compiled, the fused loss, grouped products of experts, float8, copies
on other streams) against float64 or against the same step on the CPU. A line each; exits with 1 when one is off.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # a bare machine has a copy of the repository, not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from pretrainer.config import ModelConfig, MoeConfig, TrainConfig  # noqa: E402
from pretrainer.model.init import init_weights  # noqa: E402
from pretrainer.model.loss import IGNORE, LossSettings, chunked_loss  # noqa: E402
from pretrainer.model.masks import Pattern, attend, dense_mask, make_mask  # noqa: E402
from pretrainer.model.memory_plan import is_alone  # noqa: E402
from pretrainer.train.checkpoints.staging import Staging  # noqa: E402
from pretrainer.train.exact import BlockSum, exact_train_step, weights_digest  # noqa: E402
from pretrainer.train.optim.optimizer import build_optimizer  # noqa: E402
from pretrainer.train.optim.scaling import LossScale, first_scale  # noqa: E402
from pretrainer.train.sharding import parallel  # noqa: E402
from pretrainer.train.sharding.parallel import build_model  # noqa: E402
from pretrainer.train.step import MicroBatch, StepResult, train_step  # noqa: E402

CPU, VOCAB, SEQ_LEN, ROWS, STEPS = torch.device("cpu"), 1000, 128, 2, 4
SMALL = ModelConfig(layers=2, hidden=128, heads=4, kv_heads=2, ffn_hidden=256)
PLAIN = TrainConfig(steps=STEPS, precision="float32", learning_rate=1e-3)
Check = Callable[[torch.device], float]
CHECKS: dict[str, tuple[Check, float]] = {}  # name -> (gives an error, the largest one allowed)


def check(name: str, limit: float) -> Callable[[Check], Check]:
    def listed(function: Check) -> Check:
        CHECKS[name] = function, limit
        return function

    return listed


def relative(got: Tensor, expected: Tensor) -> float:
    """‖got - expected‖ / ‖expected‖; infinite where it is no number."""
    error = ((got.detach().cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm()).item()
    return error if error == error else float("inf")


# ------------------------------------------------------------------------------------------------------- attention


def documents(rows: int, length: int) -> Tensor:
    """[rows, length]: several in each row, at other places in each."""
    return (torch.arange(length) + 37 * torch.arange(rows)[:, None]) // 50


def attention_error(pattern: Pattern, packed: bool, width: int, device: torch.device) -> float:
    """Of output and gradients in bfloat16 against a dense mask in float64."""
    generator = torch.Generator().manual_seed(0)
    heads, length = (8, 2, 2), 512
    given = [torch.randn(2, each, length, width, generator=generator).bfloat16() for each in heads]
    ids = documents(2, length) if packed else None
    weights = torch.randn(2, 8, length, width, generator=generator)

    def run(there: torch.device, dtype: torch.dtype, make: Callable[..., Any]) -> list[Tensor]:
        q, k, v = (t.to(there, dtype, copy=True).requires_grad_() for t in given)
        mask = make(pattern, length, length, None if ids is None else ids.to(there), there)
        out = attend(q, k, v, mask)
        return [out, *torch.autograd.grad((out * weights.to(there, out.dtype)).sum(), (q, k, v))]

    got = run(device, torch.bfloat16, lambda *a: make_mask(*a, head_width=width))
    return max(relative(a, b) for a, b in zip(got, run(CPU, torch.float64, dense_mask), strict=True))


SLOPES = tuple(2.0 ** -(i + 1) for i in range(8))
PATTERNS = {
    "causal": (Pattern(), False),
    "both directions": (Pattern(causal=False), False),
    "causal, documents": (Pattern(), True),
    "both directions, documents": (Pattern(causal=False), True),
    "window, documents": (Pattern(window=64), True),
    "window": (Pattern(window=64), False),
    "ALiBi, documents": (Pattern(slopes=SLOPES), True),
}
for _name, (_pattern, _packed) in PATTERNS.items():
    for _width in (64, 128) if _name == "causal, documents" else (64,):
        check(f"attention: {_name}, {_width} wide", 0.02)(
            lambda device, p=_pattern, d=_packed, w=_width: attention_error(p, d, w, device)  # type: ignore[misc]
        )


# ------------------------------------------------------------------------------------------------------------- loss


def loss_error(dtype: torch.dtype, z_loss: float, seed: float | None, device: torch.device) -> float:
    """Of loss and both gradients against float64, in three chunks of which one is shorter."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1000, 256, generator=generator), torch.randn(5003, 256, generator=generator) * 0.1
    targets = torch.randint(0, 5003, (1000,), generator=generator)
    targets[::7] = IGNORE
    h, w = (t.to(device, dtype).requires_grad_() for t in (hidden, weight))
    scale = None if seed is None else torch.tensor(seed, device=device)
    loss = chunked_loss(h, w, targets.to(device), True, LossSettings(400, z_loss), scale)
    got = [loss.objective, loss.nll, *torch.autograd.grad(loss.objective * (scale or 1.0), (h, w))]
    exact_h, exact_w = (t.detach().cpu().double().requires_grad_() for t in (h, w))
    kept = targets != IGNORE
    logits = exact_h[kept] @ exact_w.T
    nll = nn.functional.cross_entropy(logits, targets[kept], reduction="sum")
    objective = nll + z_loss * logits.logsumexp(-1).square().sum()
    expected = [objective, nll, *torch.autograd.grad(objective * (seed or 1.0), (exact_h, exact_w))]
    return max(relative(a, b.detach()) for a, b in zip(got, expected, strict=True))


check("loss: float32", 1e-5)(lambda device: loss_error(torch.float32, 1e-3, None, device))
check("loss: bfloat16", 0.01)(lambda device: loss_error(torch.bfloat16, 1e-3, None, device))
check("loss: float16, scaled", 0.01)(lambda device: loss_error(torch.float16, 0.0, 512.0, device))


# ------------------------------------------------------------------------------------------------------------- steps


def batches(device: torch.device, packed: bool, step: int) -> list[MicroBatch]:
    """Two micro-batches that can be learned: the next id is a function of the one before."""
    first = torch.randint(0, VOCAB, (2, ROWS, 1), generator=torch.Generator().manual_seed(step))
    ids = ((first + 7 * torch.arange(SEQ_LEN + 1)) % VOCAB).to(device)
    places = torch.arange(SEQ_LEN, device=device).expand(ROWS, -1)
    inside = documents(ROWS, SEQ_LEN).to(device) if packed else None
    return [MicroBatch(one[:, :-1], one[:, 1:], places, inside, seed=step) for one in ids]


def losses(model: ModelConfig, train: TrainConfig, device: torch.device, packed: bool = False) -> Tensor:
    """[STEPS, 2]: loss and gradient norm of the first steps; every one must be applied."""
    torch._dynamo.reset()
    built = build_model(model, VOCAB, train, device)
    init_weights(built, 0)
    optimizer = build_optimizer(built, train)
    scale = LossScale(device, first_scale(2 * ROWS * SEQ_LEN)) if train.precision == "float16" else None
    tokens, found = 2 * ROWS * SEQ_LEN, []
    for step in range(STEPS):
        given = batches(device, packed, step)
        found.append(train_step(built, optimizer, given, 0, tokens, train.learning_rate, 1.0, scale))
    assert all(one.applied for one in found), [one.applied for one in found]
    return torch.tensor([[one.loss, one.grad_norm] for one in found])


EXPERTS = dataclasses.replace(SMALL, moe=MoeConfig(experts=4, top_k=2))
ALIBI = dataclasses.replace(SMALL, positions="alibi", norm="layernorm", ffn="gelu", kv_heads=None)
QK_NORM = dataclasses.replace(SMALL, qk_norm=True, tie_embeddings=True)
KINDS: dict[str, tuple[ModelConfig, dict[str, Any], bool, float]] = {
    "float32": (SMALL, {}, False, 1e-3),
    "float32, documents": (SMALL, {}, True, 1e-3),
    "bfloat16": (SMALL, {"precision": "bfloat16"}, False, 0.03),
    "bfloat16, documents": (SMALL, {"precision": "bfloat16"}, True, 0.03),
    "bfloat16, documents, compiled": (SMALL, {"precision": "bfloat16", "compile": True}, True, 0.03),
    "float32, compiled": (SMALL, {"compile": True}, False, 1e-3),
    "recomputed": (SMALL, {"activation_checkpointing": "full"}, False, 1e-3),
    "recomputed in part": (SMALL, {"activation_checkpointing": "selective"}, False, 1e-3),
    "recomputed, compiled": (SMALL, {"activation_checkpointing": "full", "compile": True}, False, 1e-3),
    "recomputed in part, compiled": (SMALL, {"activation_checkpointing": "selective", "compile": True}, False, 1e-3),
    "recomputed in part, documents, compiled": (
        SMALL, {"precision": "bfloat16", "activation_checkpointing": "selective", "compile": True}, True, 0.03,
    ),
    "float16": (SMALL, {"precision": "float16"}, False, 0.03),
    "float8": (SMALL, {"precision": "bfloat16", "float8": True}, False, 0.2),
    "float8, compiled": (SMALL, {"precision": "bfloat16", "float8": True, "compile": True}, False, 0.2),
    "offloaded": (SMALL, {"precision": "bfloat16", "cpu_offload": True}, False, 0.03),
    "bfloat16, FSDP2": (SMALL, {"precision": "bfloat16"}, True, 0.03),
    "bfloat16, FSDP2, compiled": (SMALL, {"precision": "bfloat16", "compile": True}, False, 0.03),
    "float8, FSDP2, compiled": (SMALL, {"precision": "bfloat16", "float8": True, "compile": True}, False, 0.2),
    "Muon": (SMALL, {"precision": "bfloat16", "optimizer": "muon"}, False, 0.03),
    "moments in bfloat16": (SMALL, {"optimizer_state": "bfloat16"}, False, 0.01),
    "experts": (EXPERTS, {"precision": "bfloat16"}, False, 0.05),
    "experts, compiled": (EXPERTS, {"precision": "bfloat16", "compile": True}, True, 0.05),
    "ALiBi, GELU": (ALIBI, {"precision": "bfloat16"}, True, 0.03),
    "QK-norm, compiled": (QK_NORM, {"precision": "bfloat16", "compile": True}, False, 0.03),
}  # fmt: skip


def step_error(kind: str, device: torch.device) -> float:
    """Of losses and gradient norms against plain float32 steps on the CPU."""
    model, changes, packed, limit = KINDS[kind]
    keep = {name: changes[name] for name in ("optimizer", "optimizer_state") if name in changes}
    expected = losses(model, dataclasses.replace(PLAIN, **keep), CPU, packed)
    if "FSDP2" in kind:
        parallel.is_alone = lambda _train, _workers: False
    got = losses(model, dataclasses.replace(PLAIN, **changes), device, packed)
    parallel.is_alone = is_alone
    assert expected[-1, 0] < expected[0, 0] - 0.02, "nothing was learned"
    error = ((got - expected).abs() / expected).max().item()
    assert error <= limit, f"{error:.2e}: got {got.tolist()}, and on the CPU {expected.tolist()}"
    return error


for _name, (_model, _changes, _packed, _limit) in KINDS.items():
    check(f"step: {_name}", _limit)(lambda device, kind=_name: step_error(kind, device))  # type: ignore[misc]


@check("step: the host never waits", 0)
def waits(device: torch.device) -> float:
    """torch raises when the host asks the GPU for something during a step; the numbers are read afterwards."""
    train = dataclasses.replace(PLAIN, precision="bfloat16", compile=True)
    model = build_model(EXPERTS, VOCAB, train, device)
    init_weights(model, 0)
    optimizer, given = build_optimizer(model, train), batches(device, True, 0)
    found: list[StepResult] = []
    for step in range(4):
        if device.type == "cuda" and step == 2:
            torch.cuda.set_sync_debug_mode("error")
        found.append(train_step(model, optimizer, given, 0, 2 * ROWS * SEQ_LEN, 1e-3, 1.0))
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    return float(not all(one.applied for one in found))


def exact_difference(precision: str, device: torch.device) -> float:
    """0 where slot blocks in another order give the same weights."""
    return float(exact_digest(device, precision) != exact_digest(device, precision, reverse=True))


for _precision in ("float32", "bfloat16"):
    check(f"step: exact, the same bits in another order, {_precision}", 0)(
        functools.partial(exact_difference, _precision)
    )


def exact_digest(device: torch.device, precision: str, reverse: bool = False) -> str:
    """Weights after some steps of exact mode, in deterministic kernels."""
    torch.use_deterministic_algorithms(True)
    try:
        train = dataclasses.replace(PLAIN, precision=precision, exact=True)  # type: ignore[arg-type]
        model = build_model(SMALL, VOCAB, train, device)
        init_weights(model, 0)
        optimizer, total = build_optimizer(model, train), BlockSum(model, 2, 2 * ROWS * SEQ_LEN)
        for step in range(STEPS):
            blocks = [[one] for one in batches(device, True, step)][:: -1 if reverse else 1]
            exact_train_step(model, optimizer, blocks, 2 * ROWS * SEQ_LEN, 1e-3, 1.0, total)
        return weights_digest(model)
    finally:
        torch.use_deterministic_algorithms(False)


@check("checkpoint: a copy taken beside the step is that of the step", 0)
def staged(device: torch.device) -> float:
    """Training goes on while the copy is held; going back to it gives the same losses again."""
    train = dataclasses.replace(PLAIN, precision="bfloat16")
    model = build_model(SMALL, VOCAB, train, device)
    init_weights(model, 0)
    optimizer, tokens = build_optimizer(model, train), 2 * ROWS * SEQ_LEN

    def steps() -> list[float]:
        torch.use_deterministic_algorithms(True)
        given = [batches(device, False, step) for step in range(2)]
        done = [train_step(model, optimizer, one, 0, tokens, 1e-3, 1.0).loss for one in given]
        torch.use_deterministic_algorithms(False)
        return done

    steps()
    copy = Staging(copies=True).take(model, optimizer)
    first = steps()
    copy.restore(model, optimizer)
    return max(abs(a - b) for a, b in zip(first, steps(), strict=True))


def fed(device: torch.device, beside: bool) -> tuple[list[str], list[float]]:
    """Digests read back and losses of some steps, whose blocks are copied beside the step before or in its stream."""
    from pretrainer.config import Config, DataConfig, SourceConfig
    from pretrainer.schema import Batch
    from pretrainer.train.batch import ReadBack
    from pretrainer.train.feed import Feed
    from pretrainer.train.stepper import Stepper, prepare

    rows, draw = 2 * ROWS, np.random.default_rng(0)
    source = SourceConfig(name="drawn", uris=("python-stdlib://",))
    data = DataConfig(sources=(source,), seq_len=SEQ_LEN, slot_sequences=rows)
    train = dataclasses.replace(PLAIN, global_batch_tokens=rows * SEQ_LEN, micro_batch_sequences=ROWS)
    config = Config(data=data, model=SMALL, train=train)
    model = build_model(SMALL, VOCAB, train, device)
    init_weights(model, 0)
    stepper = Stepper(config, model, build_optimizer(model, train), None, None)
    feed = Feed(device if beside else CPU)
    kept: list[ReadBack] = []
    results: list[StepResult] = []
    for step in range(8):
        tokens = draw.integers(0, VOCAB, (rows, SEQ_LEN + 1)).astype(np.uint32)
        batch = Batch(0, step, 0, tokens, np.array([0, 50, 300], np.int32), np.full(rows, SEQ_LEN + 1, np.int32))
        given = feed.prepare(functools.partial(prepare, config, None, device, None, step), [(step, batch)])
        kept.append(ReadBack([one.tokens for one in given]))
        results.append(stepper.run(given, 1, given[0].targets, 1e-3, 1.0))
        feed.launched()
    return [one.digests()[0] for one in kept], [one.loss for one in results]


if importlib.util.find_spec("pyarrow"):  # the records of the stream know Arrow

    @check("feed: blocks copied beside the step are those of the stream", 0)
    def feed(device: torch.device) -> float:
        torch.use_deterministic_algorithms(True)
        try:
            return float(fed(device, True) != fed(device, False) or fed(device, True)[0] != fed(CPU, False)[0])
        finally:
            torch.use_deterministic_algorithms(False)


# -------------------------------------------------------------------------------------------------------------- main


def results(names: list[str], device: torch.device) -> Iterator[tuple[str, float, float, str]]:
    """(name, error, limit, what went wrong) of each check."""
    for name in names:
        function, limit = CHECKS[name]
        try:
            yield name, function(device), limit, ""
        except Exception:  # noqa: BLE001  # a check that raises is off, and the others go on
            yield name, float("inf"), limit, traceback.format_exc(limit=-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="a word in the names of the checks to run")
    parser.add_argument("--part", default="1/1", help="the i-th of n parts of them, as i/n")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.compiler.set_stance("force_eager")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    off, why, (part, parts) = 0, [], map(int, options.part.split("/"))
    named = [name for name in CHECKS if options.only in name][part - 1 :: parts]
    for name, error, limit, trouble in results(named, device):
        is_off = not error <= limit
        off += is_off
        print(f"{'OFF' if is_off else 'ok ':<4}{name:<62}{error:>10.2e} of {limit:.0e}", flush=True)
        why += [f"{name}\n{trouble}"] if trouble else []
    print(*why, sep="\n")
    print(f"{off} off")
    dist.destroy_process_group()
    sys.exit(int(off > 0))


if __name__ == "__main__":
    main()
