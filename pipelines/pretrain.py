"""Raw text to a trained, exported, evaluated model, on one Ray cluster.

    python -m pipelines.pretrain                                     the quickstart, on this machine
    python -m pipelines.pretrain train.steps=20 run.name=first       any field can be given
    python -m pipelines.pretrain --config configs/125m.yaml --dry-run
    ray job submit -- python -m pipelines.pretrain

The same command continues a run that was interrupted, at the step after its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from pipelines.cli import Cluster, cluster, config_parser, read_config, run_main
from pipelines.preflight import check, local_cluster, plan_lines
from pipelines.progress import Console
from pipelines.results import already_complete, finish
from pipelines.session import Session, train
from pretrainer.config import Config
from pretrainer.config_load import to_yaml
from pretrainer.data.prologue import Frozen, freeze
from pretrainer.errors import ConfigError
from pretrainer.model.presets import resolve
from pretrainer.storage import Store, resolve_run
from pretrainer.train.controller import committed_checkpoint


def main(arguments: Sequence[str]) -> int:
    started_s = time.time()
    parser = config_parser("pretrain", __doc__.split("\n\n")[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the derived plan, train nothing"
    )
    options = parser.parse_args(arguments)
    config = read_config(options)
    config = dataclasses.replace(config, model=resolve(config.model))
    run = resolve_run(config.run.name, config.run.storage)
    if options.dry_run:
        return dry_run(config, run)
    with cluster(config) as there:
        code = pretrain(config, run, there, started_s)
    print(run.child("summary.json").uri, flush=True)  # the last line, after Ray has said everything it has to say
    return code


def dry_run(config: Config, run: Store) -> int:
    """Every check and the plan; asks no cluster for anything but what it has."""
    with local_cluster(config) as there:
        manifest = check(config, run, there)
        print(
            "\n".join(
                [
                    f"plan of run {config.run.name} in {run.uri}",
                    *plan_lines(config, manifest, there, config.tokenizer.vocab_size),
                ]
            )
        )
        print("everything that can be checked beforehand is in order; nothing was trained (--dry-run)")
    return 0


def pretrain(config: Config, run: Store, there: Cluster, started_s: float) -> int:
    """One start of a run, from its config to its summary."""
    console = Console(started_s, config)
    manifest = check(config, run, there)
    done = already_complete(run, config)
    if done is not None:
        return done
    console.plan(run, there, plan_lines(config, manifest, there, config.tokenizer.vocab_size))
    run.write("config.yaml", to_yaml(config).encode())
    data = freeze(config, run.child("data"))
    refuse_changed_stream(run, data)
    console.data(data)
    session = Session.open(config, run, data, there, started_s)
    outcome = train(session, console)
    return finish(session, outcome, console)


def refuse_changed_stream(run: Store, data: Frozen) -> None:
    """A run that has trained cannot go on with other tokens; before its first checkpoint it starts a new ledger."""
    committed = committed_checkpoint(run)
    if data.changes and committed is not None and committed[1] > 0:
        raise ConfigError(
            f"run {run.uri} has trained {committed[1]:,} steps on another stream of tokens; since then changed: "
            f"{', '.join(data.changes)}. Put it back, or give the new run another run.name"
        )


if __name__ == "__main__":
    run_main(main)
