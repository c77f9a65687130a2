"""Prove from a run's audit log that every step was trained exactly once, on the stream that its config defines.

    python -m pipelines.verify RUN [--recompute A:B]

RUN is a run folder (path or URI) or the name of a run under run.storage. --recompute derives the slot blocks of steps
A to B - 1 from the raw input again, without anything that the run curated, and compares them with the log; everything
before them is read again too. Exit code 0 when all is proved, 5 with the first difference otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence

from pipelines.driver.checkpoints import run_config
from pipelines.driver.cli import run_main
from pretrainer.config import Config, RunConfig
from pretrainer.data.curriculum import Curriculum
from pretrainer.data.prologue import Frozen, data_folder, refuse_changes, thaw
from pretrainer.data.replay import fresh_plans, replay_blocks
from pretrainer.data.tokenizer.words import mask_vocabulary_of
from pretrainer.errors import StreamError, UserError
from pretrainer.storage import Store, resolve_run
from pretrainer.train.batch import block_digest, step_digest, to_tensor
from pretrainer.train.checkpoints.checkpoint import STATE_FILE
from pretrainer.train.checkpoints.committed import committed_checkpoint
from pretrainer.train.objective import how_of, lesson
from pretrainer.train.stability.healing import read_heals
from pretrainer.train.stability.policies import Heal
from pretrainer.train.telemetry.auditlog import Line, Verdict, compare_digest, examine, read_log


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--recompute", metavar="A:B", help="derive steps A to B - 1 from the raw input and compare")
    options = parser.parse_args(arguments)
    run = resolve_run(options.run, options.storage)
    config = run_config(run)
    frozen = thaw(config, data_folder(config, run), run.child("data"))
    committed = committed_checkpoint(run)
    steps = committed[1] if committed else 0
    curriculum = Curriculum(frozen.segments, config.slot_blocks_per_step)
    verdict = examine(read_log(run), config, curriculum, steps)
    verdict.problems += digest_problems(run, verdict, committed)
    verdict.problems += healing_problems(read_heals(run), verdict.lines)
    print("\n".join(table(run, verdict, steps)), flush=True)
    if options.recompute and not verdict.problems:
        first, end = step_range(options.recompute, len(verdict.lines))
        verdict.problems += recompute(config, frozen, run, verdict.lines[first:end])
    return conclude(verdict, steps)


def conclude(verdict: Verdict, steps: int) -> int:
    """Print the verdict; its exit code."""
    if not verdict.problems:
        print(f"verdict: {steps:,} steps, each trained once, in order")
        return 0
    more = f"; {len(verdict.problems) - 1} more" if len(verdict.problems) > 1 else ""
    print(f"verdict: the log does not prove it. First difference: {verdict.problems[0]}{more}", file=sys.stderr)
    return StreamError.exit_code


def digest_problems(run: Store, verdict: Verdict, committed: tuple[str, int] | None) -> list[str]:
    """The chain of the log against the one that the committed checkpoint holds, and against the summary's."""
    problems: list[str] = []
    if committed is not None:
        state = json.loads(run.read(f"{committed[0]}/{STATE_FILE}"))["extra"]
        problems += compare_digest(verdict, committed[1], state["order_digest"], f"checkpoint {committed[0]}")
    if run.exists("summary.json"):
        summary = json.loads(run.read("summary.json"))
        if summary["steps"] <= len(verdict.lines):
            problems += compare_digest(verdict, summary["steps"], summary["order_digest"], "summary.json")
    return problems


def healing_problems(heals: Sequence[Heal], lines: Sequence[Line]) -> Iterator[str]:
    """A step was left out if, and only if, a decision says so; float16's overflows need none, older logs have none."""
    left_out = {step: heal for heal in heals for step in range(heal.first_step, heal.end_step)}
    for line in lines:
        heal = left_out.get(line.step)
        if heal is not None and line.applied:
            yield f"step {line.step}: it was applied, and decision {heal.number} leaves it out"
        elif heal is None and not line.applied and line.reason not in ("", "overflow"):
            yield f"step {line.step}: it was not applied ({line.reason}), and no decision says so"


def table(run: Store, verdict: Verdict, steps: int) -> list[str]:
    """What was found, in a few lines."""
    waiting = len(verdict.lines) - steps
    rows = [
        ("run", run.uri),
        ("steps", f"{steps:,} committed" + (f", {waiting} logged and not committed" if waiting > 0 else "")),
        ("world sizes", ", ".join(f"{a} to {b}: {w}" for a, b, w in verdict.world_sizes()) or "-"),
    ]
    rows += [("sequences", f"{name}: 0 to {end:,}") for name, end in sorted(verdict.sequences(steps).items())]
    rows += [
        (
            "restart",
            f"attempt {r.attempt} went on at step {r.step} with {r.world_size} workers, "
            f"{r.replayed_steps} logged steps trained again",
        )
        for r in verdict.restarts
    ]
    left_out = [line for line in verdict.lines if not line.applied]
    rows += [("not applied", f"step {line.step}: {line.reason or 'not finite'}") for line in left_out]
    rows += [("order digest", verdict.lines[steps - 1].order_digest if 0 < steps <= len(verdict.lines) else "-")]
    return [f"  {name:<14}{value}" for name, value in rows]


def step_range(text: str, steps: int) -> tuple[int, int]:
    """A:B as (A, B) with 0 <= A < B <= steps; either may be left out."""
    first, colon, end = text.partition(":")
    try:
        found = int(first or 0), int(end) if end else steps
    except ValueError:
        found = -1, -1
    if not colon or not 0 <= found[0] < found[1] <= steps:
        raise UserError(f"--recompute {text} is no range of steps: give A:B with 0 <= A < B <= {steps}")
    return found


def recompute(config: Config, frozen: Frozen, run: Store, lines: Sequence[Line]) -> Iterator[str]:
    """Derive the steps of these lines from the raw input; the first one that differs."""
    data = data_folder(config, run)
    refuse_changes(config, frozen, data, run.child("data"))
    per_step, done = config.slot_blocks_per_step, 0
    with tempfile.TemporaryDirectory(prefix="pretrainer-recompute-") as folder:
        plans, first = fresh_plans(frozen.plans, Store(folder)), lines[0].step * per_step
        curriculum = Curriculum(frozen.segments, per_step)
        blocks = replay_blocks(plans, curriculum, first, first + per_step * len(lines))
        how = how_of(config, mask_vocabulary_of(config, data.uri))
        for line in lines:
            batches = [next(blocks) for _ in range(per_step)]
            digest = step_digest([block_digest(to_tensor(batch)) for batch in batches])
            numbers = range(line.step * per_step, (line.step + 1) * per_step)
            targets = sum(lesson(batch, n, how).targets for n, batch in zip(numbers, batches, strict=True))
            if (digest, targets) != (line.digest, line.targets):
                yield (
                    f"step {line.step}: the raw input gives digest {digest} with {targets} targets, "
                    f"the log has {line.digest} with {line.targets}"
                )
                return
            done += 1
            print(f"\r  recomputed    {done} of {len(lines)} steps", end="", file=sys.stderr, flush=True)
    print(f"\n  recomputed    steps {lines[0].step} to {lines[-1].step} from the raw input: equal", flush=True)


if __name__ == "__main__":
    run_main(main)
