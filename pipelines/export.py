"""Write a checkpoint as a Hugging Face folder: config.json, safetensors, tokenizer files, and the run's card.

    python -m pipelines.export RUN [--checkpoint 200] [--to FOLDER]

RUN is a run folder (path or URI) or the name of a run under run.storage.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.driver.card import card_files
from pipelines.driver.cli import run_main
from pretrainer.config import Config, RunConfig
from pretrainer.config_load import parse_config
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.errors import UserError
from pretrainer.model.hf import to_hf
from pretrainer.storage import Store, resolve_run
from pretrainer.train.checkpoints.checkpoint import load_full_state_dict
from pretrainer.train.checkpoints.committed import FOLDER, committed_checkpoints
from pretrainer.train.checkpoints.copies import copy_file, find_copies

log = logging.getLogger(__name__)

NEWEST = "the newest committed one"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--checkpoint", type=int, help="step of a committed checkpoint; the newest by default")
    parser.add_argument("--to", help="folder or URI to write to; RUN/export by default")
    options = parser.parse_args(arguments)
    run = resolve_run(options.run, options.storage)
    config = run_config(run)
    target = Store(options.to) if options.to else run.child("export")
    checkpoint = checkpoint_folder(run, options.checkpoint)
    rule = NEWEST if options.checkpoint is None else f"asked for with --checkpoint {options.checkpoint}"
    exported = write_export(config, run, checkpoint, target, rule)
    warning = write_card(run, target, exported)
    if warning:
        print(warning, file=sys.stderr)
    print(target.uri)
    return 0


def write_export(config: Config, run: Store, checkpoint: str, target: Store, rule: str) -> dict[str, Any]:
    """Hugging Face files of a checkpoint; returns what the card says of it."""
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(config, run, checkpoint, Path(folder))
        sha256 = {}
        for path in sorted(Path(folder).iterdir()):
            content = path.read_bytes()
            sha256[path.name] = hashlib.sha256(content).hexdigest()
            target.write(path.name, content)
    named = FOLDER.fullmatch(checkpoint.rsplit("/", 1)[-1])
    step = int(named[1]) if named else None
    return {"step": step, "folder": checkpoint, "rule": rule, "sha256": sha256["model.safetensors"]}


def write_card(run: Store, target: Store, exported: dict[str, Any]) -> str:
    """README.md and card.json beside the model; a warning where that failed, which must not cost anyone the model."""
    try:
        for name, content in card_files(run, exported).items():
            target.write(name, content)
    except Exception as error:
        log.debug("the card", exc_info=True)
        return f"warning: the model is exported, its card is not ({type(error).__name__}: {error})"
    return ""


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


def export_checkpoint(config: Config, run: Store, checkpoint: str, folder: Path) -> None:
    """Weights of a checkpoint and the run's tokenizer as Hugging Face files in a local folder."""
    tokenizer = load_tokenizer(data_folder(config, run).uri)
    special_ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    with tempfile.TemporaryDirectory() as local:
        download(run.child(checkpoint), Path(local))
        weights = load_full_state_dict(local)
        to_hf(weights, config.model, config.model.rows(tokenizer.vocab_size), folder, config.data.seq_len, special_ids)
    export_hf(tokenizer, folder)


def download(store: Store, folder: Path) -> None:
    """Copy every object below a store into a local folder."""
    found = store.list()
    if not found:
        raise UserError(f"{store.uri} does not exist: name one of the folders beside it")
    for path, _size, _version in found:
        copy_file(store, path, Store(str(folder)))


if __name__ == "__main__":
    run_main(main)
