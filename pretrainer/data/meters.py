"""What the in-order stage tells Prometheus: documents read and kept, and how large its index is.

It is the stage that sees every document once, so its counts are the work of curation; what is read back from the ledger
is not counted. Nothing that decides a token is in this file, so it is no part of the stream's fingerprint.
"""

from __future__ import annotations

import pyarrow as pa
from ray.util.metrics import Counter, Gauge

from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.plan import SourcePlan
from pretrainer.data.stages import one_chunk
from pretrainer.storage import Store

COUNTERS = {
    "documents_read_total": "Documents that were read and decided",
    "documents_kept_total": "Documents that were kept",
}
GAUGES = {
    "dedup_index_documents": "Documents in the dedup index of a source",
    "dedup_index_bytes": "Bytes of memory of the dedup index of a source",
}


def run_name(data_uri: str) -> str:
    """Name of the run whose data folder this is."""
    return Store(data_uri).location.path.split("/")[-2]


class MeteredInOrderDedup(InOrderDedup):
    """The in-order stage with its meters."""

    def __init__(self, plan: SourcePlan, held_out_ipc: bytes) -> None:
        super().__init__(plan, held_out_ipc)
        tags = {"run": run_name(plan.data_uri), "source": plan.source.name}
        keys = tuple(tags)
        self.counters = {name: Counter(f"pretrainer_{name}", text, tag_keys=keys) for name, text in COUNTERS.items()}
        self.gauges = {name: Gauge(f"pretrainer_{name}", text, tag_keys=keys) for name, text in GAUGES.items()}
        for meter in (*self.counters.values(), *self.gauges.values()):
            meter.set_default_tags(tags)

    def __call__(self, table: pa.Table) -> pa.Table:
        decided = super().__call__(table)
        row = one_chunk(decided)
        if row.report is not None:
            self._count("documents_read_total", row.report.read)
            self._count("documents_kept_total", row.report.kept)
            self.gauges["dedup_index_documents"].set(float(len(self.index)))
            self.gauges["dedup_index_bytes"].set(float(self.index.memory_bytes()))
        return decided

    def _count(self, name: str, number: int) -> None:
        if number:  # Ray refuses to add nothing
            self.counters[name].inc(number)
