"""One start of a run: the recorder, the trainer in a thread, and what came out of it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from pipelines.driver.cli import Cluster
from pipelines.driver.evaluating import evaluates_beside, evaluation_gpus
from pipelines.driver.machine import driver_event
from pipelines.driver.parent import origin
from pipelines.driver.preflight import uses_gpu
from pipelines.driver.progress import Console
from pipelines.driver.recording import Recording
from pipelines.driver.suite import Suite, freeze_suite, validation_config
from pipelines.driver.supervise import Supervisor
from pipelines.driver.waiting import Waiting
from pretrainer.config import Config
from pretrainer.data.curriculum import Segment
from pretrainer.data.ledger.lines import open_line
from pretrainer.data.pipeline import build_stream, data_cpus
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import Frozen
from pretrainer.data.tokenizer.words import mask_vocabulary_of
from pretrainer.errors import DamagedError
from pretrainer.lease import Lease
from pretrainer.schema import from_ipc
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoint, drop_damaged, rewind
from pretrainer.train.controller import make_trainer
from pretrainer.train.spec import WorkerSpec
from pretrainer.train.stability.healing import pending_restart

log = logging.getLogger(__name__)

POLL_S = 0.5
STOP_PATIENCE_S = 120.0
END_PATIENCE_S = 30.0
PROMPT_TOKENS = 24


@dataclass
class Session:
    """What this start of the run works with."""

    config: Config
    run: Store
    data: Frozen
    cluster: Cluster
    started_s: float
    recorder: Any
    mlflow_uri: str
    mlflow_run_id: str
    lease: Lease
    supervisor: Supervisor
    suite: Suite | None

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Of worker groups, over all starts of the run."""
        return self.supervisor.starts.all

    @classmethod
    def open(
        cls, config: Config, run: Store, data: Frozen, cluster: Cluster, started_s: float, lease: Lease,
        recording: Recording,
    ) -> Session:  # fmt: skip
        suite = freeze_suite(config, run, evaluates_beside(config, cluster, uses_gpu(config, cluster)))
        run_id, recorder = recording.start(run, data.fingerprint), recording.actor
        recorder.record.remote(driver_event(cluster, lease.claim.number, started_s))
        waiting = Waiting(config, uses_gpu(config, cluster), data_cpus(config.data), time.time())
        supervisor = Supervisor(config, run, recorder, data, lease, started_s, waiting)
        return cls(config, run, data, cluster, started_s, recorder, recording.uri, run_id, lease, supervisor, suite)


@dataclass
class Outcome:
    """How training ended."""

    status: str = "failed"
    message: str = ""
    exit_code: int = 1
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


def train(session: Session, console: Console) -> Outcome:
    """Train one segment after the other from where the run stands, printing what happens."""
    outcome = Outcome(status="segment")
    while outcome.status == "segment":
        obey_restart(session, console)
        committed = committed_checkpoint(session.run)
        step = committed[1] if committed else 0
        segments = session.data.segments
        segment = next((segment for segment in segments if step < segment.end_step), segments[-1])
        before = len(outcome.events)
        train_segment(session, segment, outcome, console)
        if outcome.status == "damaged":
            fall_back(session, outcome, before, console)
    return outcome


def obey_restart(session: Session, console: Console) -> None:
    """A decision to go back to an older checkpoint, which the workers wrote down before they ended."""
    heal = pending_restart(session.run)
    if heal is not None:
        step = rewind(session.run, heal.to_step)
        console.say(f"{heal.message}: the run goes on from the checkpoint of step {step:,}; {heal.action}")


def fall_back(session: Session, outcome: Outcome, before: int, console: Console) -> None:
    """Go on from the checkpoint before the damaged one, which the workers found; without one the run has failed."""
    found = next(event for event in outcome.events[before:] if event["kind"] == "damaged")
    try:
        step = drop_damaged(session.run, found["folder"])
    except DamagedError as error:
        outcome.status, outcome.message, outcome.exit_code = "failed", str(error), error.exit_code
    else:
        console.say(f"warning: {found['message']}; it is left where it is, and the run goes on from step {step:,}")
        outcome.status = "segment"


def train_segment(session: Session, segment: Segment, outcome: Outcome, console: Console) -> None:
    """Run the trainer to the segment's end; a stop signal becomes a checkpoint and a clean end."""
    failure: list[Exception] = []
    trainer = make_trainer(
        session.config,
        worker_spec(session, segment),
        session.run,
        _stream(session, segment),
        uses_gpu(session.config, session.cluster),
        data_cpus(session.config.data),
        _validation(session),
    )

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever ends the trainer ends the run; it is reported below
            failure.append(error)

    thread = threading.Thread(target=fit, name="trainer", daemon=True)
    before = len(outcome.events)
    with stop_signals(session) as stop:
        thread.start()
        while thread.is_alive() and not outcome.of("fatal") and not stop.overdue():
            thread.join(POLL_S)
            _follow(session, outcome, console)
    failed = list(failure)  # by itself: ending the trainer is no failure of the run
    if thread.is_alive():
        end_trainer(session.recorder, thread)
    _follow(session, outcome, console)
    _judge(session, outcome, before, failed)


def end_trainer(recorder: Any, thread: threading.Thread) -> None:
    """The run is over, and Ray Train would go on: its workers go with its controller, and then the thread ends.

    Were it still waiting when the driver leaves Ray, Ray would end the process with an exit code of its own.
    """
    controller: Any = ray.get(recorder.controller.remote())
    if controller is not None:
        ray.kill(controller)
    thread.join(END_PATIENCE_S)


def _validation(session: Session) -> Any:
    """What Ray Train calls with a checkpoint; None where the workers evaluate, or nobody."""
    suite = session.suite
    if suite is None or not suite.beside:
        return None
    gpus = evaluation_gpus(session.config, uses_gpu(session.config, session.cluster))
    return validation_config(suite, session.data.vocab_size, session.recorder, gpus)


def _stream(session: Session, segment: Segment) -> Any:
    data, per_step = session.data, session.config.slot_blocks_per_step
    plans = open_line(Store(data.plans[0].data_uri), data.plans, data.segments, segment.line, per_step)
    order, look_ahead = segment.order, max(64, 8 * per_step)
    return lambda first_block: build_stream(plans, order, first_block, look_ahead)


def _follow(session: Session, outcome: Outcome, console: Console) -> None:
    for event in ray.get(session.recorder.events_from.remote(len(outcome.events))):
        outcome.events.append(event)
        session.supervisor.notice(event)
        console.event(event, session.starts)
    session.supervisor.look(outcome.events)


def _judge(session: Session, outcome: Outcome, before: int, failure: list[Exception]) -> None:
    """Status, exit code and message from what was seen in the segment, whose events are those from `before` on."""
    fatal, finished = outcome.of("fatal"), [e for e in outcome.events[before:] if e["kind"] == "finish"]
    kinds = {event["kind"] for event in outcome.events[before:]}
    if kinds & {"damaged", "rewind"} and not fatal:
        outcome.status = "damaged" if "damaged" in kinds else "segment"
    elif fatal:
        outcome.status, outcome.message, outcome.exit_code = "failed", fatal[0]["message"], fatal[0]["exit_code"]
    elif failure:
        outcome.status, outcome.exit_code = "failed", 1
        outcome.message = (
            f"training failed: {_last_line(failure[0])}; the same command continues from the last checkpoint"
        )
    elif finished:
        outcome.status, outcome.exit_code = finished[-1]["status"], 0
        if outcome.status == "exhausted":
            outcome.status, outcome.exit_code = "stopped", 2
            outcome.message = (
                f"the sources are exhausted after {finished[-1]['step']:,} of {session.config.total_steps:,} steps: "
                "lower train.steps, or raise max_epochs and give the same command again; what was trained is exported"
            )
    else:
        outcome.status, outcome.message = "stopped", "stopped before the workers could save; the same command continues"


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class StopRequest:
    """Whether someone asked the run to end, and since when."""

    def __init__(self) -> None:
        self.at_s: float | None = None

    def overdue(self) -> bool:
        return self.at_s is not None and time.time() - self.at_s > STOP_PATIENCE_S


@contextmanager
def stop_signals(session: Session) -> Iterator[StopRequest]:
    """SIGTERM (`ray job stop`) and Ctrl-C ask the workers to checkpoint and end; a second one ends at once.

    A trial of a sweep is no process of its own, and runs in a thread that gets no signals.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: object) -> None:
        if request.at_s is not None:
            raise KeyboardInterrupt
        request.at_s = time.time()
        print("stopping: the workers save a checkpoint after the current step (again to stop at once)", flush=True)
        session.recorder.request_stop.remote()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def worker_spec(session: Session, segment: Segment) -> WorkerSpec:
    data = session.data
    return WorkerSpec(
        config=segment.of(session.config),
        segment=segment.index,
        end_step=segment.end_step,
        vocab_size=data.vocab_size,
        order=segment.order,
        data_uri=data.plans[0].data_uri,
        run_uri=session.run.uri,
        fingerprint=data.fingerprint,
        held_out_bytes={name: held.bytes for name, held in data.held_out.items()},
        held_out_seq_len=session.config.data.seq_len,
        sample_prompt=sample_prompt(data),
        recorder=session.recorder,
        mask_vocabulary=mask_vocabulary_of(session.config, data.plans[0].data_uri),
        fence=session.lease.fence,
        evaluator=session.suite,
        origin=origin(session.config, session.run),
    )


def sample_prompt(data: Frozen) -> tuple[int, ...]:
    """The first tokens of the first held-out document of the first source."""
    plan = data.plans[0]
    documents = from_ipc(Store(plan.data_uri).read(f"held_out/{plan.source.name}.documents.arrow"))
    ids = load_tokenizer(plan.data_uri).encode(documents.column("text")[0].as_py()[:2000])
    return (plan.specials.bos, *(int(i) for i in ids[:PROMPT_TOKENS]))
