"""Whether a run is at work, from its folder alone."""

from __future__ import annotations

from typing import Any

from pretrainer.config import Config
from pretrainer.lease import state
from pretrainer.storage import Store


def status_of(run: Store, summary: dict[str, Any], config: Config | None) -> str:
    """That of the summary where the newest driver wrote it or has ended in order; else whether a driver is at work."""
    driver, number = state(run, config.cluster.takeover_s if config else 60.0)
    if summary and (driver == "released" or summary.get("lease") == number):
        return str(summary["status"])
    return {"alive": "running", "released": "failed", "none": "not started"}.get(driver, "interrupted")
