"""Write a checkpoint as a Hugging Face folder: config.json, safetensors, tokenizer files, and the run's card.

    python -m pipelines.export RUN [--checkpoint 200] [--to FOLDER]

RUN is a run folder (path or URI) or the name of a run under run.storage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipelines.driver.checkpoints import checkpoint_folder, run_config
from pipelines.driver.cli import run_main
from pipelines.driver.exports import NEWEST, write_card, write_export
from pretrainer.config import RunConfig
from pretrainer.storage import Store, resolve_run


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


if __name__ == "__main__":
    run_main(main)
