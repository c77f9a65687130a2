"""Sharded checkpoints in torch's distributed format (DCP), torch alone.

A checkpoint folder holds `.metadata` and `__<rank>_*.distcp` (DCP), `state.json` (rank 0) and one
`digests.rank<r>.json` per rank. Each rank writes into a folder of its own; their union is the checkpoint. Tensors are
saved by parameter name, as `model.<name>` and `<moment>.<name>` (AdamW: exp_avg, exp_avg_sq; Muon: momentum_buffer),
so any world size loads them.
`.metadata` is a pickle: it is opened only after every file has its digest, and after what it names was read
(metadata.py). The digests find damage and torn uploads; they do not prove who wrote the files.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pretrainer.errors import ConfigError, DamagedError, StorageError
from pretrainer.train.checkpoints.metadata import check_metadata
from pretrainer.train.checkpoints.staging import (
    WEIGHTS,
    Staged,
    StagedPlanner,
    Staging,
    named_tensors,
    set_optimizer_step,
)

FORMAT = 1
STATE_FILE = "state.json"


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def _single_process_is_meant() -> Iterator[None]:
    if dist.is_initialized():
        yield  # there is no warning, and warnings are caught for all threads
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def file_digest(path: Path) -> dict[str, Any]:
    """{"sha256": hex, "bytes": size} of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def save_sharded(
    model: nn.Module, optimizer: torch.optim.Optimizer, extra_state: dict[str, Any], folder: str | Path
) -> None:
    """Write this rank's part of a checkpoint into its own empty folder; every rank calls it.

    extra_state is JSON-able and taken from rank 0. The optimizer comes from `build_optimizer`, so its state is
    complete.
    """
    write_sharded(Staging(copies=False).take(model, optimizer), extra_state, folder)


def write_sharded(
    staged: Staged, extra_state: dict[str, Any], folder: str | Path, group: dist.ProcessGroup | None = None
) -> None:
    """`save_sharded` of what was staged. In a thread of its own it needs a process `group` of its own, over all ranks.

    When a rank's write fails, its error is raised on all ranks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    assert not any(folder.iterdir()), f"{folder} is not empty"
    rank, world = _rank_and_world()
    # No fsync: the folder is uploaded right after, and its digests are checked at load. No copies ahead: they are made
    # on the stream of whatever GPU a thread finds current, and another thread's may be another one.
    writer = dcp.FileSystemWriter(folder, sync_files=False, per_thread_copy_ahead=0)
    try:
        with _single_process_is_meant():
            dcp.save(
                staged.tensors,
                storage_writer=writer,
                planner=StagedPlanner(staged),
                process_group=group,
                no_dist=not dist.is_initialized(),
            )
    except CheckpointException as error:  # not an Exception, which Ray's threads would not notice
        raise next(cause for cause, _trace in error.failures.values()) from error
    if rank == 0:
        state = {"format": FORMAT, "optimizer_step": staged.optimizer_step, "extra": extra_state}
        (folder / STATE_FILE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    record = {"format": FORMAT, "rank": rank, "world": world, "files": files}
    (folder / f"digests.rank{rank}.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise DamagedError(f"checkpoint file {path} is missing or damaged: use an older checkpoint") from error


def _records(folder: Path) -> list[dict[str, Any]]:
    first = _read_record(folder / "digests.rank0.json")
    if first.get("format") != FORMAT:
        raise StorageError(f"checkpoint {folder} has format {first.get('format')!r}, this version reads {FORMAT}")
    return [first, *(_read_record(folder / f"digests.rank{rank}.json") for rank in range(1, first["world"]))]


def verify(folder: str | Path) -> None:
    """Check every file of a checkpoint against the digests of all ranks, and that `.metadata` calls nothing.

    Raises DamagedError for a missing, changed or extra file, StorageError for another format.
    """
    folder = Path(folder)
    records = _records(folder)
    expected = {name: digest for record in records for name, digest in record["files"].items()}
    listed = set(expected) | {f"digests.rank{rank}.json" for rank in range(len(records))}
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    for problem, names in (("lacks", listed - present), ("has the unknown", present - listed)):
        if names:
            raise DamagedError(f"checkpoint {folder} {problem} file {min(names)}: use an older checkpoint")
    for name, digest in sorted(expected.items()):
        if file_digest(folder / name) != digest:
            raise DamagedError(f"checkpoint file {folder / name} differs from its digest: use an older checkpoint")
    check_metadata(folder / ".metadata")


def verify_together(folder: str | Path) -> None:
    """As `verify`, on all ranks at once: where one finds damage, all raise its DamagedError.

    Each rank may have a copy of its own, and one that goes on alone would wait for the others for ever.
    """
    damage: str | None = None
    try:
        verify(folder)
    except DamagedError as error:
        damage = str(error)
    found: list[str | None] = [damage]
    if dist.is_initialized():
        found *= dist.get_world_size()
        dist.all_gather_object(found, damage)
    for text in filter(None, found):
        raise DamagedError(text)


def _load(tensors: dict[str, Any], reader: dcp.FileSystemReader, folder: Path, no_dist: bool) -> None:
    try:
        with _single_process_is_meant():
            dcp.load(tensors, storage_reader=reader, no_dist=no_dist)
    except CheckpointException as error:  # not an Exception, which Ray's threads would not notice
        cause = next(cause for cause, _trace in error.failures.values())
        raise DamagedError(f"checkpoint {folder} cannot be read ({cause}): use an older checkpoint") from error


def load_sharded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str | Path) -> dict[str, Any]:
    """Fill model and optimizer in place from a whole checkpoint folder, at any world size; returns its extra_state.

    Every rank calls it. Raises DamagedError on all of them when a file is damaged, and ConfigError when it was saved
    with another optimizer or architecture.
    """
    folder = Path(folder)
    verify_together(folder)
    tensors: dict[str, Any] = {**named_tensors(model, optimizer)}
    reader = dcp.FileSystemReader(folder)
    missing = tensors.keys() - reader.read_metadata().state_dict_metadata.keys()
    if missing:
        raise ConfigError(
            f"checkpoint {folder} has no {min(missing)}: it was saved with another train.optimizer or model; restore "
            "the config, or give the run a new run.name"
        )
    _load(tensors, reader, folder, no_dist=not dist.is_initialized())
    state = json.loads((folder / STATE_FILE).read_text())
    set_optimizer_step(optimizer, state["optimizer_step"])
    return state["extra"]


def stored_weights(folder: str | Path) -> dict[str, torch.Size]:
    """Name of a parameter or buffer in a checkpoint folder that was verified -> its shape."""
    stored = dcp.FileSystemReader(Path(folder)).read_metadata().state_dict_metadata
    return {
        key.removeprefix(WEIGHTS): meta.size
        for key, meta in stored.items()
        if key.startswith(WEIGHTS) and isinstance(meta, TensorStorageMetadata)
    }


def load_weights(tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Fill tensors, whole or sharded, by name of parameter from a checkpoint folder that was verified.

    Every rank calls it and reads what its shards need. Raises DamagedError.
    """
    named = {f"{WEIGHTS}{name}": tensor for name, tensor in tensors.items()}
    _load(named, dcp.FileSystemReader(Path(folder)), Path(folder), no_dist=not dist.is_initialized())


def content_digest(folder: str | Path) -> str:
    """SHA-256 (hex) over the digests of all files that the ranks wrote; the files themselves are `verify`'s."""
    records = _records(Path(folder))
    files = {name: about["sha256"] for record in records for name, about in record["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def load_full_state_dict(folder: str | Path) -> dict[str, Tensor]:
    """Name of a parameter or buffer -> whole float32 tensor on the CPU, for export; one process, no process group.

    Raises StorageError when `verify` does.
    """
    folder = Path(folder)
    verify(folder)
    reader = dcp.FileSystemReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(meta.size, dtype=meta.properties.dtype)
        for key, meta in stored.items()
        if key.startswith("model.") and isinstance(meta, TensorStorageMetadata)
    }
    _load(tensors, reader, folder, no_dist=True)
    return {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
