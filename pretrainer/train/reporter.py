"""A rank's line to the outside: events to the recorder from rank 0, gauges for the dashboard from all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
import torch
from ray.util.metrics import Gauge

from pretrainer.config.evaluation import Cadence
from pretrainer.model.flops import flops_per_token, model_flops_utilization
from pretrainer.storage import Store
from pretrainer.train.checkpoints.saving import Saved
from pretrainer.train.scoring.evaluate import Evaluation
from pretrainer.train.scoring.selection import evaluation_event, write_point
from pretrainer.train.sharding.experts import expert_load
from pretrainer.train.spec import Tasks, TrainState, WorkerSpec
from pretrainer.train.stability.policies import Heal
from pretrainer.train.step import StepResult
from pretrainer.train.telemetry.monitor import Monitor, Noise, memory_use
from pretrainer.train.telemetry.phases import Phases

GAUGES = {
    "loss": "Training loss, nats per token",
    "tokens_per_s": "Training tokens per second over all workers",
    "rank_tokens_per_s": "Training tokens per second of one rank: its share of the batch",
    "mfu": "Model FLOPs utilization, 0 to 1, where the device's peak is known",
    "data_wait_fraction": "Share of the time that this rank waited for data",
    "step": "Optimizer steps done",
}


@dataclass
class Interval:
    """Sums since the last log line or checkpoint."""

    started_s: float = field(default_factory=time.perf_counter)
    wait_s: float = 0.0
    tokens: int = 0
    steps: int = 0


class Reporter:
    """Rank 0's line to the recorder, and this rank's gauges for the Ray dashboard and Prometheus."""

    def __init__(self, spec: WorkerSpec, rank: int, world: int, device: torch.device, phases: Phases) -> None:
        self.spec, self.rank, self.world, self.device, self.phases = spec, rank, world, device, phases
        self.steps_here = 0  # since this worker group started
        self.flops = flops_per_token(spec.config.model, spec.vocab_size, spec.config.data.seq_len)
        self.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.peak_tflops = spec.config.monitor.device_peak_tflops
        self.interval = Interval()
        self.waiting: list[tuple[dict[str, Any], StepResult]] = []
        self.pending: Any = None  # answer of the recorder to the last event
        self.stop_requested = self.checkpoint_requested = 0
        self.noise = Noise()
        tags = {"run": spec.config.run.name, "rank": str(rank)}
        self.gauges = {name: Gauge(f"pretrainer_{name}", text, tag_keys=tuple(tags)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def _send(self, event: dict[str, Any], is_progress: bool = True) -> None:
        """is_progress: the seconds since the last event led to its step."""
        if self.rank == 0:
            if self.pending is not None:
                answer: Any = ray.get(self.pending)
                self.stop_requested, self.checkpoint_requested = int(answer["stop"]), int(answer["checkpoint"])
            spent = {"phase_s": self.phases.take()} if is_progress else {}
            self.pending = self.spec.recorder.record.remote({**event, **spent})

    def start(self, state: TrainState, import_s: float) -> None:
        """`import_s`: from the start of this process to its loop."""
        where = {"step": state.step, "segment": self.spec.segment, "world_size": self.world, "device": self.device_name}
        self._send({"kind": "start", **where, "time_s": time.time(), "import_s": import_s})

    def may_begin(self) -> bool:
        """Before the first step of this start: False where this group is ended now for a larger one."""
        me = ray.get_runtime_context().get_actor_id()
        return self.rank != 0 or bool(ray.get(self.spec.recorder.begin.remote(me)))

    def step(
        self, state: TrainState, result: StepResult, rate: float, targets: int, wait_s: float, monitor: Monitor
    ) -> None:
        """Every rank calls it: where it is time for a line, losses by source are summed over ranks."""
        interval = self.interval
        self.steps_here += 1
        interval.wait_s, interval.tokens, interval.steps = (
            interval.wait_s + wait_s,
            interval.tokens + self.spec.config.train.global_batch_tokens,
            interval.steps + 1,
        )
        line = {"step": state.step, "learning_rate": rate, "targets": targets, "time_s": time.time()}
        self.waiting.append((line, result))
        every = self.spec.config.train.log_every_steps
        if state.step % every == 0 or self.steps_here == 1 or state.step == self.spec.config.total_steps:
            self._flush(state, result, monitor.source_losses())

    def looked(
        self, state: TrainState, look: dict[str, Any], result: StepResult, targets: int, monitor_share: float
    ) -> None:
        """What a close look has found; the global batch is the big one of the noise scale."""
        if result.applied:
            self.noise.look(look["probes"], result.grad_norm, targets)
        self._send(
            {
                "kind": "look",
                "step": state.step,
                "values": look["values"],
                "noise_scale_tokens": self.noise.scale_tokens,
                "batch_tokens": targets,
                "looks": len(self.noise.signal),
                "monitor_share": monitor_share,
                **memory_use(self.device),
            }
        )

    def profiled(self, step: int, shares: dict[str, float]) -> None:
        """How much of a step was communication on rank 0."""
        self._send({"kind": "profile", "step": step, "world_size": self.world, **shares}, is_progress=False)

    def _flush(self, state: TrainState, result: StepResult, source_losses: Sequence[float | None] = ()) -> None:
        steps = [
            {**line, "loss": one.loss, "grad_norm": one.grad_norm, "applied": one.applied}
            for line, one in self.waiting
        ]  # here the host waits for the device, so the time that has passed is that of whole steps
        elapsed = max(1e-9, time.perf_counter() - self.interval.started_s)
        rate, waited = self.interval.tokens / elapsed, self.interval.wait_s / elapsed
        mfu = model_flops_utilization(rate, self.flops, self.world, self.device_name, self.peak_tflops)
        self._measure(
            loss=result.loss,
            tokens_per_s=rate,
            rank_tokens_per_s=rate / self.world,
            mfu=mfu,
            data_wait_fraction=waited,
            step=state.step,
        )
        self._send(
            {
                "kind": "steps",
                "step": state.step,
                "steps": steps,
                "tokens": state.tokens,
                "tokens_per_s": rate,
                "data_wait_s": self.interval.wait_s,
                "elapsed_s": elapsed,
                "is_first": self.steps_here == 1,
                "data_wait_fraction": waited,
                "mfu": mfu,
                "world_size": self.world,
                "source_losses": {
                    source.name: loss
                    for source, loss in zip(self.spec.config.data.sources, source_losses, strict=False)
                    if loss is not None
                },
                "expert_tokens": result.expert_tokens,
                "expert_load": expert_load(result.expert_tokens),
            }
        )
        self.interval, self.waiting = Interval(), []

    def _measure(self, **values: float | None) -> None:
        """Set this rank's gauges; None is what nobody knows."""
        for name, value in values.items():
            if value is not None:
                self.gauges[name].set(float(value))

    def healed(self, state: TrainState, heal: Heal) -> None:
        """Something showed, and this is done about it."""
        if self.waiting:
            self._flush(state, self.waiting[-1][1])
        self._send(heal.event())

    def rewound(self, state: TrainState, heal: Heal) -> None:
        """This worker group ends, and the driver begins one from an older checkpoint."""
        self._send({"kind": "rewind", "step": state.step, "to_step": heal.to_step, "message": heal.message})
        if self.rank == 0:
            ray.get(self.pending)

    def validation(self, state: TrainState, results: dict[str, Evaluation]) -> None:
        self._send({"kind": "validation", "step": state.step, "sources": {k: asdict(v) for k, v in results.items()}})
        self.interval = Interval()  # validation is not training time

    def evaluation(self, state: TrainState, cadence: Cadence, tasks: Tasks, seconds: float, folder: str) -> None:
        """Task files, scored by the workers; rank 0 also keeps it in the run folder."""
        event = evaluation_event(state.step, cadence, tasks, seconds, "workers", folder)
        if self.rank == 0:
            write_point(Store(self.spec.run_uri), event)
        self._send(event)
        self.interval = Interval()

    def sample(self, state: TrainState, ids: list[int]) -> None:
        self._send({"kind": "sample", "step": state.step, "ids": ids})
        self.interval = Interval()

    def paused(self, seconds: float) -> None:
        """Training waited, for a checkpoint: that is no training time."""
        self.interval.started_s += seconds

    def checkpoint(self, state: TrainState, saved: Saved) -> None:
        """A checkpoint is committed, and training stands at `state` by now. Step 0 is no progress that counts."""
        if saved.state.step == 0:
            return
        event = {
            "kind": "checkpoint",
            "step": saved.state.step,
            "order_digest": saved.state.order_digest,
            "weights_sha256": saved.state.weights_sha256,
            "asked": saved.asked,
            "blocking_s": saved.blocking_s,
            "total_s": saved.total_s,
        }
        self._send(event, is_progress=saved.state.step == state.step)
        if saved.asked:
            self.checkpoint_requested = 0  # the answer that came meanwhile is older than this

    def preempted(self, state: TrainState, seconds_left: float | None) -> None:
        self._send({"kind": "preempted", "step": state.step, "seconds_left": seconds_left, "time_s": time.time()})
        if self.rank == 0:
            ray.get(self.pending)

    def exhausted(self, state: TrainState) -> None:
        self._send({"kind": "exhausted", "step": state.step})

    def finish(self, state: TrainState, status: str, early: bool) -> None:
        self._send(
            {
                "kind": "finish",
                "status": status,
                "early": early,
                "step": state.step,
                "tokens": state.tokens,
                "order_digest": state.order_digest,
                "weights_sha256": state.weights_sha256,
            }
        )
        if self.rank == 0:
            ray.get(self.pending)
