"""A look at every source of a config: sample, chain, terminal table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pretrainer.config import Config
from pretrainer.data.inspect.chain import Clock, run_chain
from pretrainer.data.inspect.funnel import LEFT, Row, add_up, all_stages, decide, funnel, is_raw_crawl, judge_bands
from pretrainer.data.inspect.page import Looked
from pretrainer.data.inspect.sample import drafted, draw, freeze_references
from pretrainer.storage import Store

HEADER = f"  {'stage':<16}{'in':>10}{'dropped':>10}{'share':>9}{'MB in':>10}{'MB out':>10}{'MB/s':>9}  usual"


def look(config: Config, documents: int, clock: Clock = time.perf_counter) -> list[Looked]:
    """Every source of a config, by a sample of up to so many documents; in this process, nothing is written."""
    with drafted(config) as plans:
        samples = [draw(plan, documents) for plan in plans]
        freeze_references(config, samples, Store(plans[0].data_uri))
        chains = [run_chain(plan, sample, clock) for plan, sample in zip(plans, samples, strict=True)]
    return [Looked(*each) for each in zip(config.data.sources, samples, chains, strict=True)]


def table(looked: Sequence[Looked]) -> str:
    """The funnel of every source, and of all where there are several."""
    parts = [line for each in looked for line in _source_lines(each)]
    if len(looked) > 1:
        stages = all_stages([each.chain for each in looked])
        rows = add_up([funnel(each.chain, decide(each.chain), stages) for each in looked])
        judged = all(is_raw_crawl(each.source) for each in looked)
        parts += ["all sources", HEADER, *_lines(rows, {}, judged), ""]
    return "\n".join(parts)


def _source_lines(looked: Looked) -> Iterator[str]:
    source, sample, chain = looked
    speeds = {timing.stage: timing.bytes / timing.seconds / 1e6 for timing in chain.timings if timing.seconds > 0}
    dead = len(sample.dead_letters)
    yield (
        f"{source.name} (preset {source.preset}): {len(chain.ids):,} documents, {int(chain.size.sum()) / 1e6:,.1f} MB; "
        f"{dead:,} of {sample.records:,} records could not be read"
    )
    yield HEADER
    yield from _lines(funnel(chain, decide(chain)), speeds, is_raw_crawl(source))
    yield ""


def _lines(rows: Sequence[Row], speeds: dict[str, float], judged: bool) -> Iterator[str]:
    bands = {judged_band.last: judged_band for judged_band in judge_bands(rows)}
    for row in rows:
        speed = f"{speeds[row.stage]:,.1f}" if row.stage in speeds else ""
        band = bands.get(row.stage)
        usual = "" if band is None else _usual(band.band.words, band.inside, judged)
        yield (
            f"  {row.stage:<16}{row.documents_in:>10,}{row.documents_dropped:>10,}{row.removed:>9.1%}"
            f"{row.bytes_in / 1e6:>10,.2f}{row.bytes_out / 1e6:>10,.2f}{speed:>9}  {usual}".rstrip()
        )
    if rows:
        left = rows[-1].documents_out / max(1, rows[0].documents_in)
        usual = _usual("1–5 %", LEFT[0] <= left <= LEFT[1], judged)
        yield f"  {'left':<16}{rows[-1].documents_out:>10,}{'':>10}{left:>9.1%}{'':>29}  {usual}"


def _usual(words: str, inside: bool, judged: bool) -> str:
    if not judged:
        return f"({words} of a raw crawl)"
    return words if inside else f"WARNING: outside {words}"
