"""Which checkpoints count: read from what Ray Train's controller has committed, without Ray or torch.

    checkpoints/checkpoint_manager_snapshot.json     Ray's list of what is committed
    checkpoints/snapshot-before.json                 on a local disk: the list as it was before the last commit
    checkpoints/step-<step>-a<attempt>/              one folder per checkpoint

A folder can be complete in storage and not committed, when a crash fell between its upload and its commit. The worker
group that comes next may have another size, and Ray merges an upload into a folder that is there: so each attempt has
folders of its own, and removes those that the ones before it left uncommitted.

A checkpoint whose files are damaged is taken off the list, and the one before it counts; its folder is kept.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pretrainer.errors import DamagedError, StorageError
from pretrainer.storage import Store

CHECKPOINTS = "checkpoints"
SNAPSHOT = f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"
SNAPSHOT_BEFORE = f"{CHECKPOINTS}/snapshot-before.json"
DAMAGED = f"{CHECKPOINTS}/damaged.json"  # names of the folders that were taken off the list
FOLDER = re.compile(r"step-(\d+)-a(\d+)")


def folder_name(step: int, attempt: int) -> str:
    """Name of the folder that a worker group saves a step to."""
    return f"step-{step:09d}-a{attempt:06d}"


def committed_checkpoint(run: Store) -> tuple[str, int] | None:
    """(folder under the run, step) of the newest checkpoint that Ray Train has committed, or None before the first.

    The workers get the committed one, so the stream must start there too. Both read the controller's snapshot (Ray
    2.60; contract-tested in tests/train/test_controller.py).
    """
    snapshot = _snapshot(run)
    latest = snapshot.get("latest_checkpoint_result") if snapshot else None
    return None if latest is None else _folder_and_step(run, snapshot, latest)


def committed_checkpoints(run: Store) -> dict[int, str]:
    """Step -> folder under the run, of every checkpoint that is committed and kept."""
    snapshot = _snapshot(run)
    kept = [_folder_and_step(run, snapshot, one) for one in snapshot.get("checkpoint_results", [])]
    latest = committed_checkpoint(run)
    return {step: folder for folder, step in sorted([*kept, *([latest] if latest else [])], key=lambda one: one[1])}


def asked_step(run: Store) -> int:
    """Step of the newest kept checkpoint that was asked for, so that the workers wait after it; -1 if there is none."""
    kept = (_snapshot(run) or {}).get("checkpoint_results", [])
    return max((one["metrics"]["step"] for one in kept if one["metrics"].get("asked")), default=-1)


def remove_uncommitted(run: Store, attempt: int) -> list[str]:
    """Delete what attempts before this one uploaded and did not commit, or Ray did not come to delete; its names."""
    committed = {*committed_checkpoints(run).values(), *(f"{CHECKPOINTS}/{name}" for name in damaged(run))}
    doomed: dict[str, list[str]] = {}
    for path, _size, _version in run.list(CHECKPOINTS):
        name = path.split("/")[1]
        is_ours = FOLDER.fullmatch(name)
        if is_ours and int(is_ours[2]) < attempt and f"{CHECKPOINTS}/{name}" not in committed:
            doomed.setdefault(name, []).append(path)
    for path in (path for paths in doomed.values() for path in paths):
        run.delete(path)
    return list(doomed)


def damaged(run: Store) -> list[str]:
    """Names of the folders that `drop_damaged` has taken off the list."""
    try:
        return list(json.loads(run.read(DAMAGED)))
    except FileNotFoundError:
        return []


def drop_damaged(run: Store, name: str) -> int:
    """Take a folder off Ray's list, so that the newest of the others is the committed one; returns its step.

    Only while no controller is at work: it would write its own list over this one. Raises DamagedError when the list
    would be empty.
    """
    changed, step = _without(run, {name})
    run.write(DAMAGED, json.dumps([*damaged(run), name]).encode())
    run.write(SNAPSHOT, changed)
    return step


def rewind(run: Store, step: int) -> int:
    """Take every checkpoint behind a step off Ray's list; returns the step of the newest that is left.

    Only while no controller is at work. Their folders go when the next worker group begins (`remove_uncommitted`).
    """
    names = {folder.split("/")[1] for at, folder in committed_checkpoints(run).items() if at > step}
    changed, left = _without(run, names)
    run.write(SNAPSHOT, changed)
    return left


def _without(run: Store, names: set[str]) -> tuple[bytes, int]:
    """(Ray's list without these folders, the step of the newest that is left)."""
    snapshot = _snapshot(run)
    listed = list(zip(snapshot["checkpoint_results"], snapshot["checkpoint_report_indices"], strict=True))
    kept = [(result, index) for result, index in listed if result["checkpoint_dir_name"] not in names]
    if not kept:
        raise DamagedError(
            f"{run.uri}/{CHECKPOINTS}/{min(names)} cannot be used, and there is no older checkpoint: give the run "
            "another run.name to begin again"
        )
    newest = max((result for result, _index in kept), key=lambda result: _folder_and_step(run, snapshot, result)[1])
    waiting = zip(snapshot["pending_training_results"], snapshot["pending_validation_specs"], strict=True)
    pending = [(result, spec) for result, spec in waiting if result["checkpoint_dir_name"] not in names]
    changed = {
        "checkpoint_results": [result for result, _index in kept],
        "checkpoint_report_indices": [index for _result, index in kept],
        "latest_checkpoint_result": newest,
        "pending_training_results": [result for result, _spec in pending],
        "pending_validation_specs": [spec for _result, spec in pending],
    }
    return json.dumps(snapshot | changed).encode(), _folder_and_step(run, snapshot, newest)[1]


def drop_missing(run: Store) -> list[str]:
    """Take folders off the list that are not in storage any more, which Ray would not start with; their names."""
    present = {path.split("/")[1] for path, _size, _version in run.list(CHECKPOINTS)}
    missing = [folder.split("/")[1] for folder in committed_checkpoints(run).values()]
    missing = [name for name in missing if name not in present]
    for name in missing:
        drop_damaged(run, name)
    return missing


def keep_snapshot(run: Store) -> None:
    """Before a commit on a local disk, where Ray empties its list before it writes the new one."""
    if run.is_local and (snapshot := _snapshot(run)):
        run.write(SNAPSHOT_BEFORE, json.dumps(snapshot).encode())


def mend_snapshot(run: Store) -> bool:
    """Put the list before the last commit in the place of one that a crash left torn; True when that was needed."""
    try:
        _snapshot(run)
    except StorageError:
        if not run.exists(SNAPSHOT_BEFORE):
            raise
        run.write(SNAPSHOT, run.read(SNAPSHOT_BEFORE))
        return True
    return False


def _snapshot(run: Store) -> dict[str, Any]:
    """{} before the first checkpoint."""
    try:
        text = run.read(SNAPSHOT)
    except FileNotFoundError:
        return {}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{run.uri}/{SNAPSHOT} is not the JSON that Ray Train writes ({error}): a crash may have torn it. "
            f"Put a whole one in its place, {SNAPSHOT_BEFORE} if there is one"
        ) from error


def _folder_and_step(run: Store, snapshot: dict[str, Any], result: Any) -> tuple[str, int]:
    try:
        return f"{CHECKPOINTS}/{result['checkpoint_dir_name']}", int(result["metrics"]["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{run.uri}/{SNAPSHOT} was written by Ray {snapshot.get('ray_version')} and cannot be read: {error!r}"
        ) from error
