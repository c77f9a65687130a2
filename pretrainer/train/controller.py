"""Ray Train around the loop: the trainer, and why a worker group ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ray
import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.exceptions import PreemptionError

from pretrainer.config import Config
from pretrainer.storage import Store
from pretrainer.subcluster import others
from pretrainer.train.checkpoints.committed import CHECKPOINTS, asked_step, committed_checkpoint
from pretrainer.train.elasticity.elastic import FixedSize, OneReservation, PolicyTorchTrainer, UsefulSizes
from pretrainer.train.elasticity.resize import sizes_of
from pretrainer.train.ordered import OrderedDataConfig
from pretrainer.train.spec import WorkerSpec
from pretrainer.train.worker import train_loop


class FailureReport(ControllerCallback):
    """Tells the recorder why a worker group ended: the driver counts failures, and shows the last one.

    The controller's states are looked at, because workers that die while their group starts raise in no worker. A
    failure is nobody's fault if its error says so: a preemption, Ray's own `preempted`, or a `restart_reason` of an
    error of ours; waiting for resources is none.
    """

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder

    def after_controller_start(self, *_context: Any) -> None:
        """The driver gets a handle of this actor: it ends the trainer of a run that is over for it."""
        self.recorder.keep_controller.remote(ray.get_runtime_context().current_actor)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        error = getattr(current_state, "training_failed_error", None)
        if error is getattr(previous_state, "training_failed_error", None):
            return  # while it waits for nodes, the controller enters the same state again ten times a second
        event = failure_event(error)
        if event is not None:
            self.recorder.record.remote(event)


def failure_event(error: Any) -> dict[str, Any] | None:
    """The recorder's event for a ray.train.TrainingFailedError; None where nothing failed."""
    cause = getattr(error, "controller_failure", error)
    if error is None or isinstance(cause, WorkerGroupStartupTimeoutError):
        return None
    failures = getattr(error, "worker_failures", None) or {-1: cause}
    errors = {rank: getattr(e, "_base_exc", e) for rank, e in sorted(failures.items())}
    reasons = {restart_reason(e) for e in errors.values()}
    told = [f"rank {rank}: {summary_line(e)}" if rank >= 0 else summary_line(e) for rank, e in list(errors.items())[:3]]
    message = "; ".join(dict.fromkeys(told))
    ranks = [rank for rank in errors if rank >= 0]
    return {"kind": "failure", "message": message, "reason": next(filter(None, reasons), None), "ranks": ranks}


def restart_reason(error: BaseException) -> str | None:
    if isinstance(error, PreemptionError) or getattr(error, "preempted", False):
        return "preempted"
    return getattr(error, "restart_reason", None)


def summary_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def make_trainer(
    config: Config,
    spec: WorkerSpec,
    run: Store,
    build: Callable[[int], ray.data.Dataset],
    use_gpu: bool,
    data_cpus: float,
    evaluation: ray.train.ValidationConfig | None = None,
) -> TorchTrainer:
    """The elastic trainer. `build(first global slot block)` makes the stream, at every start of a worker group.

    data_cpus: what the stream needs beside the trainers. evaluation: what is called with checkpoints, beside them.
    """
    path, filesystem = run.train_storage()

    def committed_step() -> int:
        committed = committed_checkpoint(run)
        return committed[1] if committed else 0

    def stream() -> ray.data.Dataset:
        return build(committed_step() * config.slot_blocks_per_step)

    scaling = _scaling(config, use_gpu)
    return PolicyTorchTrainer(
        train_loop,
        scaling_policy=_policy(config, spec, run, scaling, data_cpus),
        train_loop_config=spec,
        datasets={"train": stream},
        dataset_config=OrderedDataConfig(config.train.workers_per_stream),
        # Hosts agree among themselves over gloo, without waiting for their GPUs.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=scaling,
        validation_config=evaluation,
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            # Ray counts failures over the whole run: the driver counts those that got nowhere (train.max_failures).
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[cast(Any, FailureReport(spec.recorder))],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
        ),
    )


def _scaling(config: Config, use_gpu: bool) -> ray.train.ScalingConfig:
    lo, hi = config.train.worker_range
    gpus = {"GPU": config.train.gpus_per_worker} if use_gpu else {}
    scaling: Any = ray.train.ScalingConfig  # Ray's stub is of Train V1
    return scaling(
        label_selector=others(config.cluster.data_subcluster),
        num_workers=hi if lo == hi else (lo, hi),
        use_gpu=use_gpu,
        resources_per_worker={"CPU": config.train.cpus_per_worker, **gpus},
    )


def _policy(
    config: Config, spec: WorkerSpec, run: Store, scaling: ray.train.ScalingConfig, data_cpus: float
) -> OneReservation:
    lo, hi = config.train.worker_range
    if lo == hi:
        return FixedSize(scaling, run.uri)
    stable_s, recorder = config.train.resize_stable_s, spec.recorder
    return UsefulSizes(
        scaling, run.uri, sizes_of(config), stable_s, data_cpus, recorder, lambda: asked_step(run),
        config.cluster.data_subcluster, config.cluster.autoscaling, is_first=spec.segment == 0,
    )  # fmt: skip
