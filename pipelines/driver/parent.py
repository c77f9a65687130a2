"""The model that a run begins with (`init.uri`): another run or a Hugging Face folder, looked at once.

What is found at the first start is kept as init/parent.json in the run folder and read back at every later one, so that
the parent may train on, or be gone, while its child goes on. Its held-out documents are copied beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pretrainer.config import Config, InitConfig, ModelConfig, SourceConfig
from pretrainer.config_load import parse_config
from pretrainer.data.curriculum import make_segments, realised_shares
from pretrainer.data.mixture import mixing_weights
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.data.tokenizer.extend import pieces_before
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import ConfigError, UserError
from pretrainer.model.presets import resolve
from pretrainer.schema import from_ipc
from pretrainer.storage import Store, resolve_run
from pretrainer.train.checkpoints.committed import committed_checkpoint, committed_checkpoints
from pretrainer.train.checkpoints.copies import BEST, Place, find_copies

if TYPE_CHECKING:  # with torch behind it, which a plan without a parent does not wait for
    from pretrainer.train.spec import Origin

RECORD = "init/parent.json"
HELD_OUT = "init/held_out"


@dataclass(frozen=True)
class Parent:
    """What is known of it; `content` is its config.yaml (a run) or config.json (a folder)."""

    uri: str
    is_run: bool
    step: int | None  # of the checkpoint, of a run
    folder: str  # of the checkpoint, below uri; "" for a Hugging Face folder
    content: str
    tokenizer_uri: str
    tokenizer_sha256: str
    known: int  # ids of its tokenizer
    shares: tuple[float, ...] = ()  # of its training tokens by source, of a run

    @cached_property
    def config(self) -> Config | None:
        """Of a run."""
        return parse_config(self.content, where=f"{self.uri}/config.yaml") if self.is_run else None

    @cached_property
    def _hugging_face(self) -> tuple[ModelConfig, int]:
        from pretrainer.model.hf import read_hf_config

        return read_hf_config(json.loads(self.content), self.uri)

    @cached_property
    def model(self) -> ModelConfig:
        return resolve(self.config.model) if self.config else self._hugging_face[0]

    @property
    def rows(self) -> int:
        """Of its embedding."""
        return self.model.rows(self.known) if self.is_run else self._hugging_face[1]

    @property
    def context(self) -> int | None:
        """The longest sequence that it was trained with, where that is known."""
        if self.config is None:
            return self.model.context
        data = self.config.data
        return max([data.seq_len] + [s.seq_len or data.seq_len for s in data.curriculum])

    @property
    def learning_rate(self) -> float | None:
        """The peak of the first training in its line."""
        if self.config is None:
            return None
        return self.config.init.original_learning_rate or self.config.train.learning_rate

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What it was trained on, where that is known; in the order of `shares`."""
        return self.config.data.sources if self.config else ()


# ------------------------------------------------------------------------------------------------- at the first start


def find_parent(init: InitConfig, storage: str) -> Parent:
    """Look at what init.uri names; UserError, with the remedy, where that is no model."""
    assert init.uri is not None
    place = resolve_run(init.uri, storage)
    if place.exists("config.yaml"):
        return _find_run(place, init.checkpoint)
    if place.exists("config.json"):
        return _find_folder(place, init.checkpoint)
    raise ConfigError(
        f"init.uri={init.uri!r} is not possible: {place.uri} has neither a run's config.yaml nor a config.json; give "
        "the name or folder of a run, or a Hugging Face folder"
    )


def _find_run(run: Store, asked: str) -> Parent:
    step, folder = _checkpoint(run, asked)
    content = run.read_text("config.yaml")
    config = parse_config(content, where=f"{run.uri}/config.yaml")
    data = data_folder(config, run)
    tokenizer = load_tokenizer(data.uri)
    sizes = tuple(json.loads(data.read("sizes.json")))
    segments = make_segments(config, mixing_weights(config.data.sources, sizes))
    shares = [asked for asked, _realised in realised_shares(segments, config.total_steps, config.slot_blocks_per_step)]
    name = "tokenizer.json" if tokenizer.is_json else "tokenizer.model"
    return Parent(
        run.uri, True, step, folder, content, data.child(name).uri, tokenizer.digest, tokenizer.vocab_size,
        tuple(shares),
    )  # fmt: skip


def _checkpoint(run: Store, asked: str) -> tuple[int, str]:
    """(step, folder below the run) of what init.checkpoint names."""
    committed = {**find_copies(run), **committed_checkpoints(run)}
    if not committed:
        raise ConfigError(f"init.uri: run {run.uri} has no committed checkpoint: wait for one, or give another run")
    best = list(Place(BEST, run.child(BEST)).copies()) if asked == "best" else []
    if asked == "best" and not best:
        raise ConfigError(
            f"init.checkpoint='best' is not possible: {run.uri} was trained without train.keep_best; use newest or a "
            "step"
        )
    step = max(committed) if asked == "newest" else best[-1] if best else int(asked)
    if step not in committed:
        steps = ", ".join(map(str, sorted(committed)))
        raise ConfigError(f"init.checkpoint={asked!r} is not possible: {run.uri} has the steps {steps}")
    return step, committed[step]


def _find_folder(folder: Store, asked: str) -> Parent:
    if asked != "newest":
        raise ConfigError(f"init.checkpoint={asked!r} is not possible: {folder.uri} is one model, leave it out")
    names = {path for path, *_ in folder.list(recursive=False)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(
            f"init.uri: {folder.uri} has no .safetensors, and pickled weights are not opened: convert them, for "
            "example with save_pretrained(safe_serialization=True)"
        )
    name = next((name for name in ("tokenizer.json", "tokenizer.model") if name in names), None)
    if name is None:
        raise ConfigError(f"init.uri: {folder.uri} has no tokenizer.json and no tokenizer.model: copy it there")
    content, tokenizer = folder.read_text("config.json"), Tokenizer.from_bytes(folder.read(name))
    return Parent(
        folder.uri, False, None, "", content, folder.child(name).uri, tokenizer.digest, tokenizer.vocab_size
    )


# ------------------------------------------------------------------------------------------------------ in the run


def recorded_parent(run: Store) -> Parent | None:
    """The parent of a run that has begun; None before that, or where it has none."""
    try:
        raw: dict[str, Any] = json.loads(run.read(RECORD))
    except FileNotFoundError:
        return None
    return Parent(**{**raw, "shares": tuple(raw["shares"])})


def parent_of(config: Config, run: Store) -> Parent | None:
    """The recorded parent, or the one that the config names; ConfigError where the two differ."""
    recorded, init = recorded_parent(run), config.init
    if recorded is None:
        return None if init.uri is None else find_parent(init, config.run.storage)
    asked = None if init.uri is None else resolve_run(init.uri, config.run.storage).uri
    if asked != recorded.uri:
        raise ConfigError(
            f"init.uri={init.uri!r} is not possible: run {run.uri} began with {recorded.uri}; put that back, or give "
            "the new run another run.name"
        )
    # newest and best meant this step at the first start.
    if init.checkpoint.isdecimal() and int(init.checkpoint) != recorded.step:
        raise ConfigError(
            f"init.checkpoint={init.checkpoint!r} is not possible: run {run.uri} began with step {recorded.step}; put "
            "that back, or give the new run another run.name"
        )
    return recorded


def adopt(config: Config, run: Store) -> dict[str, pa.Table]:
    """Record the parent at the first start; returns the held-out documents of its sources that this run has too.

    Only for the holder of the lease; the config is one that `continuation.continued` has made.
    """
    parent = parent_of(config, run)
    if parent is None:
        return {}
    if recorded_parent(run) is None:
        if committed_checkpoint(run) is not None:
            raise ConfigError(f"init.uri: run {run.uri} has begun without it: give the new run another run.name")
        _copy_held_out(parent, config, run)
        run.create(RECORD, json.dumps(asdict(parent), indent=1).encode())
    held = {name: f"{HELD_OUT}/{name}.documents.arrow" for name in config.init.replay}
    return {name: from_ipc(run.read(path)) for name, path in held.items() if run.exists(path)}


def _copy_held_out(parent: Parent, config: Config, run: Store) -> None:
    """Of the replay sources that are the parent's; another one of that name holds out its own."""
    theirs = {(source.name, source.uris) for source in parent.sources}
    same = {source.name for source in config.data.sources if (source.name, source.uris) in theirs}
    for name in (name for name in config.init.replay if name in same):
        assert parent.config is not None  # it has sources
        documents = data_folder(parent.config, Store(parent.uri)).read(f"held_out/{name}.documents.arrow")
        run.create(f"{HELD_OUT}/{name}.documents.arrow", documents)


def origin(config: Config, run: Store) -> Origin | None:
    """What the workers are told of the parent."""
    from pretrainer.train.initialise import recorded_digest
    from pretrainer.train.spec import Origin

    parent = recorded_parent(run)
    if parent is None:
        return None
    uri = Store(parent.uri).child(parent.folder).uri if parent.folder else parent.uri
    return Origin(uri, parent.is_run, parent.known, _pieces(config, parent, run), recorded_digest(run))


def _pieces(config: Config, parent: Parent, run: Store) -> tuple[tuple[int, ...], ...]:
    """Of the tokens that were added: what their texts were before."""
    if not config.init.add_tokens or committed_checkpoint(run) is not None:
        return ()  # nothing is added, or nothing is loaded any more
    try:
        before = Tokenizer.from_bytes(Store(parent.tokenizer_uri).read())
    except FileNotFoundError:
        raise UserError(f"init.uri: {parent.tokenizer_uri} is not there any more: put it back") from None
    if before.digest != parent.tokenizer_sha256:
        raise UserError(f"init.uri: {parent.tokenizer_uri} has changed since this run began: put the old file back")
    return pieces_before(before, config.init.add_tokens)
