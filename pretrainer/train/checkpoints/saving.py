"""Checkpoints while training goes on: in which order things happen, and what a failure leaves. Without Ray.

On the step's thread: wait for the checkpoint before (one is in flight at a time), write the audit log, stage the
tensors (`staging`), report to Ray Train. In the background, on each rank: write and digest the files, upload them, and
on rank 0 wait until the checkpoint is committed, which it is when every rank's upload is done. Only then does `check`
say so. Writers need collectives: they have a process group of their own, used by one thread after the other.

A worker that is killed in between leaves a folder that is not committed, which the next attempt removes
(`committed.remove_uncommitted`), and local files, which the next worker on that node removes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from pretrainer.config.evaluation import Cadence
from pretrainer.lease import pid_started, this_machine
from pretrainer.storage import Store
from pretrainer.train.checkpoints.checkpoint import write_sharded
from pretrainer.train.checkpoints.committed import folder_name, keep_snapshot
from pretrainer.train.checkpoints.staging import Staged, Staging
from pretrainer.train.exact import agreed, named_digest
from pretrainer.train.spec import TrainState, WorkerSpec
from pretrainer.train.telemetry.audit import Audit
from pretrainer.train.telemetry.phases import Phases

SCRATCH = "pretrainer-checkpoint"

T = TypeVar("T")


class Commits(Protocol):
    """Where the files go and what makes a checkpoint count; Ray Train's is `upload.RayCommits`."""

    def upload(self, folder: Path, name: str) -> Any:
        """Copy this rank's files into the checkpoint's folder `name`; called in the background."""

    def report(self, saved: Saved, folder: Path, name: str, uploaded: Future[Any]) -> None:
        """Commit when all ranks are `uploaded`, and not if one fails; every rank calls it, and it does not wait.

        Behind the commit it is evaluated beside the training, as far as `saved.cadence` says.
        """

    def wait(self, name: str) -> None:
        """Until it is committed; called on rank 0, in the background, after its own upload."""


@dataclass
class Saved:
    """A checkpoint and what it cost: `blocking_s` of training, `total_s` until the commit.

    state: as it is saved. asked: the recorder asked for it, and the workers wait after it. cadence: of its evaluation
    beside the training, if it has one.
    """

    state: TrainState
    asked: bool
    cadence: Cadence | None
    started_s: float
    blocking_s: float = 0.0
    total_s: float = 0.0


class Saving:
    """The checkpoints of a worker group; every rank has one and calls `save` at the same steps."""

    def __init__(
        self,
        spec: WorkerSpec,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        audit: Audit,
        phases: Phases,
        commits: Commits,
    ) -> None:
        self.spec, self.model, self.optimizer = spec, model, optimizer
        self.audit, self.phases, self.commits = audit, phases, commits
        self.waits = not spec.config.train.async_checkpoints
        self.staging = Staging(copies=not self.waits or spec.config.stability.rolls_back)
        self.kept: tuple[Staged, TrainState] | None = None  # the last checkpoint, in memory
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.flight: Future[Saved] | None = None
        self.landed: list[Saved] = []
        remove_scratch_of_the_dead()

    def save(
        self, state: TrainState, now: bool = False, asked: bool = False, cadence: Cadence | None = None
    ) -> float:
        """Begin a checkpoint of this step; returns the seconds that training waited for it.

        now: return when it is committed, on every rank. Raises what went wrong with the one before.
        """
        started_s = time.perf_counter()
        self.phases.enter("checkpoint", state.step)
        self.wait()
        if self.audit.rank == 0:
            self._check_fence()
            keep_snapshot(Store(self.spec.run_uri))
        state.order_digest = self.audit.write(state)
        staged = self.staging.take(self.model, self.optimizer)
        state.weights_sha256 = agreed(named_digest(staged.weights())) if self.spec.config.train.exact else None
        self.kept = staged, replace(state)
        saved = Saved(replace(state), asked, cadence, started_s)
        self._begin(staged, saved)
        if now or self.waits:
            self.wait()
            if self.group is not None:
                dist.barrier(group=self.group)  # rank 0 alone sees the commit
        saved.blocking_s = time.perf_counter() - started_s
        return saved.blocking_s

    def keep(self, state: TrainState) -> None:
        """After a start: `restore` goes back to what was loaded, until the first checkpoint."""
        self.kept = self.staging.take(self.model, self.optimizer), replace(state)

    def restore(self) -> TrainState:
        """Model, optimizer and state as they were at the last checkpoint, whether or not that is committed yet."""
        assert self.kept is not None and self.staging.copies
        staged, state = self.kept
        staged.restore(self.model, self.optimizer)
        return replace(state)

    def check(self) -> list[Saved]:
        """What was committed since the last call, in order; a rank other than 0 knows of its own upload only.

        Raises what went wrong in the background.
        """
        if self.flight is not None and self.flight.done():
            self.wait()
        landed, self.landed = self.landed, []
        return landed

    def wait(self) -> None:
        """Until nothing is in flight; raises what went wrong in the background."""
        if self.flight is not None:
            self.landed.append(self.flight.result())
            self.flight = None

    def _begin(self, staged: Staged, saved: Saved) -> None:
        folder, name = new_scratch(), folder_name(saved.state.step, self.audit.attempt)
        uploaded = in_background(lambda: self._write(staged, asdict(saved.state), folder, name))
        self.commits.report(saved, folder, name, uploaded)
        self.flight = in_background(lambda: self._land(saved, name, uploaded))

    def _write(self, staged: Staged, state: dict[str, Any], folder: Path, name: str) -> Any:
        """Write this rank's files and upload them."""
        try:
            write_sharded(staged, state, folder, self.group)
            uploaded = self.commits.upload(folder, name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if self.audit.rank == 0:
            self._check_fence()  # again: the upload may have taken long
        return uploaded

    def _land(self, saved: Saved, name: str, uploaded: Future[Any]) -> Saved:
        uploaded.result()
        if self.audit.rank == 0:
            self.commits.wait(name)
        saved.total_s = time.perf_counter() - saved.started_s
        return saved

    def _check_fence(self) -> None:
        if self.spec.fence is not None:
            self.spec.fence.check()


def in_background(call: Callable[[], T]) -> Future[T]:
    """Call it in a thread of its own, which a process does not wait for when it ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def new_scratch() -> Path:
    """A new local folder of this process."""
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}-{_here()}-{os.getpid()}-{pid_started(os.getpid())}-"))


def remove_scratch_of_the_dead() -> list[str]:
    """Delete local folders of processes that were killed before they could; their names."""
    removed = []
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}-{_here()}-*-*-*"):
        pid, started = path.name.removeprefix(f"{SCRATCH}-{_here()}-").split("-")[:2]
        if pid_started(int(pid)) != started:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _here() -> str:
    """A name of this machine and of its numbers of processes."""
    return sha256(this_machine().encode()).hexdigest()[:12]
