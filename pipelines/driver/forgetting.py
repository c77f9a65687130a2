"""How much of what a loaded model knew it has lost: its held-out loss on the replay sources, now less at step 0.

Kept as init/forgetting.json in the run folder, so that a driver that starts later still knows where the run began.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pretrainer.config import Config
from pretrainer.data.held_out import HeldOut
from pretrainer.pooled import Measured, pooled_bits_per_byte, pooled_loss
from pretrainer.storage import Store

RECORD = "init/forgetting.json"


def general_loss(sources: Measured, held_out: Mapping[str, HeldOut]) -> dict[str, float]:
    """Over all sources of a validation: nats per token and bits per byte."""
    bits, sizes = ({n: v["bits_per_byte"] for n, v in sources.items()}, {n: h.bytes for n, h in held_out.items()})
    return {"loss": pooled_loss(sources), "bits_per_byte": pooled_bits_per_byte(bits, sizes)}


class Forgetting:
    """Sees every event of the recorder; `report` is what summary.json says, None where there is nothing to forget."""

    def __init__(self, config: Config, run: Store, held_out: Mapping[str, HeldOut]) -> None:
        self.names = [name for name in config.init.replay if name in held_out] if config.init.uri else []
        self.run, self.held_out = run, held_out
        self.report: dict[str, Any] | None = None
        if self.names and run.exists(RECORD):
            self.report = json.loads(run.read(RECORD))

    def notice(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """After a validation that is news, the event that tells what was forgotten by then."""
        if not self.names or event["kind"] != "validation":
            return []
        now = general_loss({name: event["sources"][name] for name in self.names}, self.held_out)
        if self.report is None and event["step"] > 0:
            return []  # a run that an older version began, which did not look at step 0
        before = self.report["before"] if self.report else now
        if self.report is not None and event["step"] <= self.report["step"]:
            return []
        lost = {name: now[name] - before[name] for name in now}
        self.report = {"step": event["step"], "sources": self.names, "before": before, "after": now, **lost}
        self.run.write(RECORD, json.dumps(self.report).encode())
        return [{"kind": "forgetting", **self.report}] if event["step"] else []


def words(report: Mapping[str, Any]) -> str:
    """One line of it."""
    before, after = report["before"], report["after"]
    return (
        f"{report['loss']:+.4f} nats per token, {report['bits_per_byte']:+.4f} bits per byte on held-out text of "
        f"{', '.join(report['sources'])} (loss {before['loss']:.4f} at step 0, {after['loss']:.4f} now)"
    )
