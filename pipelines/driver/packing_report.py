"""What packing and shuffling made of a source, from its closed pack windows: for summary.json and the last table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pretrainer.data.ledger.windows import Window
from pretrainer.data.packing.shuffle_quality import add_up, same_group_share
from pretrainer.data.plan import SourcePlan, load_manifest


def packing_counts(plans: Sequence[SourcePlan]) -> dict[str, dict[str, Any]]:
    """`packing` and `shuffle` of a source, its plans by line of the curriculum; everything that was packed so far."""
    windows = [plan.windows.read_all() for plan in plans]
    sizes = load_manifest(plans[0].data_uri).tables[plans[0].index].column("size").to_numpy()
    rows = sum(w.sequences for line in windows for w in line)
    ids = sum(w.sequences * (p.config.seq_len + 1) for p, line in zip(plans, windows, strict=True) for w in line)
    padded = sum(w.padded for line in windows for w in line)
    packing = {
        "rows": rows,
        "documents": sum(w.documents for line in windows for w in line),
        "split": sum(w.split for line in windows for w in line),
        "padded_tokens": padded,
        "discarded_tokens": sum(w.discarded for line in windows for w in line),
        "padded_share": padded / max(1, ids),
    }
    return {"packing": packing, "shuffle": _shuffle(windows[0], same_group_share(sizes))}


def _shuffle(windows: Sequence[Window], same_shard_full: float) -> dict[str, Any]:
    """Order of the first epoch beside a full permutation's; shards of that one as drawn by their bytes."""
    quality = add_up(w.shuffle for w in windows if w.epoch == 0)
    return {
        "sequences": quality.sequences,
        "same_document": quality.same_document,
        "same_document_full": quality.same_document_full,
        "same_shard": quality.same_shard,
        "same_shard_full": same_shard_full,
        "document_distance": quality.document_distance,
    }


def packing_lines(count: dict[str, Any]) -> list[str]:
    """Two lines of the document table for one source."""
    packing, shuffle = count["packing"], count["shuffle"]
    return [
        f"    packed: {packing['documents']:,} documents in {packing['rows']:,} rows, {packing['split']:,} split, "
        f"{packing['padded_tokens']:,} tokens of padding ({packing['padded_share']:.2%}), "
        f"{packing['discarded_tokens']:,} discarded",
        f"    shuffled: neighbours of one document {shuffle['same_document']:.2%} (full permutation "
        f"{shuffle['same_document_full']:.2%}), of one shard {shuffle['same_shard']:.2%} "
        f"({shuffle['same_shard_full']:.2%}), distance inside a document {shuffle['document_distance']:.3f} of a full "
        "permutation's",
    ]
