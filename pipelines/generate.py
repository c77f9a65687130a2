"""Continue a text with a trained model.

    python -m pipelines.generate RUN --prompt "def main"

RUN is a run folder (path or URI) or the name of a run under run.storage.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.driver.checkpoints import checkpoint_folder, download, run_config
from pipelines.driver.cli import run_main
from pretrainer.config import Config, RunConfig
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.errors import UserError
from pretrainer.model.generate import generate
from pretrainer.model.transformer import Transformer
from pretrainer.storage import Store, resolve_run
from pretrainer.train.checkpoints.checkpoint import load_full_state_dict


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.generate", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--checkpoint", type=int, help="step of a committed checkpoint; the newest by default")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most probable token each time")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    run = resolve_run(options.run, options.storage)
    config = run_config(run)
    if not config.model.causal:
        raise UserError(f"{run.uri} was trained with model.causal=false: it fills masks and cannot continue a text")
    tokenizer = load_tokenizer(data_folder(config, run).uri)
    model = load_model(config, run, checkpoint_folder(run, options.checkpoint), config.model.rows(tokenizer.vocab_size))
    prompt = [tokenizer.bos_id, *(int(i) for i in tokenizer.encode(options.prompt))]
    ids = generate(
        model, prompt, options.max_new_tokens, options.temperature, options.top_k, options.seed, tokenizer.eos_id
    )
    print(options.prompt + tokenizer.decode(ids))
    return 0


def load_model(config: Config, run: Store, checkpoint: str, vocab_size: int) -> Transformer:
    """The model of a checkpoint, whole, on the CPU."""
    model = Transformer(config.model, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        download(run.child(checkpoint), Path(folder))
        model.load_state_dict(load_full_state_dict(folder), strict=False)
    return model.to(torch.float32).eval()


if __name__ == "__main__":
    run_main(main)
