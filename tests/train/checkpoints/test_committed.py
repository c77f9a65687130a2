"""Folders that a crash left uncommitted, a list of checkpoints that it tore, and the checkpoint of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.driver.checkpoints import checkpoint_folder
from pretrainer.errors import DamagedError, StorageError, UserError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import (
    SNAPSHOT,
    asked_step,
    committed_checkpoint,
    committed_checkpoints,
    damaged,
    drop_damaged,
    drop_missing,
    folder_name,
    keep_snapshot,
    mend_snapshot,
    remove_uncommitted,
    rewind,
)


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """Steps 10 and 20 are committed, by attempts 0 and 1."""
    store = Store(str(tmp_path))
    commit(store, (10, 0), (20, 1))
    return store


def commit(run: Store, *folders: tuple[int, int]) -> None:
    results = [{"checkpoint_dir_name": folder_name(*f), "metrics": {"step": f[0]}} for f in folders]
    snapshot = {
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
    }
    run.write(SNAPSHOT, json.dumps(snapshot).encode())
    for folder in folders:
        upload(run, folder_name(*folder))


def upload(run: Store, name: str) -> None:
    for rank in range(2):
        run.write(f"checkpoints/{name}/__{rank}_0.distcp", b"weights")


def left(run: Store) -> set[str]:
    return {path.split("/")[1] for path, *_ in run.list("checkpoints")}


def test_the_newest_checkpoint_that_was_asked_for(run: Store) -> None:
    assert asked_step(Store(f"{run.uri}/empty")) == asked_step(run) == -1
    listed = [{"checkpoint_dir_name": "x", "metrics": {"step": step, "asked": step < 30}} for step in (10, 20, 30)]
    run.write(SNAPSHOT, json.dumps({"checkpoint_results": listed}).encode())
    assert asked_step(run) == 20


def test_attempts_never_share_a_folder() -> None:
    assert len({folder_name(step, attempt) for step in (1, 2, 12) for attempt in (0, 1, 11)}) == 9


def test_what_earlier_attempts_did_not_commit_is_removed(run: Store) -> None:
    upload(run, folder_name(30, 1))
    upload(run, folder_name(5, 0))  # committed once; Ray crashed before it deleted it
    assert sorted(remove_uncommitted(run, attempt=2)) == [folder_name(5, 0), folder_name(30, 1)]
    assert left(run) == {folder_name(10, 0), folder_name(20, 1), SNAPSHOT.split("/")[1]}


def test_what_this_or_a_later_attempt_writes_stays(run: Store) -> None:
    for attempt in (2, 3):
        upload(run, folder_name(30, attempt))
    upload(run, "step-000000030")  # not one of ours
    assert remove_uncommitted(run, attempt=2) == []
    assert {folder_name(30, 2), folder_name(30, 3), "step-000000030"} < left(run)


def test_nothing_is_removed_before_the_first_checkpoint(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert remove_uncommitted(store, attempt=0) == [] and committed_checkpoints(store) == {}


def test_torn_list_gets_the_one_before(run: Store, tmp_path: Path) -> None:
    keep_snapshot(run)
    (tmp_path / SNAPSHOT).write_text((tmp_path / SNAPSHOT).read_text()[:40])
    with pytest.raises(StorageError, match="snapshot-before.json"):
        committed_checkpoint(run)
    assert mend_snapshot(run)
    assert committed_checkpoint(run) == (f"checkpoints/{folder_name(20, 1)}", 20)
    assert not mend_snapshot(run)


def test_a_whole_list_is_left_alone_and_a_lost_one_is_an_error(run: Store, tmp_path: Path) -> None:
    before = run.read(SNAPSHOT)
    assert not mend_snapshot(run) and run.read(SNAPSHOT) == before
    (tmp_path / SNAPSHOT).write_text("")
    with pytest.raises(StorageError, match="torn"):
        mend_snapshot(run)


def test_no_copy_is_kept_where_a_write_replaces_the_whole_object(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_local", property(lambda _self: False))
    keep_snapshot(run)
    assert not run.exists("checkpoints/snapshot-before.json")


@pytest.mark.parametrize(("step", "folder"), [(None, (20, 1)), (10, (10, 0)), (20, (20, 1))])
def test_checkpoint_of_a_step(run: Store, step: int | None, folder: tuple[int, int]) -> None:
    assert checkpoint_folder(run, step) == f"checkpoints/{folder_name(*folder)}"


def test_missing_checkpoint_names_those_there_are(run: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of step 30: give one of 10, 20"):
        checkpoint_folder(run, 30)
    with pytest.raises(UserError, match="no committed checkpoint yet"):
        checkpoint_folder(Store(str(tmp_path / "other")), None)


def test_the_checkpoint_before_a_damaged_one_counts_and_the_damaged_one_is_kept(run: Store) -> None:
    assert drop_damaged(run, folder_name(20, 1)) == 10
    assert committed_checkpoint(run) == (f"checkpoints/{folder_name(10, 0)}", 10)
    assert remove_uncommitted(run, attempt=2) == [] and folder_name(20, 1) in left(run)


def test_a_damaged_checkpoint_that_is_not_the_newest_leaves_the_newest(run: Store) -> None:
    assert drop_damaged(run, folder_name(10, 0)) == 20
    assert committed_checkpoints(run) == {20: f"checkpoints/{folder_name(20, 1)}"}


def test_a_rewind_takes_what_is_behind_it_off_the_list_and_the_next_attempt_deletes_it(run: Store) -> None:
    assert rewind(run, 15) == 10 and committed_checkpoint(run) == (f"checkpoints/{folder_name(10, 0)}", 10)
    assert rewind(run, 10) == 10, "again, after a crash, and the step itself stays"
    assert remove_uncommitted(run, attempt=2) == [folder_name(20, 1)] and damaged(run) == []
    with pytest.raises(DamagedError):
        rewind(run, 5)


def test_the_last_checkpoint_is_not_dropped(run: Store) -> None:
    drop_damaged(run, folder_name(20, 1))
    with pytest.raises(DamagedError, match="no older checkpoint: give the run another run.name"):
        drop_damaged(run, folder_name(10, 0))
    assert committed_checkpoint(run) is not None


def test_a_folder_that_was_deleted_is_taken_off_the_list(run: Store) -> None:
    assert drop_missing(run) == []
    for path, *_ in run.list(f"checkpoints/{folder_name(20, 1)}"):
        run.delete(path)
    assert drop_missing(run) == [folder_name(20, 1)]
    assert committed_checkpoint(run) == (f"checkpoints/{folder_name(10, 0)}", 10)
    assert drop_missing(run) == []
