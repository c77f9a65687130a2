"""Parts that the tests of the stream share."""

from __future__ import annotations

from pretrainer.schema import BOS, Batch
from tests.data.harness import document

TEXTS = [document(n) for n in range(120)]
TEXTS[50] = TEXTS[3]  # an exact duplicate
TEXTS[90] = TEXTS[7].rsplit(" ", 1)[0] + " changed"  # a near-duplicate


def documents_in(blocks: list[dict]) -> int:
    return sum(int((Batch.from_row(block, 16).tokens == BOS).sum()) for block in blocks)
