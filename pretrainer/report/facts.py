"""What is known of a run, as plain values: pipelines gather it from the run folder; page and card are made of it.

Whatever is not there (the run has not come so far, or an older version made it) is None or empty, and is shown as "not
recorded".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Plain = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Facts:
    run: str
    uri: str
    """Without secrets."""
    status: str
    """completed, stopped or failed; of a run that has not ended: running, or interrupted where no driver shows life."""
    message: str = ""
    config: Plain = field(default_factory=dict)
    """Every field, as config.yaml has it."""
    total_steps: int | None = None
    batch_tokens: int | None = None
    steps: int = 0
    """In the newest committed checkpoint."""
    summary: Plain = field(default_factory=dict)
    """summary.json, at the run's last end."""
    events: Sequence[Plain] = ()
    """Of the journal, in order."""
    heals: Sequence[Plain] = ()
    """Decisions about spikes, each with `message`, `action`, `documents` (the first few) and `documents_count`."""
    attempts: Sequence[Plain] = ()
    """Worker groups: attempt, step, world_size, time_s."""
    sources: Plain = field(default_factory=dict)
    """By source: documents read, kept, dropped by reason, tokens, packing."""
    mixture: Plain = field(default_factory=dict)
    """By source: share of the slot blocks, asked and realised."""
    held_out: Plain = field(default_factory=dict)
    """By source: documents, bytes, tokens, bits per byte of gzip and of unigram tokens."""
    goodput: Plain = field(default_factory=dict)
    """fraction, share by category, worker_s."""
    evaluation: Sequence[Plain] = ()
    """Points of the evaluation curve: step, cadence, tasks."""
    samples: Sequence[tuple[int, str]] = ()
    vocab_size: int | None = None
    fingerprint: str | None = None
    order_digest: str | None = None

    def newest_tasks(self) -> dict[str, Plain]:
        """Task -> its result at the newest step that has one, with the step; cadences have tasks of their own."""
        points = sorted(self.evaluation, key=lambda point: point["step"])
        return {name: {"step": p["step"], **task} for p in points for name, task in p["tasks"].items()}

    def of(self, kind: str) -> list[Plain]:
        return [event for event in self.events if event["kind"] == kind]
