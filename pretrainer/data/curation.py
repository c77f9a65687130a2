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
from pretrainer.data.decontamination.stage import stages_of_run
from pretrainer.data.filters.filters import chosen_groups
from pretrainer.data.filters.language import check_language_config, language_stage
from pretrainer.data.filters.licences import licence_stage
from pretrainer.data.filters.normalise import normalise_texts
from pretrainer.data.filters.pii import pii_stage
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.score import score_stage
from pretrainer.data.filters.stage import Measured, Stage, Verdict, run_stages, text_stage, with_texts
from pretrainer.data.filters.toxicity import check_toxicity_config, toxicity_stage
from pretrainer.data.filters.urls import check_url_config, url_stage
from pretrainer.data.plan import SourcePlan
from pretrainer.data.quality.classifier import quality_stage
from pretrainer.data.quality.perplexity import perplexity_stage
from pretrainer.data.quarantine import is_left_out
from pretrainer.data.readers.reading import Stop
from pretrainer.schema import QUARANTINED

Builder = Callable[[SourcePlan], Sequence[Stage]]


def _url(plan: SourcePlan) -> list[Stage]:
    return [url_stage(plan.config.url, plan.resource)] if plan.config.url.is_on else []


def _language(plan: SourcePlan) -> list[Stage]:
    return [language_stage(plan.config.language)] if plan.config.language.keep else []


def _rules(plan: SourcePlan) -> list[Stage]:
    """The preset's groups; code says first under which licence it stands, for what is dropped as well."""
    where = f"data.sources[{plan.source.name}]"
    groups = chosen_groups(plan.source.preset, plan.source.rules, where)
    licence = [licence_stage()] if plan.source.preset == "code" else []
    return [*licence, *(text_stage("rules", group) for group in groups)]


def _score(plan: SourcePlan) -> list[Stage]:
    return [score_stage(plan.source)] if plan.source.scores else []


def _quality(plan: SourcePlan) -> list[Stage]:
    return [quality_stage(plan.config.quality, plan.resource)] if plan.config.quality.model else []


def _perplexity(plan: SourcePlan) -> list[Stage]:
    return [perplexity_stage(plan.config.perplexity, plan.resource)] if plan.config.perplexity.model else []


BEFORE_DEDUP: dict[str, Builder] = {
    "url": _url,
    "language": _language,
    "rules": _rules,
    "score": _score,
    "quality": _quality,
    "perplexity": _perplexity,
}


def _pii(plan: SourcePlan) -> list[Stage]:
    return [pii_stage(plan.config.pii)] if plan.config.pii.is_on else []


def _toxicity(plan: SourcePlan) -> list[Stage]:
    return [toxicity_stage(plan.config.toxicity, plan.resource)] if plan.config.toxicity.is_on else []


def _decontamination(plan: SourcePlan) -> list[Stage]:
    return stages_of_run(plan.config.decontamination, plan.data_uri)


AFTER_DEDUP: dict[str, Builder] = {
    "pii": _pii,
    "toxicity": _toxicity,
    "decontamination": _decontamination,
}


def resource_uris(data: DataConfig) -> list[str]:
    """Every file that the config names for curation."""
    models = [uri for uri in (data.quality.model, data.perplexity.model) if uri]
    return [*data.url.files, *models, *data.toxicity.files]


def check_curation(data: DataConfig) -> None:
    """ConfigError for what can be seen to fail before a run begins."""
    for source in data.sources:
        chosen_groups(source.preset, source.rules, f"data.sources[{source.name}]")
    check_url_config(data.url)
    check_language_config(data.language)
    check_toxicity_config(data.toxicity)


def run_before_dedup(plan: SourcePlan, docs: pa.Table) -> Verdict:
    """Documents as a reader gives them, normalised and put through the first half."""
    return run_stages(with_texts(docs, normalise_texts(docs.column("text"))), _before(plan), plan.source.annotate)


def run_after_dedup(plan: SourcePlan, docs: pa.Table, stops: Sequence[Stop] = ()) -> Verdict:
    """The second half, over documents that dedup kept; those that stops name are seen by no stage of it."""
    verdict = run_stages(docs, (*_quarantine(stops), *_after(plan)), plan.source.annotate)
    verdict.measures.pop(QUARANTINED, None)
    return verdict


def edit_held_out(plan: SourcePlan, docs: pa.Table, stops: Sequence[Stop] = ()) -> pa.Table:
    """Held-out documents as training ones would be read; decontamination is what keeps training away from them."""
    stages = [stage for name in AFTER_DEDUP if name != "decontamination" for stage in _build(AFTER_DEDUP, name, plan)]
    return run_stages(docs, (*_quarantine(stops), *stages), plan.source.annotate).docs


def _quarantine(stops: Sequence[Stop]) -> list[Stage]:
    """In front of the stages that a document kills, one that drops it."""

    def measure(docs: pa.Table) -> Measured:
        return {QUARANTINED: is_left_out(docs, stops).astype(float)}, docs

    return [Stage("quarantine", measure, (Rule(QUARANTINED, QUARANTINED, most=0),))] if stops else []


# Built once in a process: some stages read files and make tables of them.
@lru_cache(maxsize=32)
def _before(plan: SourcePlan) -> tuple[Stage, ...]:
    return tuple(stage for name in BEFORE_DEDUP for stage in _build(BEFORE_DEDUP, name, plan))


@lru_cache(maxsize=32)
def _after(plan: SourcePlan) -> tuple[Stage, ...]:
    return tuple(stage for name in AFTER_DEDUP for stage in _build(AFTER_DEDUP, name, plan))


def _build(builders: dict[str, Builder], name: str, plan: SourcePlan) -> Sequence[Stage]:
    return [] if name in plan.source.skip else builders[name](plan)
