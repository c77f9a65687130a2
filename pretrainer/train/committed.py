"""Which checkpoint counts: read from what Ray Train's controller has committed, without Ray or torch."""

from __future__ import annotations

import json

from pretrainer.errors import StorageError
from pretrainer.storage import Store

CHECKPOINTS = "checkpoints"
SNAPSHOT = f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"


def committed_checkpoint(run: Store) -> tuple[str, int] | None:
    """(folder under the run, step) of the newest checkpoint that Ray Train has committed, or None before the first.

    A folder can be complete in storage and not committed; the workers get the committed one, so the stream must start
    there too. Both read the controller's snapshot (Ray 2.60; contract-tested in tests/train/test_controller.py).
    """
    try:
        snapshot = json.loads(run.read(SNAPSHOT))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{run.uri}/{SNAPSHOT} is not the JSON that Ray Train writes: {error}") from error
    latest = snapshot.get("latest_checkpoint_result")
    if latest is None:
        return None
    try:
        return f"{CHECKPOINTS}/{latest['checkpoint_dir_name']}", int(latest["metrics"]["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{run.uri}/{SNAPSHOT} was written by Ray {snapshot.get('ray_version')} and cannot be read: {error!r}"
        ) from error
