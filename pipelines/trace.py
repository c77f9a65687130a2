"""Which documents a step trained on, and in which steps a document was trained.

    python -m pipelines.trace RUN --step N
    python -m pipelines.trace RUN --document ID

RUN is a run folder (path or URI) or the name of a run under run.storage. ID is a document's id, or a part of it (of a
URL, say) when no document has it whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.driver.checkpoints import run_config
from pipelines.driver.cli import run_main
from pretrainer.config import Config, RunConfig
from pretrainer.data.curriculum import Curriculum
from pretrainer.data.ledger.lines import begun_plans
from pretrainer.data.prologue import Frozen, data_folder, thaw
from pretrainer.data.trace import Kept, NotTrained, SourceTrace, find_dropped, find_kept
from pretrainer.errors import StreamError, UserError
from pretrainer.storage import Store, resolve_run
from pretrainer.train.batch import block_digest, step_digest, to_tensor
from pretrainer.train.checkpoints.committed import committed_checkpoint
from pretrainer.train.telemetry.auditlog import Verdict, examine, read_log

MOST_DOCUMENTS = 20  # that a part of an id may match


@dataclass(frozen=True)
class Traced:
    """A run with what tracing needs of it."""

    config: Config
    data: Frozen
    verdict: Verdict
    committed_steps: int
    curriculum: Curriculum
    sources: list[list[SourceTrace]]  # by line of the curriculum, as far as the run has come, and by source

    @classmethod
    def open(cls, run: Store) -> Traced:
        config = run_config(run)
        folder = data_folder(config, run)
        data = thaw(config, folder, run.child("data"))
        committed = committed_checkpoint(run)
        steps = committed[1] if committed else 0
        curriculum = Curriculum(data.segments, config.slot_blocks_per_step)
        verdict = examine(read_log(run), config, curriculum, steps)
        plans = begun_plans(folder, data.plans, data.segments)
        sources = [[SourceTrace(plan) for plan in of_line] for of_line in plans]
        return cls(config, data, verdict, steps, curriculum, sources)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.trace", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, help="name the documents of this step")
    what.add_argument("--document", help="name the steps and checkpoints of this document, or why there are none")
    options = parser.parse_args(arguments)
    traced = Traced.open(resolve_run(options.run, options.storage))
    lines = trace_step(traced, options.step) if options.step is not None else trace_document(traced, options.document)
    for line in lines:
        print(line, flush=True)
    return 0


def trace_step(traced: Traced, step: int) -> Iterator[str]:
    """A row for each part of a document in the step; StreamError if its digest is not the logged one."""
    logged = traced.verdict.lines
    if not 0 <= step < len(logged):
        raise UserError(f"step {step} is not in the audit log, which has {len(logged)} steps: give one from 0 on")
    digests, per_step = [], traced.config.slot_blocks_per_step
    yield "source  slot block  sequence  tokens  shard  row  document"
    for number in range(step * per_step, (step + 1) * per_step):
        source, nth = traced.curriculum.expected(number)
        batch, passages = traced.sources[traced.curriculum.line_of(number)][source].block(nth)
        digests.append(block_digest(to_tensor(batch)))
        for p in passages:
            yield f"{p.source}  {number}  {p.sequence}  {p.tokens}  {p.shard}  {p.row}  {p.document}"
    if step_digest(digests) != logged[step].digest:
        raise StreamError(
            f"step {step}: the token shards give digest {step_digest(digests)}, the audit log has "
            f"{logged[step].digest}; the code that packs is not the run's, or a file was changed"
        )
    yield f"step {step}: {logged[step].tokens:,} tokens; the digest of these documents is the one in the audit log"


def trace_document(traced: Traced, wanted: str) -> Iterator[str]:
    """Every step and checkpoint of a document, in all epochs, or why it was not trained."""
    for exact in (True, False):
        plans = traced.data.plans
        kept = [found for plan in plans for found in progress("token shards", find_kept(plan, wanted, exact))]
        dropped = [
            found
            for plan in plans
            if not (exact and kept)
            for found in progress("raw input", find_dropped(plan, wanted, exact))
        ]
        if kept or dropped:
            break
    else:
        raise UserError(f"no document of the run has {wanted!r} in its id: it may not have been read yet")
    yield from (line for found in kept[:MOST_DOCUMENTS] for line in passages_of(traced, found))
    yield from (describe(found) for found in dropped[:MOST_DOCUMENTS])
    more = max(0, len(kept) - MOST_DOCUMENTS) + max(0, len(dropped) - MOST_DOCUMENTS)
    if more:
        yield f"and {more:,} more documents: give more of the id"


def passages_of(traced: Traced, found: Kept) -> Iterator[str]:
    """A row for each sequence that holds a part of the document."""
    plan = traced.data.plans[found.source]
    name = f"{plan.source.name}: {found.document}"
    for epoch in range(plan.source.max_epochs):
        lines = [line for of_line in range(len(traced.sources)) for line in _in_line(traced, found, epoch, of_line)]
        yield from (f"{name}: epoch {epoch}: {line}" for line in lines or ["not packed yet"])


def _in_line(traced: Traced, found: Kept, epoch: int, line: int) -> Iterator[str]:
    """A row for each sequence of one line of the curriculum."""
    source = traced.sources[line][found.source]
    for sequence, tokens in source.sequences_of(found.key, found.number, epoch):
        number = traced.curriculum.number(line, found.source, sequence // source.plan.config.slot_sequences)
        if number is None:
            yield f"in sequence {sequence}, which no step takes: the run has another sequence length by then, or ends"
        else:
            when = when_trained(traced, number // traced.config.slot_blocks_per_step)
            yield f"{when} ({tokens} tokens, slot block {number}, sequence {sequence})"


def when_trained(traced: Traced, step: int) -> str:
    """The step and the first checkpoint with it, as far as the run has come."""
    if step >= len(traced.verdict.lines):
        return f"not trained yet, its turn is step {step}"
    if step >= traced.committed_steps:
        return f"trained in step {step}, in no committed checkpoint yet"
    return f"trained in step {step}, in the checkpoint of step {traced.verdict.checkpoint_after[step]:,} and later"


def describe(found: NotTrained) -> str:
    """One row about a document that no sequence holds."""
    because = f" of {found.duplicate_of} (similarity {found.similarity:.2f})" if found.duplicate_of else ""
    return f"{found.source}: {found.document}: not trained, {found.reason}{because}"


def progress(what: str, found: Iterator) -> Iterator:
    """The documents of a scan; how many chunks it has read goes to the terminal."""
    chunks = 0
    for one in found:
        if one is None:
            chunks += 1
            print(f"\r{what}: {chunks:,} chunks", end="", file=sys.stderr, flush=True)
        else:
            yield one
    print(file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
