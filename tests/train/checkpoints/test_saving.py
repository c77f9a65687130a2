"""Checkpoints while training goes on: snapshots, order, one in flight, errors and kills; Ray Train is in test_upload.

python -m pytest -q tests/train/checkpoints/test_saving.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import ProcessExitedException

from pretrainer.errors import LeaseError
from pretrainer.lease import Fence, claim_path
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.storage import Store
from pretrainer.train.checkpoints import saving as module
from pretrainer.train.checkpoints.checkpoint import load_sharded, save_sharded, verify, write_sharded
from pretrainer.train.checkpoints.committed import asked_step, committed_checkpoints, folder_name, remove_uncommitted
from pretrainer.train.checkpoints.saving import in_background, new_scratch, remove_scratch_of_the_dead
from pretrainer.train.checkpoints.staging import Staged, Staging
from pretrainer.train.exact import weights_digest
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.spec import TrainState
from tests.train.commits import LocalCommits, make_saving
from tests.train.ranks import run_ranks
from tests.train.samples import MODEL, TRAIN, VOCAB, build, full_weights, run_steps

PATIENCE_S = 60.0


def write_when(allowed: threading.Event) -> None:
    """From now on this process writes checkpoints only when it is allowed to."""

    def held(*arguments: Any) -> None:
        assert allowed.wait(PATIENCE_S)
        write_sharded(*arguments)

    module.write_sharded = held  # type: ignore[assignment]


# --------------------------------------------------------------------------------------------------- the snapshot


def _save_and_train_on(rank: int, world: int, run: str) -> Any:
    """Step 2 is written after step 4 was trained, step 4 while the steps after it are."""
    model, optimizer = build()
    saving, allowed = make_saving(LocalCommits(run, rank, world), model, optimizer), threading.Event()
    write_when(allowed)
    state, weights = TrainState(fingerprint="f"), {}
    for step in (2, 4):
        run_steps(model, optimizer, rank, world, step - 2, step)
        state.step = step
        saving.save(state)
        save_sharded(model, optimizer, asdict(state), f"{run}/sync-{step}-{rank}")
        weights[step] = full_weights(model)
        if step == 2:
            before = saving.check()
            run_steps(model, optimizer, rank, world, 2, 4)  # then steps 2 and 3 are trained once more
            allowed.set()
    run_steps(model, optimizer, rank, world, 4, 8)
    saving.wait()
    return before, [saved.state.step for saved in saving.check()], weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_ranks(2, _save_and_train_on, str(folder))


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_that_is_written_later_has_the_bytes_of_its_step(run: tuple[Path, list[Any]], step: int) -> None:
    folder, results = run
    assert [(before, told) for before, told, _weights in results] == [([], [2, 4])] * 2
    there = folder / "checkpoints" / folder_name(step, 0)
    verify(there)
    for rank in range(2):
        written = {path.name: path for path in (folder / f"sync-{step}-{rank}").glob("*")}
        names = {name for name in written if name.endswith(".distcp") or name == "state.json"}
        assert len(names) == 2 - rank
        assert all((there / name).read_bytes() == written[name].read_bytes() for name in names)


def _load(rank: int, world: int, folder: str) -> Any:
    model, optimizer = build()
    init_weights(model, 99)
    return load_sharded(model, optimizer, folder), full_weights(model)


def test_what_two_ranks_saved_in_the_background_one_rank_loads(run: tuple[Path, list[Any]]) -> None:
    folder, results = run
    [(extra, weights)] = run_ranks(1, _load, str(folder / "checkpoints" / folder_name(4, 0)))
    assert extra == asdict(TrainState(step=4, fingerprint="f"))
    assert all(np.array_equal(weights[name], want) for name, want in results[0][2][4].items())


def _stage_on_a_mesh(rank: int, world: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    whole = {"matrix": torch.arange(35.0).view(5, 7), "row": torch.arange(3.0)}  # nothing divides evenly
    tensors: dict[str, Any] = {
        "matrix": distribute_tensor(whole["matrix"], mesh, [Shard(0), Shard(1)]),
        "row": distribute_tensor(whole["row"], mesh, [Shard(0), Shard(0)]),  # rank 3 has nothing of it
        "plain": torch.full((2,), 5.0),
    }
    staging = Staging(copies=True)
    shards = {n: staging._copy(n, t.to_local() if n in whole else t) for n, t in tensors.items()}
    for name in whole:
        tensors[name].to_local().zero_()
    write_sharded(Staged(tensors, shards, 3), {}, f"{folder}/{rank}", dist.new_group(backend="gloo"))


def test_tensors_on_a_mesh_of_two_dimensions_are_staged(tmp_path: Path) -> None:
    run_ranks(4, _stage_on_a_mesh, str(tmp_path))
    merged = tmp_path / "merged"
    merged.mkdir()
    for path in tmp_path.glob("[0-3]/*"):
        path.rename(merged / path.name)
    verify(merged)
    loaded = {"matrix": torch.zeros(5, 7), "row": torch.zeros(3), "plain": torch.zeros(2)}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(merged), no_dist=True)
    assert torch.equal(loaded["matrix"], torch.arange(35.0).view(5, 7))
    assert torch.equal(loaded["row"], torch.arange(3.0)) and loaded["plain"].tolist() == [5.0, 5.0]


# ------------------------------------------------------------------------------------- one process without a group


@pytest.fixture
def parts() -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = Transformer(MODEL, VOCAB)
    return model, build_optimizer(model, TRAIN)


def names(*steps: int) -> list[str]:
    return [folder_name(step, 0) for step in steps]


def test_buffers_are_used_again_and_not_shared_with_the_model(parts: tuple[Any, Any]) -> None:
    staging = Staging(copies=True)
    first, second = staging.take(*parts), staging.take(*parts)
    assert all(first.shards[name] is second.shards[name] for name in first.shards)
    mine = {tensor.untyped_storage().data_ptr() for tensor in first.tensors.values()}
    assert not mine & {tensor.untyped_storage().data_ptr() for tensor in first.shards.values()}


def test_two_saves_are_committed_in_order_and_never_at_once(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    commits = LocalCommits(tmp_path)
    saving = make_saving(commits, *parts, audited=False)
    commits.gate.clear()
    saving.save(TrainState(step=1))
    second = in_background(lambda: saving.save(TrainState(step=2)))
    wait([second], timeout=0.5)  # as long as the first is held up
    assert commits.events == [("reported", name) for name in names(1)]
    assert committed_checkpoints(Store(str(tmp_path))) == {}
    commits.gate.set()
    assert second.result(PATIENCE_S) > 0
    saving.wait()
    assert [(what, name) for what, name in commits.events if what != "uploaded"] == [
        (what, name) for name in names(1, 2) for what in ("reported", "committed")
    ]
    assert list(committed_checkpoints(Store(str(tmp_path)))) == [1, 2]


def test_a_commit_is_told_once_with_what_it_cost(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    commits = LocalCommits(tmp_path)
    saving = make_saving(commits, *parts, audited=False)
    commits.gate.clear()
    state = TrainState(step=1, tokens=7)
    blocking_s = saving.save(state)
    state.step, state.tokens = 2, 8
    assert saving.check() == []
    commits.gate.set()
    saving.wait()
    [saved] = saving.check()
    assert saved.state == TrainState(step=1, tokens=7, order_digest="digest of 1")
    assert state.order_digest == saved.state.order_digest
    assert saved.blocking_s == blocking_s and 0 < saved.blocking_s < saved.total_s
    assert saving.check() == []


def test_a_commit_that_training_notices_by_itself(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    commits = LocalCommits(tmp_path)
    saving = make_saving(commits, *parts, audited=False)
    saving.save(TrainState(step=1))
    assert saving.flight is not None
    wait([saving.flight], timeout=PATIENCE_S)
    assert [saved.state.step for saved in saving.check()] == [1] and saving.flight is None


@pytest.mark.parametrize("settings", [{"async_checkpoints": False}, {}], ids=["synchronous", "now"])
def test_a_checkpoint_that_is_waited_for_is_committed(
    tmp_path: Path, parts: tuple[Any, Any], settings: dict[str, Any]
) -> None:
    saving = make_saving(LocalCommits(tmp_path), *parts, audited=False, **settings)
    saving.save(TrainState(step=1), now=not settings, asked=True)
    assert list(committed_checkpoints(Store(str(tmp_path)))) == [1] and asked_step(Store(str(tmp_path))) == 1
    [saved] = saving.check()
    assert saved.asked and saved.blocking_s >= saved.total_s > 0
    assert bool(saving.staging._host) != bool(settings), "without async_checkpoints nothing is copied"


def test_the_digest_of_the_weights_is_that_of_the_staged_ones(
    tmp_path: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    want, saving = weights_digest(parts[0]), make_saving(LocalCommits(tmp_path), *parts, audited=False, exact=True)
    state = TrainState(step=1)
    monkeypatch.setattr(saving, "_begin", lambda _staged, _saved: None)
    saving.save(state)
    assert state.weights_sha256 == want
    make_saving(LocalCommits(tmp_path), *parts, audited=False).save(state, now=True)
    assert state.weights_sha256 is None


# ------------------------------------------------------------------------------------------------ what goes wrong


def _fail_on_rank_1(rank: int, world: int, run: str) -> Any:
    model, optimizer = build()
    if rank == 1:

        def full(*_arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        dcp.FileSystemWriter.write_data = full  # type: ignore[method-assign, assignment]
    saving = make_saving(LocalCommits(run, rank, world), model, optimizer)
    saving.save(TrainState(step=1))
    assert saving.flight is not None
    wait([saving.flight], timeout=PATIENCE_S)
    told = []
    for ask in (saving.check, saving.wait, lambda: saving.save(TrainState(step=2))):
        with pytest.raises(OSError) as error:
            ask()
        told.append(str(error.value))
    return told, list(committed_checkpoints(Store(run)))


def test_an_error_in_the_background_is_raised_on_every_rank_with_its_cause(tmp_path: Path) -> None:
    told = ["[Errno 28] No space left on device"] * 3  # at a step, at the end, at the next save
    assert run_ranks(2, _fail_on_rank_1, str(tmp_path)) == [(told, [])] * 2
    assert not list(tmp_path.glob("checkpoints/*"))


def test_an_upload_that_fails_is_not_committed(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    commits = LocalCommits(tmp_path)

    def refuse(_folder: Path, _name: str) -> Path:
        raise OSError("AWS Error ACCESS_DENIED")

    commits.upload = refuse  # type: ignore[method-assign]
    saving = make_saving(commits, *parts, audited=False)
    saving.save(TrainState(step=1))
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        saving.wait()
    assert commits.events == [("reported", folder_name(1, 0))]


def _lose_rank_1(rank: int, world: int, run: str) -> Any:
    """Rank 0's upload is done and rank 1 is held up when the worker group is lost."""
    tempfile.tempdir = f"{run}/tmp"
    model, optimizer = build()
    commits = LocalCommits(run, rank, world)
    if rank == 1:
        commits.gate.clear()
    saving = make_saving(commits, model, optimizer)
    saving.save(TrainState(step=1))
    dist.barrier()
    while rank == 0 and ("uploaded", folder_name(1, 0)) not in commits.events:
        time.sleep(0.01)
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_group_that_is_killed_in_flight_leaves_nothing_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    run = Store(str(tmp_path))
    with pytest.raises(ProcessExitedException):
        run_ranks(2, _lose_rank_1, run.uri)
    assert (tmp_path / "checkpoints" / folder_name(1, 0) / "digests.rank0.json").exists()
    assert committed_checkpoints(run) == {}
    assert remove_uncommitted(run, attempt=1) == names(1) and run.list("checkpoints") == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert len(remove_scratch_of_the_dead()) == 1 and not list((tmp_path / "tmp").glob(f"{module.SCRATCH}*"))


def test_a_driver_that_lost_its_lease_commits_nothing(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    commits = LocalCommits(tmp_path)
    saving = make_saving(commits, *parts, audited=False)
    saving.spec = replace(saving.spec, fence=Fence(str(tmp_path), 1))
    commits.gate.clear()
    saving.save(TrainState(step=1))
    claim = {"number": 2, "owner": "o", "host": "other", "machine": "m", "pid": 1, "pid_started": "1", "started_s": 0.0}
    Store(str(tmp_path)).create(claim_path(2), json.dumps({**claim, "where": ""}).encode())
    commits.gate.set()
    with pytest.raises(LeaseError, match="taken over"):
        saving.wait()
    assert committed_checkpoints(Store(str(tmp_path))) == {}


def test_local_files_are_removed_by_their_writer_or_by_the_next_one(
    tmp_path: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_saving(LocalCommits(tmp_path / "run"), *parts, audited=False).save(TrainState(step=1), now=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    mine, child = new_scratch(), subprocess.Popen(["sleep", "60"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child.pid)
        theirs = new_scratch()
    assert remove_scratch_of_the_dead() == []
    child.kill()
    child.wait()
    assert remove_scratch_of_the_dead() == [theirs.name] and mine.is_dir() and not theirs.exists()
