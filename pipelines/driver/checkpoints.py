"""Which checkpoint of which run a command means, and its files on this machine."""

from __future__ import annotations

from pathlib import Path

from pretrainer.config import Config
from pretrainer.config_load import parse_config
from pretrainer.errors import UserError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoints
from pretrainer.train.checkpoints.copies import BEST, Place, copy_file, find_copies


def run_config(run: Store) -> Config:
    """The resolved config of a run."""
    try:
        return parse_config(run.read_text("config.yaml"), where=f"{run.uri}/config.yaml")
    except FileNotFoundError:
        raise UserError(
            f"{run.uri} is not a run folder (it has no config.yaml): give a run folder or the name of a run"
        ) from None


def checkpoint_folder(run: Store, step: int | None) -> str:
    """Path of a checkpoint below the run: that of a step, milestones and the best among them, or the newest."""
    committed = {**find_copies(run), **committed_checkpoints(run)}
    if not committed:
        raise UserError(f"run {run.uri} has no committed checkpoint yet: wait for one, or look at its log")
    if step is not None and step not in committed:
        steps = ", ".join(map(str, committed))
        raise UserError(f"run {run.uri} has no checkpoint of step {step}: give one of {steps} (train.keep_checkpoints)")
    return committed[max(committed) if step is None else step]


def choose_checkpoints(run: Store, wanted: str) -> dict[int, str]:
    """Step -> folder below the run, ascending."""
    everything = dict(sorted({**find_copies(run), **committed_checkpoints(run)}.items()))
    if wanted == "all" and everything:
        return everything
    if wanted == "best":
        steps = list(Place(BEST, run.child(BEST)).copies())
        if not steps:
            raise UserError(f"{run.uri} has no best checkpoint: train with train.keep_best=true, or use newest or all")
        return {step: everything[step] for step in steps}
    if wanted in ("newest", "all"):
        newest = checkpoint_folder(run, None)
        return {step: folder for step, folder in everything.items() if folder == newest}
    try:
        return {step: checkpoint_folder(run, step) for step in sorted(map(int, wanted.split(",")))}
    except ValueError:
        raise UserError(f"--checkpoints {wanted!r} is not possible: use newest, best, all or steps: 200,400") from None


def download(store: Store, folder: Path) -> None:
    """Copy every object below a store into a local folder."""
    found = store.list()
    if not found:
        raise UserError(f"{store.uri} does not exist: name one of the folders beside it")
    for path, _size, _version in found:
        copy_file(store, path, Store(str(folder)))
