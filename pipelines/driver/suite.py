"""What the checkpoints of a run are scored on while it trains, and the task that does it beside the training.

    <run>/evaluation/tasks.json, tasks/…      task files as they were when the run first saw them
    <run>/evaluation/points/step-….json       a checkpoint's scores

The run has copies of its task files: scores of a month are compared with each other, and a file that vanishes ends no
training. Ray Train calls `evaluate_checkpoint` behind the commit of a checkpoint, one at a time, keeps the checkpoint
until it is done, and after a failure of the driver calls it again; what goes wrong in it is told and ends nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from pretrainer.config import Config, TaskConfig
from pretrainer.config.evaluation import Cadence
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.errors import ConfigError
from pretrainer.evaluation.evaluate import Prepared, prepare, run
from pretrainer.evaluation.kinds import KINDS, Scoring
from pretrainer.evaluation.report import plain_result
from pretrainer.evaluation.tasks import Task, make_task, read_task
from pretrainer.model.transformer import Transformer
from pretrainer.schema import from_ipc
from pretrainer.storage import Store
from pretrainer.train.checkpoints.checkpoint import load_full_state_dict
from pretrainer.train.checkpoints.committed import FOLDER
from pretrainer.train.scoring.selection import evaluation_event, read_point, write_point

SCORED: dict[Cadence, tuple[Scoring, ...]] = {
    "medium": ("choice", "cloze"),
    "full": ("choice", "cloze", "generate", "text"),
}
TASKS = "evaluation/tasks.json"


@dataclass(frozen=True)
class Suite:
    """The run's task files and held-out documents; small, and opened where it is used."""

    config: Config
    run_uri: str
    tasks: tuple[TaskConfig, ...]  # whose files are the run's own
    beside: bool

    def score(
        self, model: Transformer, device: torch.device, cadence: Cadence, tick: Callable[[], None]
    ) -> dict[str, Any]:
        """Task -> result as evaluation.json has it; all ranks of a sharded model call it alike."""
        found = {}
        for prepared in self.opened():
            if prepared.task.scoring in SCORED[cadence]:
                tick()
                result = run(model, _tokenizer(self.data_uri), prepared, device, self.config.evaluation.batch_tokens)
                found[result.name] = plain_result(result)
        return found

    def opened(self) -> list[Prepared]:
        """All tasks in token ids."""
        return _opened(self.data_uri, self.tasks, context_of(self.config))

    @property
    def data_uri(self) -> str:
        """Of the tokenizer and the held-out documents."""
        return data_folder(self.config, Store(self.run_uri)).uri


@cache
def _tokenizer(data_uri: str) -> Any:
    return load_tokenizer(data_uri)


@cache
def _opened(data_uri: str, tasks: tuple[TaskConfig, ...], max_tokens: int) -> list[Prepared]:
    """Kept in the process."""
    every = [*map(read_task, tasks), *held_out_tasks(Store(data_uri))]
    return [prepare(task, _tokenizer(data_uri), max_tokens) for task in every]


def context_of(config: Config) -> int:
    """Tokens that a run's model reads at most, as its exported folder says, so that the harness cuts there as well."""
    return (config.model.context if config.model.positions == "learned" else None) or config.data.seq_len


def held_out_tasks(data: Store) -> list[Task]:
    """The held-out documents of each source that the run's own validation uses, as texts."""
    if not data.exists("held_out/summary.json"):
        return []
    summary = json.loads(data.read("held_out/summary.json"))
    return [_held_out_task(data, source, about["documents"]) for source, about in summary.items()]


def _held_out_task(data: Store, source: str, documents: int) -> Task:
    path = f"held_out/{source}.documents.arrow"
    config = TaskConfig(name=f"held-out {source}", uri=data.child(path).uri, kind="text", max_documents=documents)
    texts = from_ipc(data.read(path)).column("text").to_pylist()
    return make_task(config, [KINDS["text"].read({"text": text}, config) for text in texts])


# ------------------------------------------------------------------------------------------------ frozen in the run


def freeze_suite(config: Config, run: Store, beside: bool) -> Suite | None:
    """The suite of a run, its task files copied at their first sight; None where nothing is evaluated while training.

    Raises UserError for what cannot be scored, and ConfigError for a task that is another one under the same name.
    """
    if not config.evaluation.is_periodic:
        return None
    known = json.loads(run.read(TASKS)) if run.exists(TASKS) else {}
    tasks = tuple(_freeze(task, run, known) for task in config.evaluation.tasks)
    run.write(TASKS, json.dumps(known, indent=1).encode())
    suite = Suite(config, run.uri, tasks, beside)
    suite.opened()
    return suite


def _freeze(task: TaskConfig, run: Store, known: dict[str, Any]) -> TaskConfig:
    asked = json.loads(json.dumps(asdict(task)))
    seen = known.get(task.name)
    if seen is None:
        copies = {name: _copy(uri, run) for name in ("uri", "shots_uri") if (uri := getattr(task, name)) is not None}
        seen = known[task.name] = {"asked": asked, "copies": copies}
    if seen["asked"] != asked:
        changed = ", ".join(name for name in asked if asked[name] != seen["asked"].get(name))
        raise ConfigError(
            f"evaluation.tasks[{task.name}] differs from what this run was scored on before ({changed}): the scores "
            "could not be compared, so give the changed task another name"
        )
    uri, shots_uri = (seen["copies"].get(name) for name in ("uri", "shots_uri"))
    return replace(task, uri=run.child(uri).uri, shots_uri=run.child(shots_uri).uri if shots_uri else None)


def _copy(uri: str, run: Store) -> str:
    """Path below the run of a copy, named by its content."""
    content = Store(uri).read()
    suffix = "".join(Path(uri.partition("?")[0]).suffixes[-2:])
    path = f"evaluation/tasks/{sha256(content).hexdigest()[:32]}{suffix}"
    run.write(path, content)
    return path


# ---------------------------------------------------------------------------------------------- beside the training


def validation_config(suite: Suite, vocab_size: int, recorder: Any, gpus: float) -> ray.train.ValidationConfig:
    """Ray starts the task anew for ever when its process or node dies, until evaluation.timeout_s: an error of Ray's
    own there would end the training."""
    options = {"num_cpus": suite.config.evaluation.cpus, "num_gpus": gpus, "max_retries": -1}
    call = partial(evaluate_checkpoint, suite, vocab_size, recorder)
    return ray.train.ValidationConfig(call, ray_remote_kwargs=options)


def evaluate_checkpoint(
    suite: Suite, vocab_size: int, recorder: Any, checkpoint: ray.train.Checkpoint, cadence: Cadence
) -> dict[str, Any]:
    """Score a committed checkpoint, and tell the recorder; Ray adds what is returned to the checkpoint's metrics."""
    folder = checkpoint.path.rstrip("/").rpartition("/")[2]
    named = FOLDER.fullmatch(folder)
    assert named is not None
    step, began_s = int(named[1]), time.perf_counter()
    try:
        known = read_point(Store(suite.run_uri), step, cadence)
        if known is None or known["folder"] != folder:
            tasks = _score(suite, vocab_size, checkpoint, cadence)
            event = evaluation_event(step, cadence, tasks, time.perf_counter() - began_s, "beside", folder)
            ray.get(recorder.record.remote(event))
            write_point(Store(suite.run_uri), event)
    except Exception as error:
        message = f"the checkpoint of step {step:,} was not evaluated: {error!r}"
        ray.get(recorder.record.remote({"kind": "evaluation_failed", "step": step, "message": message}))
        raise
    return {}


def _score(suite: Suite, vocab_size: int, checkpoint: ray.train.Checkpoint, cadence: Cadence) -> dict[str, Any]:
    torch.set_num_threads(max(1, int(suite.config.evaluation.cpus)))
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    model = Transformer(suite.config.model, vocab_size)
    with checkpoint.as_directory() as folder:
        model.load_state_dict(load_full_state_dict(folder), strict=False)
    return suite.score(model.to(device).eval(), device, cadence, lambda: None)
