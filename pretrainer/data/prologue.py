"""What is fixed before the stream starts, once per run: manifest, held-out documents, tokenizer, fingerprints.

Each reads a fixed number of bytes, so the time to the first step does not grow with the corpus. Everything is a pure
function of inputs and config and is created once in the run's data folder; a second start reads it back.

    data/manifest.arrow             the frozen shards
    data/sizes.json                 |D_i| by source, for the mixture
    data/tokenizer.model|.json      the frozen tokenizer
    data/resources/                 files that the config names for curation
    data/pilots/                    verdicts on content that kills what reads it here (`quarantine`)
    data/decontamination/           the texts that must not be trained on
    data/held_out/<source>.arrow    packed held-out rows (schema.SLOT_BLOCK)
    data/held_out/<source>.sketches.arrow   their index entries
    data/held_out/summary.json      documents, bytes and baselines by source
    data/fingerprint.json           everything that decides the tokens, by name

A run with `run.data_from` reads the data folder of another run, and its own holds the fingerprint alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pretrainer.config import Config
from pretrainer.data import fingerprint
from pretrainer.data.curation import resource_uris
from pretrainer.data.curriculum import Segment, make_segments
from pretrainer.data.decontamination.freeze import freeze_decontamination, index_digest
from pretrainer.data.held_out import HeldOut, freeze_held_out, run_pilot
from pretrainer.data.identity import (
    NOT_IN_FINGERPRINT,
    ORDER_MODULES,
    changes_since_start,
    different_parts,
    fingerprint_parts,
    record_parts,
    recorded_parts,
)
from pretrainer.data.mixture import mixing_weights
from pretrainer.data.plan import SourcePlan, draft_plans, load_tokenizer
from pretrainer.data.readers.source import Manifest
from pretrainer.data.resources import freeze_resources, frozen_resources
from pretrainer.data.tokenizer.freeze import freeze_tokenizer
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import ConfigError, UserError
from pretrainer.schema import Specials, from_ipc
from pretrainer.storage import Store, resolve_run


@dataclass(frozen=True)
class Frozen:
    """Everything the stream and the trainer need to know about the data of a run."""

    plans: tuple[SourcePlan, ...]
    segments: tuple[Segment, ...]
    vocab_size: int  # rows of the embedding
    held_out: dict[str, HeldOut]
    fingerprint: str
    sizes: tuple[float, ...]  # |D_i|: bytes of each source's shards times the share that filters keep of a pilot
    changes: tuple[str, ...] = ()  # parts of the fingerprint that differ from the last start of this run
    parts: dict[str, Any] = field(default_factory=dict, repr=False)  # what the fingerprint is made of


def freeze(config: Config, data: Store, held_before: Mapping[str, pa.Table] | None = None) -> Frozen:
    """Make or read back everything that is fixed before the stream starts; needs a Ray cluster.

    held_before: by source, documents (schema.DOCUMENTS) that were held out when the loaded model was trained. They are
    held out here too, in place of those that this run would choose, of which that model has seen some.
    """
    manifest = freeze_manifest(config, data)
    freeze_resources(resource_uris(config.data), data)
    drafts = draft_plans(config.data, manifest, data, config.cluster.data_subcluster)
    pilots = [run_pilot(plan) for plan in drafts]
    before = held_before or {}
    held = [before.get(plan.source.name, pilot.held) for plan, pilot in zip(drafts, pilots, strict=True)]
    freeze_decontamination(config.data, held, [pilot.background for pilot in pilots], data)
    kept = [size * pilot.share for size, pilot in zip(manifest.source_bytes(), pilots, strict=True)]
    sizes = freeze_sizes(kept, data)
    weights = mixing_weights(config.data.sources, sizes)
    tokenizer = freeze_tokenizer(config.tokenizer, drafts, weights, held, data, config.init.add_tokens)
    rows = config.model.rows(tokenizer.vocab_size)
    segments = make_segments(config, weights)
    parts = _parts(config, manifest, held, segments, data)
    plans = _plans(drafts, parts, tokenizer)
    changes = tuple(changes_since_start(parts, data))
    summary = freeze_held_out(plans, held, data)
    return Frozen(plans, segments, rows, summary, fingerprint.digest(parts), sizes, changes, parts)


def accept(frozen: Frozen, own: Store) -> None:
    """This start is not refused: its parts are what later starts, and verify, compare with."""
    record_parts(frozen.parts, own)


def data_folder(config: Config, run: Store) -> Store:
    """Where the run's tokens are: in its own folder, or in that of the run that it shares them with."""
    where = config.run.data_from
    return (run if where is None else resolve_run(where, config.run.storage)).child("data")


def share(config: Config, data: Store, own: Store) -> Frozen:
    """The frozen data of another run under this config's batch, length and shares; needs no cluster.

    `own` is the data folder of the run that asks. ConfigError if its config or code makes other tokens.
    """
    frozen = thaw(config, data)
    if frozen.segments[-1].line:
        raise ConfigError(
            f"run.data_from={config.run.data_from!r} is not possible with data.curriculum segments of another sequence "
            "length: where those begin is kept with the tokens and depends on the batch; leave run.data_from out"
        )
    parts, theirs = _live_parts(config, frozen, data), recorded_parts(data)
    changes = [part for part in different_parts(parts, theirs) if not part.startswith("order.")]
    if changes:
        raise ConfigError(
            f"run.data_from={config.run.data_from!r} holds the tokens of another config; here differ: "
            f"{', '.join(changes)}. Put it back, or leave run.data_from out to curate anew"
        )
    frozen = replace(frozen, fingerprint=fingerprint.digest(parts), parts=parts)
    return replace(frozen, changes=tuple(changes_since_start(parts, own)))


def thaw(config: Config, data: Store, own: Store | None = None) -> Frozen:
    """What `freeze` made at the run's last start, read back; needs no cluster and trusts the recorded fingerprint.

    `own`: the data folder of the run, where `data` is another's.
    """
    try:
        manifest, parts = Manifest.from_bytes(data.read("manifest.arrow")), recorded_parts(own or data)
        summary = json.loads(data.read("held_out/summary.json"))
    except FileNotFoundError as error:
        raise UserError(f"{data.uri} is not complete ({error.filename}): start the run, then ask again") from None
    tokenizer, sizes = load_tokenizer(data.uri), freeze_sizes([], data)
    return Frozen(
        _plans(draft_plans(config.data, manifest, data, config.cluster.data_subcluster), parts, tokenizer),
        make_segments(config, mixing_weights(config.data.sources, sizes)),
        config.model.rows(tokenizer.vocab_size),
        {name: HeldOut(**values) for name, values in summary.items()},
        fingerprint.digest(parts),
        sizes,
    )


def freeze_sizes(measured: Sequence[float], data: Store) -> tuple[float, ...]:
    """|D_i| of the first start; those measured now, where this is it."""
    if not data.exists("sizes.json"):
        data.create("sizes.json", json.dumps(list(measured)).encode())
    return tuple(json.loads(data.read("sizes.json")))


def _live_parts(config: Config, frozen: Frozen, data: Store) -> dict[str, dict]:
    """The parts as today's inputs, config and code make them; SourceError if an input object is not the run's."""
    manifest = Manifest.from_bytes(data.read("manifest.arrow"))
    manifest.check_unchanged(Manifest.build(config.data.sources))
    held = [from_ipc(data.read(f"held_out/{s.name}.documents.arrow")) for s in config.data.sources]
    return _parts(config, manifest, held, frozen.segments, data)


def refuse_changes(config: Config, frozen: Frozen, data: Store, own: Store | None = None) -> None:
    """SourceError or ConfigError, naming it, if an input object, the config or the code is not the run's any more."""
    changes = changes_since_start(_live_parts(config, frozen, data), own or data)
    if changes:
        raise ConfigError(
            f"the stream of {data.uri} cannot be derived again; since its last start changed: {', '.join(changes)}. "
            "Use the versions of code and libraries, and the config, that the run has"
        )


def _parts(
    config: Config, manifest: Manifest, held: Sequence[pa.Table], segments: Sequence[Segment], data: Store
) -> dict[str, dict]:
    """Everything that decides the order of the tokens, by source, and the order of the sources."""
    tokenizer = load_tokenizer(data.uri)
    order = {
        "code": fingerprint.code_version(ORDER_MODULES, NOT_IN_FINGERPRINT),
        "slot_blocks_per_step": config.slot_blocks_per_step,
        "segments": [[s.first_step, s.order.shares, s.seq_len] for s in segments],
    }
    files = {**frozen_resources(data), **index_digest(config.data.decontamination, data)}
    return {**fingerprint_parts(config, manifest, tokenizer, held, files), "order": order}


def _plans(
    drafts: Sequence[SourcePlan], parts: Mapping[str, dict[str, Any]], tokenizer: Tokenizer
) -> tuple[SourcePlan, ...]:
    """The drafts with the names of their ledgers and window logs."""
    return tuple(
        replace(
            plan,
            curation=fingerprint.digest(parts[plan.source.name]["curation"]),
            packing=fingerprint.digest(parts[plan.source.name]),
            specials=Specials(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id),
        )
        for plan in drafts
    )


def freeze_manifest(config: Config, data: Store) -> Manifest:
    """The manifest of the first start; a shard that changed since stops the run."""
    live = Manifest.build(config.data.sources)
    if data.exists("manifest.arrow"):
        frozen = Manifest.from_bytes(data.read("manifest.arrow"))
        frozen.check_unchanged(live)
        return frozen
    data.create("manifest.arrow", live.to_bytes())
    return live
