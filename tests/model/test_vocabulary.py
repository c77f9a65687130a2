"""Rows for new tokens: old logits stay, and no text becomes much less likely.

    python -m pytest -q tests/model/test_vocabulary.py
"""

from __future__ import annotations

import math

import pytest
import torch

from pretrainer.model.vocabulary import grown

KNOWN, HIDDEN = 40, 8
TABLE = torch.randn(KNOWN, HIDDEN, generator=torch.Generator().manual_seed(1)) * 2
STATES = torch.randn(200, HIDDEN, generator=torch.Generator().manual_seed(2)) * 3


@pytest.mark.parametrize("new", [1, 3, 40])
def test_old_tokens_lose_at_most_what_hewitt_proves(new: int) -> None:
    before, after = STATES @ TABLE.T, STATES @ grown(TABLE, KNOWN + new, KNOWN, [()] * new).T
    torch.testing.assert_close(after[:, :KNOWN], before, rtol=0, atol=0)
    lost = before.log_softmax(-1) - after.log_softmax(-1)[:, :KNOWN]
    assert 0 < float(lost.max()) <= math.log(1 + new / KNOWN)
    torch.testing.assert_close(after[:, KNOWN], before.mean(-1), rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_would_break_the_bound() -> None:
    """The test above can fail: of confident states zeros take more than an even share."""
    zeros = torch.cat([TABLE - 2, torch.zeros(1, HIDDEN)])
    states = STATES.abs()
    lost = (states @ (TABLE - 2).T).log_softmax(-1) - (states @ zeros.T).log_softmax(-1)[:, :KNOWN]
    assert float(lost.max()) > math.log(1 + 1 / KNOWN)


def test_input_rows_are_the_mean_of_the_pieces() -> None:
    out = grown(TABLE, KNOWN + 2, KNOWN, [(3, 5, 5), (7,)])
    torch.testing.assert_close(out[KNOWN], (TABLE[3] + 2 * TABLE[5]) / 3)
    torch.testing.assert_close(out[KNOWN + 1], TABLE[7])


def test_padding_becomes_tokens_and_the_rest_of_it_stays() -> None:
    """A table with 8 rows behind the tokenizer's ids: those rows do not count in the mean."""
    padded = torch.cat([TABLE, torch.full((8, HIDDEN), 100.0)])
    out = grown(padded, KNOWN + 8, KNOWN, [()])
    torch.testing.assert_close(out[KNOWN], TABLE.mean(0))
    torch.testing.assert_close(out[KNOWN + 1 :], padded[KNOWN + 1 :], rtol=0, atol=0)
    assert padded[KNOWN, 0] == 100  # the loaded table is not written to


def test_nothing_new_is_the_same_table() -> None:
    torch.testing.assert_close(grown(TABLE, KNOWN, KNOWN), TABLE, rtol=0, atol=0)
