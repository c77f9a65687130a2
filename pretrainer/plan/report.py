"""A plan as tables of words: the terminal and the page show the same ones."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pretrainer.config import ModelConfig
from pretrainer.model.flops import GIB
from pretrainer.model.memory_plan import PARTS, USABLE
from pretrainer.model.presets import block_parameters
from pretrainer.plan.batch import BATCH_LAWS, PLANNED_BY
from pretrainer.plan.cluster import Load, parallel_degrees, possible
from pretrainer.plan.hardware import cost
from pretrainer.plan.laws import (
    FRONTIERS,
    REFIT,
    disagreements,
    kaplan_critical_batch_tokens,
    kaplan_least_tokens,
    kaplan_loss,
    kaplan_loss_of_compute,
)
from pretrainer.plan.memory import Arrangement, memory_of
from pretrainer.plan.planner import Plan
from pretrainer.plan.repeats import REPEAT_DECAY, best_with_repeats, overtraining, repeated_loss
from pretrainer.plan.units import dollars, duration, short

Row = Sequence[str]

FITTED = (70e6, 16e9)
"""Parameters of the runs that the parametric losses were fitted to (Hoffmann et al. 2022, abstract)."""
WIDTH = 120
CLUSTERS = 7
"""Numbers of GPUs that are shown."""
MOST_PASSES = 4
"""Up to so many passes repeated tokens are nearly as good as new ones (Muennighoff et al. 2023, abstract)."""
WORTHLESS_PASSES = 1 + REPEAT_DECAY
"""From here on one more pass is worth less than 1/e of new tokens."""


@dataclass(frozen=True)
class Table:
    """Rows under a head; the head is empty for names and values. Sentences come below."""

    title: str
    head: Row
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    words: Sequence[int] = (0,)
    """Columns of words; numbers stand to the right."""


def tables(plan: Plan) -> list[Table]:
    return [
        Table("plan", (), _plan_rows(plan), list(_plan_notes(plan))),
        _laws(plan),
        _overtraining(plan),
        _batches(plan),
        _clusters(plan),
        _memory(plan),
        _data(plan),
    ]


def as_text(found: Sequence[Table]) -> str:
    """Aligned columns, and sentences in lines of WIDTH."""
    return "\n\n".join("\n".join(_lines(table)) for table in found)


def _lines(table: Table) -> Iterator[str]:
    yield table.title
    rows = [table.head, *table.rows] if table.head else list(table.rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    is_left = [not table.head or column in table.words for column in range(len(widths))]
    for row in rows:
        cells = zip(row, widths, is_left, strict=True)
        yield "  " + "  ".join(cell.ljust(width) if left else cell.rjust(width) for cell, width, left in cells).rstrip()
    for note in table.notes:
        yield from textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="    ")


# ------------------------------------------------------------------------------------------------------------- the plan


def shape(model: ModelConfig) -> str:
    """A resolved model in words."""
    keys = "" if model.num_kv_heads == model.heads else f" ({model.num_kv_heads} for keys)"
    return f"{model.layers} layers, width {model.hidden:,}, {model.heads} heads{keys}, feed-forward {model.ffn_width:,}"


def _plan_rows(plan: Plan) -> list[Row]:
    run, gpu, spent, split = plan.run, plan.gpu, plan.cost, plan.split
    preset = f"preset {plan.model.preset}: " if plan.model.preset else ""
    slots = f"{run.slot_blocks:,} slot blocks of {run.slot_sequences} x {run.seq_len:,}"
    reached = f"{gpu.flops_per_s / 1e12:.3g} TFLOP/s on each (MFU {gpu.mfu:.0%} of {gpu.peak_flops / 1e12:.4g})"
    alone = duration(cost(split.flops, gpu, run.gpus).days)
    shared, needs = sharing(run), plan.memory
    return [
        ("model", f"{short(plan.parameters)} parameters: {preset}{shape(plan.resolved)}"),
        ("tokenizer", f"{plan.vocab_size:,} pieces"),
        ("tokens", f"{short(plan.tokens)}, {split.ratio:.1f} per parameter"),
        ("compute", f"{split.flops:.3g} FLOPs = 6 N D; {plan.flops:.3g} with attention over {run.seq_len:,} tokens"),
        ("predicted loss", f"{plan.loss:.3f} nats per token ({REFIT.source})" if plan.has_meaningful_loss else "none"),
        ("batch", f"{run.batch_tokens:,} tokens = {slots}; {plan.steps:,} steps"),
        ("learning rate", f"{plan.learning_rate:.1e} at the peak, {plan.warmup_steps:,} steps of warm-up"),
        ("GPUs", f"{run.gpus:,} {gpu.name}{f': {shared}' if shared else ''}"),
        ("memory", f"{needs.total / GIB:.1f} of {gpu.memory_gib:g} GiB on each, at its most in the {needs.moment}"),
        ("speed", f"{reached}, {plan.tokens / (spent.days * 86_400):,.0f} tokens/s in all"),
        ("time", f"{duration(spent.days)}, {spent.gpu_hours:,.4g} GPU-hours ({alone} without attention)"),
        ("cost", f"{dollars(spent.dollars)} at ${gpu.dollars_per_hour:.2f} per GPU-hour"),
    ]


def sharing(run: Arrangement) -> str:
    """How GPUs share the work, in words; empty where nothing is special."""
    words = [
        f"tensor parallel {run.tensor_parallel}" if run.tensor_parallel > 1 else "",
        f"copies of the parameters on groups of {run.shard_gpus}" if run.shard_gpus else "",
        f"activation checkpointing {run.checkpointing}" if run.checkpointing != "none" else "",
        f"{run.micro_sequences} row{'s' * (run.micro_sequences > 1)} a pass" if run.passes > run.blocks_each else "",
    ]
    return ", ".join(word for word in words if word)


def _plan_notes(plan: Plan) -> Iterator[str]:
    prices = plan.request.prices
    yield f"Prices of {prices.date} ({prices.source}); --prices FILE has yours."
    low, high = FITTED
    if not low <= plan.parameters <= high:
        yield f"The law was fitted to models of {short(low)} to {short(high)} parameters: the loss is extrapolated."
    if not plan.has_meaningful_loss:
        known = f"ln({plan.vocab_size:,}) = {math.log(plan.vocab_size):.2f}"
        yield f"Its losses mean nothing here: it gives {plan.loss:.1f}, and a model that knows nothing has {known}."
    if plan.request.base.is_example:
        yield "The config's data is the quickstart's, an example: give --config FILE or --run RUN for yours."


# ----------------------------------------------------------------------------------------------------------- the papers


def _laws(plan: Plan) -> Table:
    """Every law's answer for the compute of the plan."""
    flops, law = plan.split.flops, plan.request.ask.law
    rows = []
    for name, frontier in FRONTIERS.items():
        best = frontier.at(flops)
        loss = REFIT.loss(*best)
        rows.append((name, short(best.parameters), short(best.tokens), f"{best.ratio:.3g}", f"{loss:.3f}"))
    own, blocks = plan.split, plan.resolved.layers * block_parameters(plan.resolved)
    rows.append(("plan", short(own.parameters), short(own.tokens), f"{own.ratio:.3g}", f"{REFIT.loss(*own):.3f}"))
    notes = [
        *(f"Disagreement: {sentence}." for sentence in disagreements(flops, law)),
        *(f"{name}: {frontier.source}." for name, frontier in FRONTIERS.items()),
        f"Kaplan et al. 2020 for the plan: loss {kaplan_loss(blocks, own.tokens):.3f} (equation 1.5), "
        f"{kaplan_loss_of_compute(flops):.3f} at best for this compute (1.3), critical batch "
        f"{short(kaplan_critical_batch_tokens(plan.loss))} tokens at the end (1.4), at least "
        f"{short(kaplan_least_tokens(blocks))} different tokens (4.4).",
    ]
    head = ("law", "parameters", "tokens", "per parameter", "loss")
    return Table(f"best split of {flops:.3g} FLOPs, by law", head, rows, notes)


def _overtraining(plan: Plan) -> Table:
    rows = [
        (
            f"{row.ratio:g}",
            short(row.same_compute.parameters),
            short(row.same_compute.tokens),
            f"+{row.penalty:.4f}",
            short(row.same_loss.parameters),
            short(row.same_loss.tokens),
            f"+{row.extra_compute:.0%}",
            "never" if math.isinf(row.pays_after_tokens) else short(row.pays_after_tokens),
        )
        for row in overtraining(REFIT, plan.split.flops)
    ]
    head = ("tokens per parameter", "same compute: N", "D", "loss", "same loss: N", "D", "compute", "pays after")
    notes = (
        "Smaller models trained longer, beside the least loss of this compute; a model of the same loss pays when its "
        "life has so many tokens of inference (Sardana et al. 2024).",
    )
    return Table("longer training", head, rows, notes)


def _batches(plan: Plan) -> Table:
    rows = []
    for name, law in BATCH_LAWS.items():
        batch = law(plan.parameters, plan.tokens)
        rate = "-" if batch.learning_rate is None else f"{batch.learning_rate:.1e}"
        mark = " (of the plan)" if law is PLANNED_BY else ""
        rows.append((name + mark, short(batch.tokens), f"{plan.tokens / batch.tokens:,.0f}", rate))
    notes = ("Where a sweep of batch and rate should begin; sources are in pretrainer/plan/batch.py.",)
    return Table("batch and learning rate, by law", ("law", "batch tokens", "steps", "peak rate"), rows, notes)


# ------------------------------------------------------------------------------------------ the machines and the data


def _clusters(plan: Plan) -> Table:
    """The plan on fewer and on more of its GPUs."""
    run, gpu = plan.run, plan.gpu
    load = Load(
        model=plan.resolved,
        vocab_size=plan.vocab_size,
        seq_len=run.seq_len,
        batch_tokens=run.batch_tokens,
        flops=plan.flops,
    )
    ways = {way.gpus: way for way in possible(load, gpu)} | {run.gpus: run}
    near = sorted(sorted(ways), key=lambda gpus: abs(math.log(gpus / run.gpus)))[:CLUSTERS]
    rows: list[Row] = []
    for gpus in sorted(near):
        mark = " (of the plan)" if gpus == run.gpus else ""
        way = sharing(ways[gpus]) or "-"
        rows.append((f"{gpus:,}{mark}", duration(load.days(gpu, gpus)), f"{load.bytes(ways[gpus]) / GIB:.1f}", way))
    notes = ("All cost about the same; 512 GPUs reach about 91 % of the speed that 8 do on each.",)
    return Table(f"other numbers of {gpu.name}", ("GPUs", "time", "GiB each", "how"), rows, notes, words=(0, 3))


def _memory(plan: Plan) -> Table:
    """The plan's forward passes on its GPUs, sharded in other ways."""
    run, gpu, model = plan.run, plan.gpu, plan.resolved
    shards = {"a copy on each GPU": 1, "FSDP inside a node": min(gpu.gpus_per_node, run.gpus), "FSDP over all": None}
    ways = {
        f"{name}, tensor parallel {degree}" if degree > 1 else name: replace(
            run, shard_gpus=count, tensor_parallel=degree
        )
        for degree in parallel_degrees(model, gpu, run.gpus)
        for name, count in shards.items()
        if (count or run.gpus) % degree == 0 and run.slot_blocks % (run.gpus // degree) == 0
    }
    rows = []
    for name, way in {**ways, "of the plan": run}.items():
        memory = memory_of(model, plan.vocab_size, way)
        fits = "yes" if memory.total <= USABLE * gpu.memory_gib * GIB else "no"
        parts = [f"{getattr(memory, part) / GIB:.1f}" for part in PARTS]
        rows.append((name, *parts, f"{memory.total / GIB:.1f}", fits))
    head = ("GiB per GPU", *PARTS, "all", "fits")
    note = f"On {run.gpus:,} {gpu.name} of {gpu.memory_gib:g} GiB, of which {USABLE:.0%} can be used."
    return Table("memory by sharding", head, rows, (note,))


def _data(plan: Plan) -> Table:
    available = plan.request.base.available
    if not available:
        rows = [("all", short(plan.tokens), "-", "-", "-")]
        notes: list[str] = ["Nothing is prepared: after `python -m pipelines.prepare`, --run RUN counts what there is."]
    else:
        rows = [
            (one.source, short(one.share * plan.tokens), short(one.tokens), f"{plan.passes[one.source]:.2f}",
             f"{one.prepared:.0%}")
            for one in available
        ]  # fmt: skip
        notes = list(_data_notes(plan))
    return Table(
        "tokens required and available", ("source", "required", "available", "passes", "prepared"), rows, notes
    )


def _data_notes(plan: Plan) -> Iterator[str]:
    unique = sum(one.tokens for one in plan.request.base.available)
    most = max(plan.passes.values())
    if most <= 1:
        yield "No token is seen twice."
        return
    yield (
        f"Repeats make {short(plan.tokens)} tokens worth {short(plan.effective_tokens)} new ones "
        f"(Muennighoff et al. 2023), the predicted loss {plan.loss:.3f} instead of {REFIT.loss(*plan.split):.3f}."
    )
    if most > MOST_PASSES:
        verdict = "are worth little any more" if most > WORTHLESS_PASSES else "are worth less than new ones"
        best = best_with_repeats(REFIT, plan.split.flops, unique)
        passes, loss = best.tokens / unique, repeated_loss(REFIT, *best, unique)
        yield (
            f"Beyond {MOST_PASSES} passes repeats {verdict}; with these {short(unique)} tokens the same compute is "
            f"best spent on {short(best.parameters)} parameters and {passes:.1f} passes (loss {loss:.3f})."
        )
