"""Speed and memory of training steps on one GPU, with torch alone: no Ray, a process group of one rank.

    python tests/benchmarks/gpu_step.py --out gpu_step.json              # all rows, about 6 minutes on an H200
    python tests/benchmarks/gpu_step.py --rows 124m-compiled,8b-compiled --steps 5 --profile kernels.txt
    python tests/benchmarks/gpu_step.py --tiny                           # every row on the CPU, at toy size

Tokens are random and every row is one text. The model is that of the trainer (`build_model`, `build_optimizer`,
`train_step`); only its weights are drawn on the device, because drawing billions by name on the CPU takes minutes.
A step of the 8B rows has several micro-batches, as a run has. Rows are written to --out as they end; one that runs out
of memory or cannot be built says so and the next one begins.

| row | bar, on an H200 |
|---|---|
| 124m-compiled | 500,000 tokens/s at 1,024 |
| 1b-compiled | 50 % MFU at 2,048 |
| 8b-compiled | 55 % MFU at 8,192, as many layers of Llama 3 8B as fit |
| 8b-float8 | 1.15 times the tokens/s of 8b-compiled |
| all | peak memory within 10 % of the plan where nothing is compiled; torch.compile keeps less |
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # a bare machine has a copy of the repository, not installed

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from pretrainer.config import ModelConfig, TrainConfig  # noqa: E402
from pretrainer.model.activations import Pass  # noqa: E402
from pretrainer.model.flops import GIB, flops_per_token, model_flops_utilization  # noqa: E402
from pretrainer.model.init import init_constant  # noqa: E402
from pretrainer.model.memory_plan import USABLE, MemoryPlan, StepSetup, is_alone, sharded_plan  # noqa: E402
from pretrainer.model.presets import parameter_count, resolve  # noqa: E402
from pretrainer.train.optim.optimizer import build_optimizer  # noqa: E402
from pretrainer.train.sharding.parallel import build_model  # noqa: E402
from pretrainer.train.step import MicroBatch, train_step  # noqa: E402

DOCUMENT = 500  # tokens, in rows of packed documents


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    preset: str
    vocab_size: int
    seq_len: int
    rows: int  # of a micro-batch
    micro_batches: int = 1
    train: tuple[tuple[str, Any], ...] = ()
    as_many_layers_as_fit: bool = False
    documents: bool = False


COMPILED, FLOAT8 = ("compile", True), ("float8", True)
SMALL: tuple[Any, ...] = ("125m", 50_304, 1024, 32)
LARGE: tuple[Any, ...] = ("1b", 128_256, 2048, 8, 2)
LLAMA: tuple[Any, ...] = ("llama3-8b", 128_256, 8192, 1, 4)


def checkpointed(kind: str) -> tuple[str, str]:
    return ("activation_checkpointing", kind)


ROWS = (
    Row("124m", *SMALL),
    Row("124m-compiled", *SMALL, 1, (COMPILED,)),
    Row("124m-documents", *SMALL, 1, (COMPILED,), documents=True),
    Row("1b", *LARGE),
    Row("1b-compiled", *LARGE, (COMPILED,)),
    Row("8b", *LLAMA, (), True),
    Row("8b-compiled", *LLAMA, (COMPILED,), True),
    Row("8b-selective", *LLAMA, (COMPILED, checkpointed("selective")), True),
    Row("8b-full", *LLAMA, (COMPILED, checkpointed("full")), True),
    Row("8b-float8", *LLAMA, (COMPILED, FLOAT8), True),
)


def tiny(row: Row) -> tuple[Row, ModelConfig]:
    """The row at toy size."""
    model = dataclasses.replace(
        resolve(ModelConfig(preset=row.preset)), preset=None, layers=2, hidden=64, heads=4, kv_heads=2, ffn_hidden=128
    )
    small = dataclasses.replace(row, vocab_size=512, seq_len=64, rows=2, micro_batches=min(2, row.micro_batches))
    return small, model


def setup(row: Row, train: TrainConfig, device: torch.device) -> StepSetup:
    run = Pass(
        rows=row.rows,
        seq_len=row.seq_len,
        half=True,
        device="cuda" if device.type == "cuda" else "cpu",
        documents=row.documents,
        checkpointing=train.activation_checkpointing,
    )
    return StepSetup(run=run, micro_batches=row.micro_batches, alone=is_alone(train, 1))


def sized(row: Row, train: TrainConfig, device: torch.device) -> ModelConfig:
    """The preset; with as_many_layers_as_fit as many layers as the plan has room for on this GPU without checkpoints,
    so that all rows of the preset have the same."""
    model = resolve(ModelConfig(preset=row.preset))
    if not row.as_many_layers_as_fit or device.type != "cuda":
        return model
    plain = setup(row, dataclasses.replace(train, activation_checkpointing="none"), device)
    room = USABLE * torch.cuda.get_device_properties(device).total_memory
    models = [dataclasses.replace(model, preset=None, layers=layers) for layers in range(model.layers, 0, -1)]
    return next(one for one in models if sharded_plan(one, row.vocab_size, plain).total <= room)


def micro_batches(row: Row, device: torch.device) -> list[MicroBatch]:
    columns = torch.arange(row.seq_len, device=device).repeat(row.rows, 1)
    documents = columns // DOCUMENT if row.documents else None
    positions = columns % DOCUMENT if row.documents else columns
    shape = (row.micro_batches, row.rows, row.seq_len + 1)
    tokens = torch.randint(0, row.vocab_size, shape, device=device)
    return [MicroBatch(one[:, :-1].contiguous(), one[:, 1:].contiguous(), positions, documents) for one in tokens]


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights drawn on the device, all with one deviation."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        local, constant = getattr(tensor, "to_local", lambda tensor=tensor: tensor)(), init_constant(name)
        local.normal_(0.0, 0.02) if constant is None else local.fill_(constant)


REPEATS = 3


def seconds_of(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Mean of some steps, a few times over, behind three that warm up and compile. As in a run the host does not wait
    for the device between steps."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        step()
    wait()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        times.append((time.perf_counter() - begun) / steps)
    return times


def measure(
    row: Row, model_config: ModelConfig, train: TrainConfig, steps: int, device: torch.device, profile: Path | None
) -> dict[str, Any]:
    """Numbers of one row."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = build_model(model_config, row.vocab_size, train, device)
    fill(model)
    optimizer, micro = build_optimizer(model, train), micro_batches(row, device)
    tokens = row.micro_batches * row.rows * row.seq_len

    def step() -> None:
        train_step(model, optimizer, micro, 0, tokens, 1e-4, 1.0)

    seconds = statistics.median(seconds_of(step, steps, device))
    memory_of = memory(sharded_plan(model_config, row.vocab_size, setup(row, train, device)), device)
    if profile is not None:
        write_kernels(profile, row.name, step)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    flops = flops_per_token(model_config, row.vocab_size, row.seq_len)
    return {
        "device": name,
        "parameters": parameter_count(model_config, row.vocab_size),
        "layers": model_config.layers,
        "tokens_per_step": tokens,
        "step_s": seconds,
        "tokens_per_s": tokens / seconds,
        "mfu": model_flops_utilization(tokens / seconds, flops, 1, name),
        **memory_of,
    }


def write_kernels(path: Path, name: str, step: Callable[[], object]) -> None:
    """Add what one step spends its time in on the device to a file."""
    with torch.profiler.profile() as profiler:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=90)
    with path.open("a") as file:
        file.write(f"{name}\n{table}\n")


def memory(plan: MemoryPlan, device: torch.device) -> dict[str, Any]:
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "peak_gib": None if peak is None else peak / GIB,
        "plan_gib": plan.total / GIB,
        "plan_over_peak": None if peak is None else plan.total / peak,
        "plan": dataclasses.asdict(plan),
    }


def release() -> None:
    """Let the next row have the whole GPU."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_row(row: Row, steps: int, is_tiny: bool, device: torch.device, profile: Path | None = None) -> dict[str, Any]:
    """The row's numbers, or why there are none."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    missing = [name for name, _value in row.train if name not in known]
    if missing:
        return {"not_there": f"train.{missing[0]}"}
    train = TrainConfig(steps=1, precision="bfloat16", **dict(row.train))
    row, model = tiny(row) if is_tiny else (row, sized(row, train, device))
    try:
        return measure(row, model, train, steps, device, profile)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    finally:
        release()


def shown(value: Any, style: str) -> str:
    return "-" if value is None else format(value, style)


HEAD = (
    f"{'row':<16}{'M params':>9}{'layers':>8}{'step ms':>10}{'tokens/s':>12}{'MFU':>8}"
    f"{'peak GiB':>10}{'plan GiB':>10}{'ratio':>8}"
)


def line(name: str, found: dict[str, Any]) -> str:
    if "step_s" not in found:
        return f"{name:<16}" + (found.get("error") or f"{found['not_there']} is not there")
    return (
        f"{name:<16}{found['parameters'] / 1e6:>9,.0f}{found['layers']:>8}{found['step_s'] * 1e3:>10,.1f}"
        f"{found['tokens_per_s']:>12,.0f}{shown(found['mfu'], '.1%'):>8}{shown(found['peak_gib'], '.2f'):>10}"
        f"{found['plan_gib']:>10.2f}{shown(found['plan_over_peak'], '.3f'):>8}"
    )


def ratios(results: dict[str, dict[str, Any]]) -> list[str]:
    """Tokens per second of pairs of rows."""
    pairs = [("124m-compiled", "124m"), ("1b-compiled", "1b"), ("8b-compiled", "8b"), ("8b-float8", "8b-compiled")]
    pairs += [("8b-selective", "8b-compiled"), ("8b-full", "8b-compiled"), ("124m-documents", "124m-compiled")]
    both = [(a, b) for a, b in pairs if "step_s" in results.get(a, {}) and "step_s" in results.get(b, {})]
    return [f"{a} / {b}: {results[a]['tokens_per_s'] / results[b]['tokens_per_s']:.2f} x" for a, b in both]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="names, by commas")
    parser.add_argument("--steps", type=int, default=5, help="in each of three repeats")
    parser.add_argument("--out", type=Path, help="JSON of all rows")
    parser.add_argument("--profile", type=Path, help="gets a table of kernels for each row")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU, nothing compiled")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    if options.tiny:
        torch.compiler.set_stance("force_eager")
        torch.set_num_threads(1)
    dist.init_process_group("gloo" if options.tiny else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    print(HEAD, flush=True)
    results: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        if row.name in options.rows.split(","):
            results[row.name] = run_row(row, options.steps, options.tiny, device, options.profile)
            print(line(row.name, results[row.name]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(*ratios(results), sep="\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
