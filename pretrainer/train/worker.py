"""The training loop: what every rank runs, as one straight story.

The stream deals slot blocks round-robin, so a rank knows by arithmetic which block comes next and checks each block's
stamp before it trains on it. Only rank 0 talks to the recorder (an actor on the driver's node, see recorder.py), writes
the audit log and the checkpoint's state; everything that decides is reduced over all ranks first.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from functools import partial

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from pretrainer.config import Config
from pretrainer.errors import DamagedError, PretrainerError, StreamError, find_cause
from pretrainer.model.generate import generate_in_lockstep
from pretrainer.model.ring import Ring
from pretrainer.pooled import pooled_loss
from pretrainer.schema import Batch, from_ipc
from pretrainer.storage import Store
from pretrainer.train import batch as slots
from pretrainer.train.blocks import open_blocks
from pretrainer.train.checkpoints.checkpoint import load_sharded
from pretrainer.train.checkpoints.committed import folder_name, remove_uncommitted
from pretrainer.train.checkpoints.saving import Saving
from pretrainer.train.checkpoints.upload import RayCommits
from pretrainer.train.elasticity.preemption import PreemptedError, PreemptionWatch, seconds_left
from pretrainer.train.feed import Feed
from pretrainer.train.initialise import initialise, refuse_another
from pretrainer.train.memory import keep_freed_memory
from pretrainer.train.objective import target_bytes
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.scaling import LossScale, first_scale
from pretrainer.train.optim.schedule import learning_rate
from pretrainer.train.reporter import Reporter
from pretrainer.train.scores import Scores
from pretrainer.train.scoring.evaluate import Evaluation, evaluate
from pretrainer.train.scoring.selection import is_over, judge
from pretrainer.train.sharding.layout import Layout, Ranks
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spec import TrainState, WorkerSpec
from pretrainer.train.spikes import Detector
from pretrainer.train.stability.healing import Healer
from pretrainer.train.stability.kept_blocks import KeptBlocks
from pretrainer.train.step import MicroBatch, StepResult, all_reduce_sum
from pretrainer.train.stepper import Stepper, prepare
from pretrainer.train.telemetry.audit import Audit
from pretrainer.train.telemetry.communication import is_due, watched
from pretrainer.train.telemetry.monitor import Monitor
from pretrainer.train.telemetry.phases import Phases, process_age_s, pulse_period_s
from pretrainer.train.threads import set_threads

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 64
SAMPLE_TEMPERATURE = 0.5
RESIZE_PATIENCE_S = 20.0


def train_loop(spec: WorkerSpec) -> None:
    """Entry point of a rank under Ray Train; tells the recorder why before an error leaves."""
    phases = _phases(spec)
    try:
        _train(spec, phases)
    except DamagedError as error:  # all ranks leave together; the driver takes the checkpoint off the list
        _tell_damage(spec, error)
    except PretrainerError as error:
        ray.get(spec.recorder.fatal.remote(str(error), error.exit_code))
        raise
    except ray.exceptions.RayError as error:
        cause = find_cause(error)
        if cause is not None:
            ray.get(spec.recorder.fatal.remote(str(cause), cause.exit_code))
        raise
    finally:
        phases.end()


def _tell_damage(spec: WorkerSpec, error: DamagedError) -> None:
    """What is not about the checkpoint that this worker group was to begin with cannot be mended by an older one."""
    checkpoint = ray.train.get_checkpoint()
    assert checkpoint is not None
    name = checkpoint.path.rstrip("/").rsplit("/", 1)[-1]
    ray.get(spec.recorder.record.remote({"kind": "damaged", "folder": name, "message": str(error)}))


def _phases(spec: WorkerSpec) -> Phases:
    context, node = ray.train.get_context(), ray.get_runtime_context().get_node_id()
    period_s = pulse_period_s(spec.config.train.stall_timeout_s)
    rank, world = context.get_world_rank(), context.get_world_size()
    return Phases(rank, world, os.getpid(), node, spec.recorder.pulse.remote, period_s).begin()


def _train(spec: WorkerSpec, phases: Phases) -> None:
    import_s = process_age_s()
    config, context = spec.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if spec.fence is not None:
        spec.fence.check()
    device = ray.train.torch.get_device()
    phases.enter("load", 0)
    set_threads(config.train, ray.nodes, ray.get_runtime_context().get_node_id(), context.get_local_world_size())
    if device.type == "cpu":
        keep_freed_memory()
    ranks = Ranks(Layout.of(config.train, world), device.type)
    layout, ring = ranks.layout, Ring.of(ranks.ring)
    model = build_model(config.model, spec.vocab_size, config.train, device, ranks)
    optimizer = build_optimizer(model, config.train)
    checkpoint = ray.train.get_checkpoint()
    state = _restore(spec, model, optimizer, checkpoint)
    is_new = state is None
    if state is None:
        begun = initialise(model, config.run.seed, spec.origin, Store(spec.run_uri), context.get_local_rank())
        state = TrainState(fingerprint=spec.fingerprint, init_sha256=begun)
    loss_scale = _loss_scale(config, state, device)
    reporter = Reporter(spec, rank, world, device, phases)
    reporter.start(state, import_s)
    held_out = load_held_out(spec, device, ring)
    audit = Audit.begin(spec, rank, world, state.step)
    if rank == 0:
        remove_uncommitted(Store(spec.run_uri), audit.attempt)
    healer = Healer.open(config.stability, Store(spec.run_uri), rank, audit.attempt, state.step)
    if healer.restart is not None:  # decided by a group that did not live to say so
        return reporter.rewound(state, healer.restart)
    detector = Detector(config.stability, device)
    _resume(state, loss_scale, detector, spec.segment)
    commits = RayCommits(spec.fingerprint, config.evaluation.timeout_s)
    saving = Saving(spec, model, optimizer, audit, phases, commits)
    if is_new:  # never a committed step again: Ray would keep it twice and fail when it deletes it the second time
        saving.save(state)
        reporter.validation(state, validate(spec, model, held_out, layout, rank, phases, state.step))
    elif config.stability.rolls_back:
        saving.keep(state)
    total, end, every = config.total_steps, spec.end_step, config.train
    over, scores = is_over(state, config.evaluation), Scores(spec, model, device, rank, phases, reporter)
    if checkpoint is not None:
        scores.make_up(state, over or state.step == total, checkpoint.path.rstrip("/").rsplit("/", 1)[-1])
    if state.step == total or over or (state.step == 0 and not is_new):  # someone was lost right behind a checkpoint
        reporter.validation(state, validate(spec, model, held_out, layout, rank, phases, state.step))
    blocks = KeptBlocks(open_blocks(spec, ranks, rank, state.step, phases), config.stability.rolls_back)
    watch = PreemptionWatch(rank)
    monitor = Monitor(config.monitor, model, len(config.data.sources), lambda n: spec.order.expected(n)[0], device)
    stepper = Stepper(config, model, optimizer, loss_scale, detector, monitor)
    feed, stop, first_step, saved_step = Feed(device), False, state.step, state.step
    unjudged: list[tuple[int, StepResult]] = []  # the host looks at a verdict one step later

    def loss_of(step: int) -> float:
        mine, most = blocks.take(step)[0], slots.max_blocks(step, config.slot_blocks_per_step, layout.streams)
        return stepper.loss([prepare(config, spec.mask_vocabulary, device, ring, step, *one) for one in mine], most)

    while state.step < end and not stop and not over:
        step, began_s = state.step, time.perf_counter()
        mine, wait_s = blocks.take(step)
        if not reporter.steps_here and not reporter.may_begin():
            _wait_for_the_end(phases, step)
        phases.enter("agree", step)
        prepared = feed.prepare(partial(prepare, config, spec.mask_vocabulary, device, ring, step), mine)
        counts = [sum(p.targets for p in prepared), blocks.missing(step, mine)]
        asked = [reporter.stop_requested, reporter.checkpoint_requested, watch.due()]
        targets, missing, stops, wanted, look = all_reduce_sum([*counts, *asked], "cpu")
        targets = int(targets) // layout.team  # every rank of a team counted them
        phases.enter("step", step)
        hidden_s = feed.hidden_s(time.perf_counter() - began_s)
        phases.hide(hidden_s)
        if missing:
            reporter.exhausted(state)
            break
        rate = learning_rate(config.train, step, total) * healer.lr_factor(step)
        clip_norm = every.clip_norm * healer.clip_factor(step)
        detector.vetoes = healer.vetoes(step)
        most = slots.max_blocks(step, config.slot_blocks_per_step, layout.streams)
        left_out, looks = healer.left_out(step), monitor.is_due(step)
        if looks and left_out is None:
            monitor.begin(step, config.slot_blocks_per_step, prepared, loss_scale)
        with watched(is_due(step, first_step, config.monitor.profile_every_steps, world), device) as talk:
            result = left_out or stepper.run(prepared, most, targets, rate, clip_norm)
        feed.launched()
        if layout.reads(rank):
            audit.add(step, mine, [p.tokens for p in prepared], result)
        if talk.found:
            reporter.profiled(step + 1, talk.found)
        state.step, state.tokens = step + 1, state.tokens + config.train.global_batch_tokens
        reporter.step(state, result, rate, targets, max(0.0, wait_s - hidden_s), monitor)
        if looks and left_out is None:
            reporter.looked(state, monitor.end(), result, targets, monitor.share())
        stop = stops > 0
        last = stop or state.step == end
        notice = watch.look() if look else None
        leaving = bool(last or wanted or notice is not None)  # nothing is to be trained before it is committed
        saves = leaving or state.step % every.checkpoint_every_steps == 0
        unjudged.append((step, result))
        heal = None
        while len(unjudged) > (0 if saves else 1) and (heal is None or heal.to_step < 0):
            heal = healer.look(*unjudged.pop(0), saved_step, state.step, loss_of)
            if heal is not None:
                reporter.healed(state, heal)
        if heal is not None and heal.anew:
            saving.wait()
            return reporter.rewound(state, heal)
        if heal is not None and heal.to_step >= 0:
            state = saving.restore()
            _resume(state, loss_scale, detector, spec.segment)
            audit.forget()
            unjudged.clear()
            continue
        if state.step % every.validate_every_steps == 0 or last:
            held = validate(spec, model, held_out, layout, rank, phases, state.step)
            reporter.validation(state, held)
            judge(state, pooled_loss({name: asdict(one) for name, one in held.items()}), config.evaluation)
        over = saves and is_over(state, config.evaluation)
        last = last or over
        samples = state.step % every.sample_every_steps == 0 or state.step == min(20, total) or last
        if samples and config.model.causal:  # a model that reads in both directions has no next token
            phases.enter("sample", state.step)
            ids = generate_in_lockstep(
                model, spec.sample_prompt, SAMPLE_TOKENS, SAMPLE_TEMPERATURE, seed=state.step, device=device
            )
            reporter.sample(state, [*spec.sample_prompt, *ids])
        if saves:
            _keep(state, loss_scale, detector, spec.segment)
            beside = scores.beside(state.step, over or state.step == total)
            reporter.paused(saving.save(state, now=leaving or over, asked=wanted > 0, cadence=beside))
            saved_step = state.step
            blocks.forget(saved_step)
            healer.forget(saved_step)
            if not (stops or wanted or notice is not None):
                scores.score(state, over or state.step == total, folder_name(state.step, audit.attempt))
        for saved in saving.check():
            reporter.checkpoint(state, saved)
        if notice is not None and not last:
            reporter.preempted(state, seconds_left(notice))
            raise PreemptedError(f"a node is taken away; step {state.step} is saved")
        if wanted and not last:
            _wait_for_the_end(phases, state.step)
    if audit.lines_waiting:
        _keep(state, loss_scale, detector, spec.segment)
        saving.save(state, now=True)
    saving.wait()
    for saved in saving.check():
        reporter.checkpoint(state, saved)
    reporter.finish(state, _ending(state.step, total, end, stop, over), over)


def _wait_for_the_end(phases: Phases, step: int) -> None:
    """Ray ends this worker group now, for a larger one; what it would train would be lost."""
    phases.enter("resize", step)
    time.sleep(RESIZE_PATIENCE_S)


def _ending(step: int, total: int, end: int, stop: bool, over: bool) -> str:
    """Why the loop is left; a stop at the end of a segment is a stop."""
    if step == total or over:
        return "completed"
    return "stopped" if stop else "segment" if step == end else "exhausted"


def _loss_scale(config: Config, state: TrainState, device: torch.device) -> LossScale | None:
    if config.train.precision != "float16":
        return None
    scale = first_scale(config.train.global_batch_tokens) if state.loss_scale is None else state.loss_scale
    return LossScale(device, scale, state.good_steps)


def _keep(state: TrainState, loss_scale: LossScale | None, detector: Detector, segment: int) -> None:
    """Before a checkpoint; all ranks have the same."""
    if loss_scale is not None:
        state.loss_scale, state.good_steps = loss_scale.read()
    state.window, state.window_segment = detector.state(), segment


def _resume(state: TrainState, loss_scale: LossScale | None, detector: Detector, segment: int) -> None:
    """The reverse. A new segment has other texts, and so another usual loss."""
    if loss_scale is not None and state.loss_scale is not None:
        loss_scale.load(state.loss_scale, state.good_steps)
    detector.load(state.window if state.window_segment == segment else None)


def _restore(
    spec: WorkerSpec, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: ray.train.Checkpoint | None
) -> TrainState | None:
    """Weights, optimizer and state from the newest committed checkpoint, at any world size; None at the first start."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state = TrainState(**load_sharded(model, optimizer, folder))
    if state.fingerprint != spec.fingerprint:
        raise StreamError(
            f"the checkpoint of step {state.step} was trained on the stream {state.fingerprint}, this config makes "
            f"{spec.fingerprint}; restore the config, or give the run a new run.name"
        )
    refuse_another(state, spec.origin)
    return state


def load_held_out(spec: WorkerSpec, device: torch.device, ring: Ring | None) -> dict[str, list[MicroBatch]]:
    """Held-out micro-batches by source; the same list on every rank, or on each its part of the rows."""
    config, out = spec.config, {}
    for source in config.data.sources:
        table = from_ipc(Store(spec.data_uri).read(f"held_out/{source.name}.arrow"))
        batches = [Batch.from_row(row, spec.held_out_seq_len) for row in table.to_pylist()]
        out[source.name] = [
            micro
            for b in batches
            if b.lengths.any()
            for micro in prepare(config, spec.mask_vocabulary, device, ring, 0, b.block, b).micro_batches
        ]
    return out


def validate(
    spec: WorkerSpec, model: nn.Module, held_out: dict[str, list[MicroBatch]], layout: Layout, rank: int,
    phases: Phases, step: int,
) -> dict[str, Evaluation]:  # fmt: skip
    """Held-out loss by source; of masked tokens, bits per byte are estimated from their share."""
    phases.enter("validate", step)
    text_bytes = {name: target_bytes(spec.config.train, size) for name, size in spec.held_out_bytes.items()}
    stream, streams = layout.stream_rank(rank), layout.streams
    return {name: evaluate(model, batches, text_bytes[name], stream, streams) for name, batches in held_out.items()}
