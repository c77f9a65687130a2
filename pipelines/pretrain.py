"""Raw text to a trained, exported, evaluated model, on one Ray cluster.

    python -m pipelines.pretrain                                     the quickstart, on this machine
    python -m pipelines.pretrain train.steps=20 run.name=first       any field can be given
    python -m pipelines.pretrain --config configs/125m.yaml --dry-run
    ray job submit -- python -m pipelines.pretrain

The same command continues a run that was interrupted, at the step after its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipelines.driver.cli import Cluster, cluster, config_parser, run_main, settled
from pipelines.driver.continuation import changes_from, read_resolved
from pipelines.driver.imports import import_torch_behind
from pipelines.driver.parent import Parent
from pipelines.driver.progress import Console
from pipelines.driver.recording import Recording
from pipelines.driver.start import already_complete, open_data
from pretrainer.config import Config
from pretrainer.data.readers.source import Manifest
from pretrainer.lease import Lease, hold
from pretrainer.storage import Store, resolve_run


def main(arguments: Sequence[str]) -> int:
    started_s = time.time()
    parser = config_parser("pretrain", __doc__.split("\n\n")[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the derived plan, train nothing"
    )
    options = parser.parse_args(arguments)
    config, parent = read_resolved(options)
    run = resolve_run(config.run.name, config.run.storage)
    import_torch_behind()
    if options.dry_run:
        return dry_run(config, run, parent)
    with cluster(config) as there:
        code = pretrain(settled(config, there), run, there, started_s)
    print(run.child("summary.json").uri, flush=True)  # the last line, after Ray has said everything it has to say
    return code


def dry_run(config: Config, run: Store, parent: Parent | None = None) -> int:
    """Every check and the plan; asks no cluster for anything but what it has."""
    from pipelines.driver.preflight import check, local_cluster, plan_lines

    with local_cluster(config) as there:
        config = settled(config, there)
        manifest = check(config, run, there)
        print(
            "\n".join(
                [
                    f"plan of run {config.run.name} in {run.uri}",
                    *plan_lines(config, manifest, there, config.vocab_size),
                ]
            )
        )
        print("".join(f"  {line}\n" for line in (changes_from(config, parent) if parent else [])), end="")
        print("everything that can be checked beforehand is in order; nothing was trained (--dry-run)")
    return 0


def pretrain(config: Config, run: Store, there: Cluster, started_s: float) -> int:
    """One start of a run, from its config to its summary."""
    from pipelines.driver.preflight import check

    console = Console(started_s, config)
    manifest = check(config, run, there)
    done = already_complete(run, config)
    if done is not None:
        return done
    where = f"dashboard {there.dashboard}" if there.dashboard else ""
    with hold(run, where, config.cluster.heartbeat_s, config.cluster.takeover_s) as lease:
        return drive(config, run, there, started_s, console, manifest, lease)


def drive(
    config: Config, run: Store, there: Cluster, started_s: float, console: Console, manifest: Manifest, lease: Lease
) -> int:
    """The run's only driver, until the lease is lost."""
    from pipelines.driver.preflight import plan_lines

    console.plan(run, there, plan_lines(config, manifest, there, config.vocab_size))
    recording = Recording.begin(config, run, lease)
    data = open_data(config, run, console)
    from pipelines.driver.results import finish
    from pipelines.driver.session import Session, train

    session = Session.open(config, run, data, there, started_s, lease, recording)
    outcome = train(session, console)
    return finish(session, outcome, console)


if __name__ == "__main__":
    run_main(main)
