"""A checkpoint as a Hugging Face folder, with the run's card: for `pipelines.export` and at the end of a run."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from pipelines.driver.card import card_files
from pipelines.driver.checkpoints import download
from pretrainer.config import Config
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.model.hf import to_hf
from pretrainer.storage import Store
from pretrainer.train.checkpoints.checkpoint import load_full_state_dict
from pretrainer.train.checkpoints.committed import FOLDER

log = logging.getLogger(__name__)

NEWEST = "the newest committed one"


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


def export_checkpoint(config: Config, run: Store, checkpoint: str, folder: Path) -> None:
    """Weights of a checkpoint and the run's tokenizer as Hugging Face files in a local folder."""
    tokenizer = load_tokenizer(data_folder(config, run).uri)
    special_ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    with tempfile.TemporaryDirectory() as local:
        download(run.child(checkpoint), Path(local))
        weights = load_full_state_dict(local)
        to_hf(weights, config.model, config.model.rows(tokenizer.vocab_size), folder, config.data.seq_len, special_ids)
    export_hf(tokenizer, folder)
