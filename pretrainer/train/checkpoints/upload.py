"""What Ray Train does with a checkpoint: the upload to the run's storage, and the commit by its controller.

Each rank's report waits in a thread of Ray's until this rank's files are uploaded; the controller commits a checkpoint
when it has the reports of all ranks, and writes its list before it answers that it has. Reports are taken in the order
in which they were made. An error of an upload ends the worker group, and so does a worker that is killed: the reports
of the other ranks are then dropped, and nothing is committed.
(Ray 2.60; tests/train/checkpoints/test_upload.py pins it.)
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import ray.train
from ray._common.retry import call_with_retry
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode, ValidationTaskConfig
from ray.train.v2._internal.constants import AWS_RETRYABLE_TOKENS

from pretrainer.errors import StorageError
from pretrainer.train.checkpoints.saving import Saved

ATTEMPTS = 3  # as many as Ray makes of its own uploads


class RayCommits:
    """`saving.Commits` by Ray Train, for a worker of it."""

    def __init__(self, fingerprint: str, evaluation_timeout_s: float) -> None:
        self.fingerprint, self.evaluation_timeout_s = fingerprint, evaluation_timeout_s
        self.storage = ray.train.get_context().get_storage()

    def upload(self, folder: Path, name: str) -> Checkpoint:
        """Ray merges the ranks' files in one folder. A rejection that passes is tried again."""
        local = Checkpoint.from_directory(str(folder))
        return call_with_retry(
            lambda: self.storage.persist_current_checkpoint(local, name),
            "upload a checkpoint",
            AWS_RETRYABLE_TOKENS,
            ATTEMPTS,
        )

    def report(self, saved: Saved, folder: Path, name: str, uploaded: Future[Checkpoint]) -> None:
        """All ranks meet here for a moment; the metrics are read by `committed`, and by nobody's eye.

        Ray calls the trainer's ValidationConfig behind the commit, keeps the checkpoint until that is done, and after a
        failure calls it again.
        """
        timeout_s = self.evaluation_timeout_s
        evaluation = ValidationTaskConfig({"cadence": saved.cadence}, timeout_s) if saved.cadence else False
        ray.train.report(
            {"step": saved.state.step, "fingerprint": self.fingerprint, "asked": saved.asked},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=lambda _checkpoint, _name: uploaded.result(),
            delete_local_checkpoint_after_upload=False,  # the writer does
            validation=evaluation,
        )

    def wait(self, name: str) -> None:
        """Until the controller has taken every report that was made; raises StorageError if this one is not there."""
        reported = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        if name not in {Path(one.checkpoint.path).name for one in reported}:
            raise StorageError(f"Ray Train has not committed checkpoint {name}, though all its files are uploaded")
