"""A sweep: the same training with many settings, the best of them as a config, and what the losses say.

    python -m pipelines.tune --config configs/sweep.yaml                    3 batches x 4 learning rates
    python -m pipelines.tune --config configs/sweep.yaml sweep.scheduler=asha
    python -m pipelines.pretrain --config ~/pretrainer-runs/sweep/best.yaml

The text is curated once, and all trials train on the same tokens in the same order. The same command continues a sweep
that was interrupted: trials that are over are not run again, the others go on from their last checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipelines.driver.cli import Cluster, cluster, config_parser, run_main, settled
from pipelines.driver.continuation import read_resolved
from pipelines.driver.preflight import check, check_concurrency
from pipelines.driver.progress import Console
from pipelines.driver.start import open_data
from pipelines.driver.sweep_results import SweepTracker, finish_sweep
from pipelines.driver.sweep_table import SweepConsole
from pipelines.driver.trial import TrialTask
from pipelines.driver.tuner import Board, search
from pipelines.prepare import follow
from pretrainer.config import Config
from pretrainer.config_load import to_yaml
from pretrainer.data.curriculum import epochs_needed
from pretrainer.data.prologue import Frozen, accept, share
from pretrainer.lease import hold
from pretrainer.storage import Store, resolve_run
from pretrainer.tuning.records import Records
from pretrainer.tuning.space import check_space, largest_batch, longest

PREPARED = "prepared.json"


def main(arguments: Sequence[str]) -> int:
    started_s = time.time()
    config, _parent = read_resolved(config_parser("tune", __doc__.split("\n\n")[0]).parse_args(arguments))
    check_space(config)
    run = resolve_run(config.run.name, config.run.storage)
    with cluster(config) as there:
        code = tune(settled(config, there), run, there, started_s)
    print(run.child("summary.json").uri, flush=True)  # the last line, after Ray has said everything it has to say
    return code


def tune(config: Config, run: Store, there: Cluster, started_s: float) -> int:
    """One start of a sweep, from its config to its result."""
    check(config, run, there)
    check_concurrency(config, there)
    with hold(run, "a sweep", config.cluster.heartbeat_s, config.cluster.takeover_s):
        records = Records(run)
        records.begin(config)
        data = prepare(config, run, Console(started_s, config))
        tracker = SweepTracker.open(config, run, data.fingerprint)
        task = TrialTask(config, run.uri, there, tracker.uri, tracker.run_id)
        board = Board(records, config.sweep)
        console = SweepConsole(config, board, started_s, tracker)
        console.begin(run)
        search(board, task, console.tell)
        return finish_sweep(config, run, data, board.all, tracker, console)


def prepare(config: Config, run: Store, console: Console) -> Frozen:
    """The sweep's tokens, curated once: as many as a trial trains on, and what its stream reads ahead.

    Should that not be enough, trials curate the rest themselves: slower, and the same tokens.
    """
    folder = run.child("data")
    if run.exists(PREPARED):
        data = share(config, folder, folder)
        run.write("config.yaml", to_yaml(config).encode())
        accept(data, folder)
        return data
    data = open_data(config, run, console)
    for plan, tokens in zip(data.plans, tokens_needed(config, data), strict=True):
        follow(plan, console, tokens)
    run.write(PREPARED, b"{}")
    return data


def tokens_needed(config: Config, data: Frozen) -> list[float]:
    """By source: what the trials take, a part more for what packing leaves out, and what is read ahead of them."""
    base, largest = config.data, max(largest_batch(config), config.train.global_batch_tokens)
    taken = epochs_needed(data.segments, config.train.global_batch_tokens, [1.0] * len(data.plans))
    longer = longest(config) / (config.total_steps * config.train.global_batch_tokens)
    blocks = max(64 * base.seq_len * base.slot_sequences, 8 * largest)
    chunks = base.look_ahead_chunks * base.chunk_bytes / 2  # no text has as many tokens
    return [1.2 * tokens * longer + 2 * base.pack_window_tokens + blocks + chunks for tokens in taken]


if __name__ == "__main__":
    run_main(main)
