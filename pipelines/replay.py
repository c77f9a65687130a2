"""Run a step again, from the checkpoint before it, and compare: a bad batch, or a machine that computed wrong?

    python -m pipelines.replay RUN --step N [--device cuda] [--times 2]

RUN is a run folder (path or URI) or the name of a run under run.storage. The steps between the newest checkpoint up to
step N and N are run too. The whole model must fit on the device. Exit code 0 when loss and gradient norm come out
again, 6 when they do not.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.driver.checkpoints import choose_checkpoints, download
from pipelines.driver.cli import run_main
from pipelines.trace import Traced, trace_step
from pretrainer.config import RunConfig
from pretrainer.data.tokenizer.words import mask_vocabulary_of
from pretrainer.errors import ReplicaError, StreamError, UserError
from pretrainer.schema import Batch
from pretrainer.storage import Store, resolve_run
from pretrainer.train.batch import block_digest, step_digest, to_tensor
from pretrainer.train.stability.healing import Healer, read_heals
from pretrainer.train.stability.replay import Compared, alone, on_one_worker, replay, tolerances


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    run, device = resolve_run(options.run, options.storage), torch.device(options.device)
    traced = Traced.open(run)
    if not 0 <= options.step < len(traced.verdict.lines):
        raise UserError(f"step {options.step} is not in the audit log, which has {len(traced.verdict.lines)} steps")
    start, folder = checkpoint_before(run, options.step)
    print(f"replaying steps {start} to {options.step} on {device}, from {folder}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pretrainer-replay-") as local:
        download(run.child(folder), Path(local))
        rounds = [compare(traced, run, Path(local), options.step, device) for _ in range(options.times)]
    print("\n".join(table(rounds)))
    return conclude(traced, rounds, options.step)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.replay", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--step", type=int, required=True, help="the step to look at")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="torch device (default: %(default)s)")
    parser.add_argument("--times", type=int, default=2, choices=range(1, 10), help="runs of it (default: %(default)s)")
    return parser.parse_args(arguments)


def checkpoint_before(run: Store, step: int) -> tuple[int, str]:
    """(step, folder under the run) of the newest checkpoint, milestones included, that is not behind the step."""
    kept = {at: folder for at, folder in choose_checkpoints(run, "all").items() if at <= step}
    if not kept:
        raise UserError(
            f"no checkpoint up to step {step} is left: train.keep_checkpoints and train.milestone_every_steps say "
            "which stay"
        )
    return max(kept.items())


def compare(traced: Traced, run: Store, checkpoint: Path, last: int, device: torch.device) -> list[Compared]:
    """One round over the steps, each with its line of the audit log."""
    config, data = traced.config, traced.data
    healer = Healer(config.stability, run, 0, -1, read_heals(run), last + 1)
    limits = tolerances(config, device)
    with alone(device):
        results = replay(
            on_one_worker(config), data.vocab_size, mask_vocabulary_of(config, data.plans[0].data_uri), checkpoint,
            lambda step: logged_blocks(traced, step), healer, last, device,
        )  # fmt: skip
        return [Compared(traced.verdict.lines[step], result, limits) for step, result in results]


def logged_blocks(traced: Traced, step: int) -> list[tuple[int, Batch]]:
    """The step's slot blocks from the token shards; StreamError if they are not those that were trained."""
    per_step, curriculum = traced.config.slot_blocks_per_step, traced.curriculum
    blocks = []
    for number in range(step * per_step, (step + 1) * per_step):
        source, nth = curriculum.expected(number)
        blocks.append((number, traced.sources[curriculum.line_of(number)][source].block(nth)[0]))
    digest = step_digest([block_digest(to_tensor(batch)) for _number, batch in blocks])
    if digest != traced.verdict.lines[step].digest:
        raise StreamError(f"step {step}: the token shards give another digest than the audit log: a file was changed")
    return blocks


def table(rounds: Sequence[Sequence[Compared]]) -> list[str]:
    """A row per step and round."""

    def number(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.6f}"

    rows = [f"{'step':>8}{'loss then':>14}{'now':>14}{'gradient then':>16}{'now':>14}  "]
    for steps in zip(*rounds, strict=True):
        for one in steps:
            line, result = one.line, one.result
            rows.append(
                f"{line.step:>8}{number(line.loss):>14}{result.loss:>14.6f}{number(line.grad_norm):>16}"
                f"{result.grad_norm:>14.6f}  {'same' if one.is_same else 'DIFFERENT'}"
                f"{'' if line.applied else f', was left out: {line.reason}'}"
            )
    return rows


def conclude(traced: Traced, rounds: Sequence[Sequence[Compared]], step: int) -> int:
    """Say what it means; the exit code."""
    last = [steps[-1] for steps in rounds]
    numbers = {(one.result.loss, one.result.grad_norm) for one in last}
    first_odd = next((one.line.step for one in rounds[0] if not one.is_same), None)
    line = last[0].line
    if first_odd is None:
        print(f"step {step} comes out again: what it shows is the batch's or the config's doing, not the machine's")
        if not line.applied:
            print("\n".join(trace_step(traced, step)))
        return 0
    if len(numbers) > 1 and traced.config.train.exact:
        print(f"step {step} comes out differently each time: this machine does not compute the same twice")
    else:
        print(
            f"step {first_odd} does not come out again: what was logged (attempt {line.attempt}, {line.world_size} "
            "workers) or what this machine computes is wrong. Replay it on another machine: if that agrees with this "
            "one, test the nodes of that attempt (audit/attempts, the Ray dashboard's logs)"
        )
    return ReplicaError.exit_code


if __name__ == "__main__":
    run_main(main)
