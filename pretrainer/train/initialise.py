"""The weights of a new run: drawn, or loaded from another run's checkpoint or a Hugging Face folder. Torch alone.

What is in object storage is copied once to each node, by its first worker. The others wait, and then each reads what
its shards need: of a checkpoint its parts, of safetensors one tensor after the other. Nothing may be left over or
missing. The digest of what was loaded is written down once; a run never begins with other bytes at a second try.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from pretrainer.errors import DamagedError, PretrainerError, StorageError
from pretrainer.model.hf import stream_hf
from pretrainer.model.init import copy_into, init_buffers, init_weights
from pretrainer.model.vocabulary import grown
from pretrainer.storage import Store, redact
from pretrainer.train.checkpoints.checkpoint import content_digest, file_digest, load_weights, stored_weights, verify
from pretrainer.train.checkpoints.copies import copy_file
from pretrainer.train.spec import Origin, TrainState

RECORD = "init/weights.json"
INPUT_TABLE, OUTPUT_TABLE = "embed.weight", "head.weight"
PARALLEL_FILES = 8


def initialise(model: nn.Module, seed: int, origin: Origin | None, run: Store, local_rank: int) -> str | None:
    """Fill every parameter and buffer; every rank calls it. Returns the digest of what was loaded, None if drawn.

    local_rank counts the workers of a node. Raises StorageError when the files are damaged, are not those of an earlier
    try, or do not fit the model.
    """
    if origin is None:
        init_weights(model, seed)
        return None
    with _fetched(origin, run, local_rank) as (folder, digest):
        init_buffers(model)
        try:
            (_load_checkpoint if origin.is_checkpoint else _load_folder)(model, folder, origin)
        except DamagedError as error:  # of no checkpoint of this run
            raise StorageError(f"init.uri: {error}") from error
    if not dist.is_initialized() or dist.get_rank() == 0:
        run.create(RECORD, _record(origin, digest))
    return digest


def recorded_digest(run: Store) -> str | None:
    """Of what the run has begun with; None before it has begun, and where it was drawn."""
    try:
        return str(json.loads(run.read(RECORD))["sha256"])
    except FileNotFoundError:
        return None


def refuse_another(state: TrainState, origin: Origin | None) -> None:
    """StorageError if a checkpoint descends from another model than the run's record says."""
    known = origin.sha256 if origin else None
    if known is not None and state.init_sha256 != known:
        raise StorageError(
            f"the checkpoint of step {state.step} began with the weights {state.init_sha256}, the run with {known}: "
            "put the run's own checkpoints and init/ back"
        )


def _record(origin: Origin, digest: str) -> bytes:
    return json.dumps({"sha256": digest, "uri": redact(origin.uri)}).encode()


# ------------------------------------------------------------------------------------------------- files, by node


@contextmanager
def _fetched(origin: Origin, run: Store, local_rank: int) -> Iterator[tuple[Path, str]]:
    """(a local folder with the files, their digest), agreed by all ranks."""
    store = Store(origin.uri)
    name = hashlib.sha256(f"{run.uri}\0{origin.uri}".encode()).hexdigest()[:16]
    folder = Path(store.location.path) if store.is_local else Path(tempfile.gettempdir()) / f"pretrainer-init-{name}"

    def fetch() -> str | None:
        if local_rank:
            return None
        if not store.is_local:
            _copy(store, folder, origin.is_checkpoint)
        return _checked_digest(folder, origin, run)

    try:
        yield folder, _together(fetch, origin)
    finally:
        if dist.is_initialized():
            dist.barrier()
        if local_rank == 0 and not store.is_local:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(store: Store, folder: Path, everything: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a worker that was killed here
    folder.mkdir(parents=True)
    paths = [path for path, *_ in store.list() if everything or _is_model(path)]
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        list(pool.map(lambda path: copy_file(store, path, Store(str(folder))), paths))


def _is_model(path: str) -> bool:
    return path == "config.json" or (path.endswith(".safetensors") and "/" not in path)


def _checked_digest(folder: Path, origin: Origin, run: Store) -> str:
    if origin.is_checkpoint:
        verify(folder)
        digest = content_digest(folder)
    else:
        files = {path.name: file_digest(path)["sha256"] for path in folder.iterdir() if _is_model(path.name)}
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    known = recorded_digest(run)
    if known not in (None, digest):
        raise StorageError(f"it has the digest {digest}, and had {known} when the run began: put the old files back")
    return digest


def _together(fetch: Callable[[], str | None], origin: Origin) -> str:
    """What the first worker of each node has found; where one fails, or two differ, all ranks raise StorageError."""
    try:
        mine: str | None | Exception = fetch()
    except (PretrainerError, OSError) as error:
        mine = StorageError(f"init.uri: {redact(origin.uri)} cannot be loaded: {error}")
    found = [mine]
    if dist.is_initialized():
        found *= dist.get_world_size()
        dist.all_gather_object(found, mine)
    for one in found:
        if isinstance(one, Exception):
            raise one
    digests = {digest for digest in found if isinstance(digest, str)}
    if len(digests) != 1:
        raise StorageError(f"init.uri: the nodes read different files from {redact(origin.uri)}: {sorted(digests)}")
    return digests.pop()


# ---------------------------------------------------------------------------------------------------- into the model


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _whole_table(name: str, table: Tensor, model: nn.Module, origin: Origin) -> Tensor:
    """A vocabulary table with rows for the tokens that were added."""
    rows = int(_named(model)[name].shape[0])
    is_input_alone = name == INPUT_TABLE and OUTPUT_TABLE in _named(model)
    pieces = origin.pieces if is_input_alone else ((),) * len(origin.pieces)
    return grown(table, rows, origin.known, pieces)


def _refuse_unmatched(model: nn.Module, shapes: dict[str, torch.Size], origin: Origin) -> None:
    """Every parameter must be there, in its shape, and nothing else; tables may lack rows, and buffers be constants."""
    ours, parameters = _named(model), {name for name, _parameter in model.named_parameters()}
    wrong = [f"{name} is missing" for name in sorted(parameters - shapes.keys())]
    wrong += [f"{name} has no place in this model" for name in sorted(shapes.keys() - ours.keys())]
    for name in sorted(shapes.keys() & ours.keys()):
        there, here = shapes[name], ours[name].shape
        fits = there[0] <= here[0] and there[1:] == here[1:] if name in (INPUT_TABLE, OUTPUT_TABLE) else there == here
        wrong += [] if fits else [f"{name} is {list(there)} and must be {list(here)}"]
    if wrong:
        raise StorageError(
            f"init.uri: {redact(origin.uri)} does not fit this model, {len(wrong)} tensors: {'; '.join(wrong[:5])}"
        )


@torch.no_grad()
def _load_checkpoint(model: nn.Module, folder: Path, origin: Origin) -> None:
    shapes, tensors = stored_weights(folder), _named(model)
    _refuse_unmatched(model, shapes, origin)
    tables = {
        name: torch.empty(shapes[name])
        for name in (INPUT_TABLE, OUTPUT_TABLE)
        if name in tensors and (origin.pieces or shapes[name] != tensors[name].shape)
    }
    load_weights({name: tensor for name, tensor in tensors.items() if name in shapes} | tables, folder)
    for name, table in tables.items():
        copy_into(tensors[name], _whole_table(name, table, model, origin))


@torch.no_grad()
def _load_folder(model: nn.Module, folder: Path, origin: Origin) -> None:
    tensors, shapes = _named(model), {}
    try:
        for name, value in stream_hf(folder):
            shapes[name] = value.shape
            if name in tensors and name in (INPUT_TABLE, OUTPUT_TABLE) and value.shape[0] <= tensors[name].shape[0]:
                value = _whole_table(name, value, model, origin)
            if name in tensors and value.shape == tensors[name].shape:
                copy_into(tensors[name], value)
    except SafetensorError as error:
        raise StorageError(f"init.uri: {redact(origin.uri)} has a damaged safetensors file: {error}") from error
    _refuse_unmatched(model, shapes, origin)
