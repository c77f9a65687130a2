"""THE order of the stateless stages of curation, for one source.

    normalise -> url -> language -> rules -> score -> quality -> perplexity
    | dedup, in order
    | pii -> toxicity -> decontamination

A stage is off until the config gives it something; a source leaves out what its `skip` names. Dedup sees what the first
half kept, and its index holds what the second half drops later: a near-copy of a document that was too toxic is dropped
as that document's duplicate.

To add a stage write a function of the same form, add its line below and its name to `config.STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import pyarrow as pa

from pretrainer.config import DataConfig
from pretrainer.data.filters.filters import chosen_groups
from pretrainer.data.filters.normalise import normalise_texts
from pretrainer.data.filters.stage import Stage, Verdict, run_stages, text_stage, with_texts
from pretrainer.data.plan import SourcePlan

Builder = Callable[[SourcePlan], Sequence[Stage]]


def _rules(plan: SourcePlan) -> list[Stage]:
    where = f"data.sources[{plan.source.name}]"
    return [text_stage("rules", group) for group in chosen_groups(plan.source.preset, plan.source.rules, where)]


BEFORE_DEDUP: dict[str, Builder] = {
    "rules": _rules,
}
AFTER_DEDUP: dict[str, Builder] = {}


def resource_uris(data: DataConfig) -> list[str]:
    """Every file that the config names for curation."""
    url = data.url
    models = [uri for uri in (data.quality.model, data.perplexity.model) if uri]
    return [*url.blocked_domains, *url.blocked_words, *url.soft_words, *models]


def run_before_dedup(plan: SourcePlan, docs: pa.Table) -> Verdict:
    """Documents as a reader gives them, normalised and put through the first half."""
    return run_stages(with_texts(docs, normalise_texts(docs.column("text"))), _before(plan), plan.source.annotate)


def run_after_dedup(plan: SourcePlan, docs: pa.Table) -> Verdict:
    """The second half, over documents that dedup kept."""
    return run_stages(docs, _after(plan), plan.source.annotate)


def edit_held_out(plan: SourcePlan, docs: pa.Table) -> pa.Table:
    """Held-out documents as training ones would be read; decontamination is what keeps training away from them."""
    stages = [stage for name in AFTER_DEDUP if name != "decontamination" for stage in _build(AFTER_DEDUP, name, plan)]
    return run_stages(docs, stages, plan.source.annotate).docs


# Built once in a process: some stages read files and make tables of them.
@lru_cache(maxsize=32)
def _before(plan: SourcePlan) -> tuple[Stage, ...]:
    return tuple(stage for name in BEFORE_DEDUP for stage in _build(BEFORE_DEDUP, name, plan))


@lru_cache(maxsize=32)
def _after(plan: SourcePlan) -> tuple[Stage, ...]:
    return tuple(stage for name in AFTER_DEDUP for stage in _build(AFTER_DEDUP, name, plan))


def _build(builders: dict[str, Builder], name: str, plan: SourcePlan) -> Sequence[Stage]:
    return [] if name in plan.source.skip else builders[name](plan)
