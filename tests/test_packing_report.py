"""What the summary says of packing and shuffling, from the windows of a stream."""

from pathlib import Path

import pytest

from pipelines.driver.packing_report import packing_counts, packing_lines
from pretrainer.data.packing.packer import PackWindows
from tests.data.harness import curated, document, make_plan, packed

TEXTS = [document(n, 200) for n in range(12)]


@pytest.mark.parametrize("mode", ["concat", "best_fit", "pad"])
def test_counts_are_those_of_the_blocks(tmp_path: Path, mode: str) -> None:
    plan = make_plan(tmp_path, TEXTS, lines_per_file=3, packing=mode, max_epochs=2)
    blocks = packed(PackWindows(plan, 0), curated(plan, range(plan.positions)))
    counts = packing_counts([plan])
    packing, shuffle = counts["packing"], counts["shuffle"]
    ids = len(b"".join(block["tokens"] for block in blocks)) // 4
    tokens = 2 * sum(record.tokens + 2 * record.kept for record in plan.ledger.records())
    assert (packing["rows"] * 17, packing["documents"], packing["discarded_tokens"]) == (ids, 24, 0)
    assert (packing["split"], packing["padded_tokens"]) == (24, ids - tokens)
    assert packing["padded_share"] == pytest.approx((ids - tokens) / ids)
    assert abs(shuffle["sequences"] - packing["rows"] / 2) <= 4, "the order is that of the first epoch"
    assert shuffle["same_shard_full"] == pytest.approx(0.25, abs=0.01), "four files of about the same size"
    assert 0 < shuffle["same_document"] < shuffle["same_shard"]


def test_lines_show_every_number() -> None:
    lines = packing_lines(
        {
            "packing": {
                "rows": 4104, "documents": 5199, "split": 1135, "padded_tokens": 1522, "discarded_tokens": 7,
                "padded_share": 0.000362,
            },
            "shuffle": {
                "sequences": 4104, "same_document": 0.125, "same_document_full": 0.001, "same_shard": 0.5,
                "same_shard_full": 0.0625, "document_distance": 0.015,
            },
        }
    )  # fmt: skip
    assert lines[0].strip() == (
        "packed: 5,199 documents in 4,104 rows, 1,135 split, 1,522 tokens of padding (0.04%), 7 discarded"
    )
    assert "12.50% (full permutation 0.10%)" in lines[1] and "50.00% (6.25%)" in lines[1] and "0.015" in lines[1]
