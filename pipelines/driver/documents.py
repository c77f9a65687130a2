"""What curation made of the documents of a run, by source: counts for summary.json, the report and the last table."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.driver.packing_report import packing_counts, packing_lines
from pretrainer.data.ledger.ledger import ChunkRecord
from pretrainer.data.ledger.lines import begun_plans
from pretrainer.data.prologue import Frozen
from pretrainer.storage import Store


def document_counts(data: Frozen) -> dict[str, dict[str, Any]]:
    """By source: documents read, kept and dropped by reason, dead letters, tokens, packing and order, as committed."""
    lines = begun_plans(Store(data.plans[0].data_uri), data.plans, data.segments)
    return {
        plan.source.name: _count(list(plan.ledger.records()), plan.ledger.root)
        | packing_counts([line[i] for line in lines])
        for i, plan in enumerate(data.plans)
    }


def _count(records: list[ChunkRecord], ledger: Store) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for record in records:
        dropped.update(record.dropped)
    return {
        "chunks": len(records),
        "read": sum(r.read for r in records),
        "kept": sum(r.kept for r in records),
        "dropped": dict(sorted(dropped.items())),
        "dead_letters": sum(r.dead_letters for r in records),
        "dead_letters_in": ledger.child("dead_letters").uri,
        "quarantined": sum(r.quarantined for r in records),
        "bytes_read": sum(r.bytes_read for r in records),
        "bytes_kept": sum(r.bytes_kept for r in records),
        "tokens": sum(r.tokens for r in records),
    }


def document_table(by_source: dict[str, dict[str, Any]]) -> list[str]:
    """Documents in, kept and dropped by reason, one block per source."""
    lines = []
    for name, count in by_source.items():
        lines.append(
            f"  {name}: {count['read']:,} documents read ({count['bytes_read']:,} bytes), {count['kept']:,} kept "
            f"({count['bytes_kept']:,} bytes, {count['tokens']:,} tokens), {count['dead_letters']:,} unreadable"
        )
        lines += [
            f"    {reason:<32}{n:>10,}  {n / max(1, count['read']):6.1%}"
            for reason, n in sorted(count["dropped"].items(), key=lambda item: -item[1])
        ]
        if count["dead_letters"]:
            lines.append(f"    unreadable records stand, with reasons, in {count['dead_letters_in']}")
        if count["quarantined"]:
            lines.append(f"    {count['quarantined']:,} of them killed their reader: they are quarantined and left out")
        lines += packing_lines(count)
    return lines
