"""Which sources a continued run mixes, and in which shares: the new ones, and those that stand for the old training.

A run's own sources are added to the config; a Hugging Face folder has none, so init.replay names them. All shares that
come out are explicit, so that the run's config says what it was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from pipelines.driver.parent import Parent
from pretrainer.config import Config, DataConfig, SegmentConfig, SourceConfig
from pretrainer.errors import require
from pretrainer.storage import redact


def mix_in_replay(config: Config, given: Collection[str], parent: Parent) -> tuple[DataConfig, tuple[str, ...], float]:
    """(data with the replay sources in it, their names, their share)."""
    data, init = config.data, config.init
    replay, added = _replay_sources(config, parent)
    fresh = [source.name for source in data.sources if source.name not in replay]
    if not replay or not fresh:
        return data, replay, init.replay_share
    if not added and data.curriculum and all(segment.shares for segment in data.curriculum):
        return data, replay, init.replay_share
    if not added and all(source.share is not None for source in data.sources):
        share = sum(source.share or 0.0 for source in data.sources if source.name in replay)
        as_asked = "init.replay_share" not in given or abs(share - init.replay_share) < 1e-6
        remedy = f"data.sources[].share gives {', '.join(replay)} {share:g}: leave one of them out"
        require(as_asked, "init.replay_share", init.replay_share, remedy)
        return data, replay, share
    return _mixed(data, fresh, replay, added, init.replay_share, parent), replay, init.replay_share


def _replay_sources(config: Config, parent: Parent) -> tuple[tuple[str, ...], tuple[SourceConfig, ...]]:
    """(names of all replay sources, those of the parent that the config has not yet)."""
    own = {source.name: source for source in config.data.sources}
    theirs = {s.name: s for s, share in zip(parent.sources, parent.shares, strict=True) if share > 0}
    names = config.init.replay or tuple(theirs)
    for name in names:
        known = name in own or name in theirs
        which = "data.sources or of the run's sources" if theirs else "data.sources"
        require(known, "init.replay", name, f"use names of {which}: {', '.join(dict.fromkeys([*own, *theirs]))}")
        same = config.init.replay or name not in own or own[name].uris == theirs[name].uris
        remedy = f"{redact(parent.uri)} was trained on another source of that name, which is to be replayed"
        require(bool(same), "data.sources[].name", name, f"{remedy}: use another name, or set init.replay")
    if not config.init.replay and not set(own) - set(names):  # nothing new to forget for
        return tuple(name for name in names if name in own), ()
    return names, tuple(theirs[name] for name in names if name not in own)


def _mixed(
    data: DataConfig, fresh: Sequence[str], replay: Sequence[str], added: Sequence[SourceConfig], share: float,
    parent: Parent,
) -> DataConfig:  # fmt: skip
    """Both groups with explicit shares; a share of 0 is said by a curriculum, as sources cannot have it."""
    own = {source.name: source.share for source in data.sources}
    before = {source.name: part for source, part in zip(parent.sources, parent.shares, strict=True)}
    shares = {name: (1 - share) * part for name, part in _within(fresh, own).items()}
    shares |= {name: share * part for name, part in _within(replay, {**own, **before}).items()}
    everything = [*data.sources, *added]
    order = [shares[source.name] for source in everything]
    told = order if share else [None] * len(order)
    sources = tuple(replace(s, share=part, size=None) for s, part in zip(everything, told, strict=True))
    segments = data.curriculum or ((SegmentConfig(shares=tuple(order)),) if share == 0 else ())
    curriculum = tuple(_segment(segment, order, len(data.sources), share) for segment in segments)
    return replace(data, sources=sources, curriculum=curriculum)


def _within(names: Sequence[str], shares: dict[str, float | None]) -> dict[str, float]:
    """Shares inside a group, which add up to 1."""
    if len(names) == 1:
        return {names[0]: 1.0}
    parts = {name: shares.get(name) for name in names}
    total = sum(part or 0.0 for part in parts.values())
    lacking = [name for name, part in parts.items() if part is None]
    remedy = "it is to be mixed with replay sources in stated shares: give every source of data.sources a share"
    require(not lacking and total > 0, "data.sources[].share", None, f"of {', '.join(lacking)}; {remedy}")
    return {name: (part or 0.0) / total for name, part in parts.items()}


def _segment(segment: SegmentConfig, order: Sequence[float], own: int, share: float) -> SegmentConfig:
    """A segment's shares of the config's own sources, with those that were added behind them."""
    if segment.shares is None:
        return replace(segment, shares=tuple(order)) if share == 0 else segment
    if len(segment.shares) != own:
        return segment
    added = list(order[own:])
    return replace(segment, shares=(*(part * (1 - sum(added)) for part in segment.shares), *added))
