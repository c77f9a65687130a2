"""Ray Train around the loop: the trainer, how its workers are fed, and which checkpoint counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from pretrainer.config import Config
from pretrainer.errors import StorageError
from pretrainer.storage import Store
from pretrainer.train.spec import WorkerSpec
from pretrainer.train.worker import train_loop

CHECKPOINTS = "checkpoints"
SNAPSHOT = f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"


class OrderedDataConfig(ray.train.DataConfig):
    """Ray's own `configure` hard-codes `equal=True`, which tears the last blocks into rows and drops some."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        # No locality hints: with them a block goes to the rank that is near it instead of the rank whose turn it is.
        splits = {name: ds.streaming_split(world_size, equal=False) for name, ds in datasets.items()}
        return [{name: split[rank] for name, split in splits.items()} for rank in range(world_size)]


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


def make_trainer(
    config: Config, spec: WorkerSpec, run: Store, build: Callable[[int], ray.data.Dataset], use_gpu: bool
) -> TorchTrainer:
    """The elastic trainer. `build(first global slot block)` makes the stream, at every start of a worker group."""
    path, filesystem = run.train_storage()
    lo, hi = config.train.worker_range

    def stream() -> ray.data.Dataset:
        committed = committed_checkpoint(run)
        return build((committed[1] if committed else 0) * config.slot_blocks_per_step)

    # Ray's annotations are those of Train V1: a dict for the loop, no range of workers.
    loop, loop_config, workers = cast(Any, train_loop), cast(Any, spec), cast(Any, hi if lo == hi else (lo, hi))
    return TorchTrainer(
        loop,
        train_loop_config=loop_config,
        datasets={"train": stream},
        dataset_config=OrderedDataConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
        ),
    )
