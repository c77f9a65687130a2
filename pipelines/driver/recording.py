"""The recorder's process, begun before the data is frozen: its imports and MLflow's first database take seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.driver.machine import git_commit
from pipelines.driver.records import read_json
from pretrainer.config import Config
from pretrainer.journal import Journal
from pretrainer.lease import Lease
from pretrainer.storage import Store
from pretrainer.tracking import Tracker, default_uri
from pretrainer.train.telemetry.recorder import Recorder


@dataclass(frozen=True)
class Recording:
    """The actor of a Recorder on the driver's node, and where it tracks."""

    actor: Any
    uri: str

    @classmethod
    def begin(cls, config: Config, run: Store, lease: Lease, tags: Mapping[str, str] | None = None) -> Recording:
        """Nothing is waited for. tags: more of them, for MLflow."""
        uri, artifacts = (
            (config.tracking.uri, None) if config.tracking.uri else default_uri(config.run.storage, run.is_local)
        )
        tracker = Tracker(
            uri,
            config.tracking.experiment,
            artifacts,
            config.run.name,
            (read_json(run, "mlflow.json") or {}).get("run_id"),
            flat_config(asdict(config)),
            {"git_commit": git_commit(), "run_folder": run.uri, **(tags or {})},
        )
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        kind: Any = ray.remote(Recorder)
        actor = kind.options(num_cpus=0, scheduling_strategy=here).remote(tracker, Journal(run.uri, lease.claim.number))
        actor.prepare.remote()
        return cls(actor, uri)

    def start(self, run: Store, fingerprint: str) -> str:
        """MLflow's run is open when this returns its id. Raises UserError where it cannot be."""
        run_id: str = ray.get(self.actor.start.remote({"fingerprint": fingerprint}))
        run.write("mlflow.json", json.dumps({"uri": self.uri, "run_id": run_id}).encode())
        return run_id


def flat_config(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """section.field -> value, for MLflow's parameters."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out.update(flat_config(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return out
