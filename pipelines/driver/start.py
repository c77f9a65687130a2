"""What every start of a run does before it curates or trains: freeze, compare with the last start, write down."""

from __future__ import annotations

import json

from pipelines.driver.continuation import changes_from
from pipelines.driver.parent import adopt, recorded_parent
from pipelines.driver.progress import Console
from pretrainer.config import Config
from pretrainer.config_load import to_yaml
from pretrainer.data.prologue import Frozen, accept, data_folder, freeze, share
from pretrainer.errors import ConfigError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoint, drop_missing, mend_snapshot


def open_data(config: Config, run: Store, console: Console) -> Frozen:
    """The run's frozen inputs; nothing is written over when they are refused. Only for the holder of the lease."""
    if mend_snapshot(run):
        console.say("warning: a crash tore the list of checkpoints; the one before the last commit is in its place")
    for name in drop_missing(run):
        console.say(f"warning: checkpoint {name} is not in storage any more; the newest of the others counts")
    held_before = adopt(config, run)
    parent = recorded_parent(run)
    for line in changes_from(config, parent) if parent else []:
        console.say(f"  {line}")
    own = run.child("data")
    if config.run.data_from is None:
        data = freeze(config, own, held_before)
    else:
        data = share(config, data_folder(config, run), own)
    refuse_changed_stream(run, data)
    accept(data, own)
    run.write("config.yaml", to_yaml(config).encode())
    console.data(data)
    return data


def refuse_changed_stream(run: Store, data: Frozen) -> None:
    """A run that has trained cannot go on with other tokens; before its first checkpoint it starts a new ledger."""
    committed = committed_checkpoint(run)
    if data.changes and committed is not None and committed[1] > 0:
        raise ConfigError(
            f"run {run.uri} has trained {committed[1]:,} steps on another stream of tokens; since then changed: "
            f"{', '.join(data.changes)}. Put it back, or give the new run another run.name"
        )


def already_complete(run: Store, config: Config) -> int | None:
    """Exit code 0 and the old result when this run has reached its last step before; None when there is work to do."""
    try:
        summary = json.loads(run.read("summary.json"))
    except FileNotFoundError:
        return None
    early = summary.get("early_stop")
    same_rule = early and early["stop_after_validations"] == config.evaluation.stop_after_validations
    if summary["status"] != "completed" or (summary["steps"] < config.total_steps and not same_rule):
        return None
    print(
        f"run {config.run.name} is complete: {summary['steps']:,} steps, validation loss {summary['val_loss']}. "
        f"Raise {'evaluation.stop_after_validations' if same_rule else 'train.steps'} to go on, or give another "
        "run.name to begin again"
    )
    return 0
