"""MLflow, and nothing else knows it: one run per training, found again after a restart by its id."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pretrainer.errors import TrackingError, UserError
from pretrainer.storage import redact

log = logging.getLogger(__name__)

# MLflow writes telemetry to the network by default; a training job has no business there.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# MLflow's own patience is 8 attempts of 120 s; ours is the outbox, which tries again without anyone waiting for it.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

# Without it the MLflow UI shows the run among evaluations of language-model applications.
TRAINING_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}
PARENT_TAG = "mlflow.parentRunId"
STATUS = {"completed": "FINISHED", "stopped": "KILLED", "preempted": "KILLED", "failed": "FAILED"}

COUNTED_KINDS = ("train", "validation", "evaluation")


@contextmanager
def _answered(uri: str) -> Iterator[None]:
    """Errors of MLflow and of the way to it, as TrackingError."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise TrackingError(f"MLflow at {redact(uri)} did not take it: {redact(str(error).splitlines()[0])}") from error


def _quiet() -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


class Tracker:
    """One MLflow run. Connects in `start`, so that it can travel to the actor that owns it."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifact_root: str | None,
        run_name: str,
        run_id: str | None,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self.uri, self.experiment, self.artifact_root = uri, experiment, artifact_root
        self.run_name, self.run_id, self.params, self.tags = run_name, run_id, dict(params), dict(tags)
        self._client: Any = None

    def prepare(self) -> None:
        """Import MLflow and, in a file, make its tables: seconds that `start` does not take then. Raises nothing that
        `start` would not say."""
        from mlflow import MlflowClient

        _quiet()
        if not self.uri.startswith("http"):  # a server has its tables, or lets us wait twice
            with suppress(TrackingError), _answered(self.uri):
                MlflowClient(self.uri).get_experiment_by_name(self.experiment)

    def start(self, tags: Mapping[str, str] | None = None) -> str:
        """Open the run (or the one of `run_id` again), with more tags; returns its id. Raises UserError where it cannot
        be opened."""
        from mlflow import MlflowClient

        _quiet()
        self.tags |= tags or {}
        try:
            with _answered(self.uri):
                self._client = MlflowClient(self.uri)
                return self._reopen(self.run_id) if self.run_id else self._create()
        except TrackingError as error:
            raise UserError(
                f"{error}. Check tracking.uri; a run that was tracked elsewhere before needs that server, or without "
                "its mlflow.json begins a new MLflow run"
            ) from error

    def _create(self) -> str:
        run = self._client.create_run(self._experiment_id(), run_name=self.run_name, tags=self.tags)
        self.run_id = str(run.info.run_id)
        self._log_params()
        return self.run_id

    def _reopen(self, run_id: str) -> str:
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def last_steps(self) -> dict[str, int]:
        """Newest step with metrics of each kind of event, train, validation and evaluation; -1 where there is none."""
        with _answered(self.uri):
            known = self._client.get_run(self.run_id).data.metrics
            names = {kind: [name for name in known if name.startswith(f"{kind}/")] for kind in COUNTED_KINDS}
            names["train"] = ["train/loss"]  # one of many, and a history is long
            return {kind: self._last_step(names[kind]) for kind in COUNTED_KINDS}

    def _last_step(self, names: list[str]) -> int:
        history = (m.step for name in names for m in self._client.get_metric_history(self.run_id, name))
        return max(history, default=-1)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        return (
            found.experiment_id
            if found
            else self._client.create_experiment(
                self.experiment, artifact_location=self.artifact_root, tags=TRAINING_EXPERIMENT
            )
        )

    def _log_params(self) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:500]) for name, value in self.params.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self.run_id, params=params[start : start + 100])

    def log_event(self, event: Mapping[str, Any]) -> None:
        """Metrics of an event of train.recorder.Recorder."""
        metrics = EVENT_METRICS.get(event["kind"], lambda _event: [])(event)
        if metrics:
            self.log_metrics(metrics, event.get("at_s", time.time()))

    def log_metrics(self, values: list[tuple[str, float, int]], at_s: float) -> None:
        """(name, value, step) triples, and when they were true, which may be long before they are sent."""
        from mlflow.entities import Metric

        now = int(at_s * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value, step in values]
        with _answered(self.uri):
            for start in range(0, len(metrics), 1000):  # a REST server takes no more at once
                self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def finish(self, status: str, artifacts: Mapping[str, str | bytes]) -> None:
        """Artifacts by file name, then the true status of the run."""
        with _answered(self.uri):
            for name, content in artifacts.items():
                self._log_artifact(name, content)
            self._client.set_terminated(self.run_id, status=STATUS[status])

    def _log_artifact(self, name: str, content: str | bytes) -> None:
        if isinstance(content, str):
            return self._client.log_text(self.run_id, content, name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._client.log_artifact(self.run_id, str(path))


def _step_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    out = [
        (f"train/{name}", step[name], step["step"])
        for step in event["steps"]
        for name in ("loss", "grad_norm", "learning_rate")
    ]
    if event["steps"]:
        last = event["steps"][-1]["step"]
        out += [(f"speed/{name}", event[name], last) for name in ("tokens_per_s", "data_wait_fraction", "world_size")]
        out += [("speed/mfu", event["mfu"], last)] if event["mfu"] is not None else []
        out.append(("train/tokens", event["tokens"], last))
        out += [(f"loss/{name}", loss, last) for name, loss in event.get("source_losses", {}).items()]
        out += [(name, value, last) for name, value in event.get("expert_load", {}).items()]
    return out


def _validation_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    return [
        (f"validation/{source}/{name}", values[name], event["step"])
        for source, values in event["sources"].items()
        for name in ("loss", "perplexity", "bits_per_byte")
    ]


def _evaluation_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    return [
        (f"evaluation/{task}/{name}", metric["value"], event["step"])
        for task, about in event["tasks"].items()
        for name, metric in about["metrics"].items()
    ]


def _goodput_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """The fraction while the run goes on, the split at its end."""
    split = [(f"goodput/{name}", share, event["step"]) for name, share in event["share"].items()]
    return split if event["is_last"] else [("speed/goodput", event["fraction"], event["step"])]


def _checkpoint_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Seconds that training waited for a checkpoint, and until it was committed."""
    return [(f"speed/checkpoint_{name}", event[name], event["step"]) for name in ("blocking_s", "total_s")]


def _healing_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """stability/<reason>: the step's loss or gradient norm; where it is not finite, the number of the decision."""
    value = {"loss_spike": event["loss"], "grad_norm_spike": event["grad_norm"]}.get(event["reason"], event["number"])
    return [(f"stability/{event['reason']}", value, event["step"])]


def _look_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """layers/<what>/<layer>, the noise scale beside the batch that it is to be compared with, memory."""
    out = [(f"layers/{name}", value, event["step"]) for name, value in event["values"].items()]
    if event["noise_scale_tokens"] is not None:
        out.append(("noise/scale_tokens", event["noise_scale_tokens"], event["step"]))
        out.append(("noise/batch_tokens", event["batch_tokens"], event["step"]))
    names = ("host_peak_bytes", "device_peak_bytes", "device_utilization", "monitor_share")
    return out + [(f"speed/{name}", event[name], event["step"]) for name in names if name in event]


def _profile_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    names = ("communication_share", "exposed_communication_share")
    return [(f"speed/{name}", event[name], event["step"]) for name in names]


def _forgetting_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Of a run that began with a loaded model: held-out loss on what it was trained on, less that at step 0."""
    return [(f"forgetting/{name}", event[name], event["step"]) for name in ("loss", "bits_per_byte")]


def _report_metrics(event: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Of a trial of a sweep: what trials are compared by, the same names for all."""
    names = ("loss", "bits_per_byte", "tokens", "noise_scale_tokens")
    return [(f"sweep/{name}", event[name], event["step"]) for name in names if event[name] is not None]


EVENT_METRICS = {
    "report": _report_metrics,
    "steps": _step_metrics,
    "validation": _validation_metrics,
    "evaluation": _evaluation_metrics,
    "checkpoint": _checkpoint_metrics,
    "goodput": _goodput_metrics,
    "healing": _healing_metrics,
    "look": _look_metrics,
    "profile": _profile_metrics,
    "forgetting": _forgetting_metrics,
}


def default_uri(storage: str, is_local: bool) -> tuple[str, str | None]:
    """(tracking URI, artifact root) when the config names none: sqlite and artifacts beside the runs or in the home."""
    folder = Path(storage if is_local else "~/pretrainer-runs").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db", (folder / "mlflow-artifacts").as_uri()
