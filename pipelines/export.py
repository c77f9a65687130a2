"""Write a checkpoint as a Hugging Face folder: config.json, safetensors, tokenizer files.

    python -m pipelines.export RUN [--checkpoint 200] [--to FOLDER]

RUN is a run folder (path or URI) or the name of a run under run.storage.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.cli import run_main
from pretrainer.config import Config, RunConfig
from pretrainer.config_load import parse_config
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.errors import UserError
from pretrainer.model.hf import to_hf
from pretrainer.storage import Store, resolve_run
from pretrainer.train.checkpoint import load_full_state_dict
from pretrainer.train.committed import committed_checkpoints
from pretrainer.train.copies import copy_file, find_copies


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
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(config, run, checkpoint_folder(run, options.checkpoint), Path(folder))
        for path in sorted(Path(folder).iterdir()):
            target.write(path.name, path.read_bytes())
    print(target.uri)
    return 0


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
