"""Rows for new tokens in the tables of a loaded model.

Shapes: N rows before, M after, H hidden.

The output rows of new tokens are the mean of all old ones. A new token's logit is then the mean of the old logits, so
by Jensen's inequality it takes no more than the mean probability of an old token: with n new tokens of V, every old
token's log-probability falls by log(1 + n / V) at most, whatever the text (Hewitt 2021, "Initializing New Word
Embeddings for Pretrained Language Models"; departure: no noise is added, and the rows part at their first gradients).
The old logits stay as they are.

The input rows are the mean of the rows of the pieces that the token's text had before (Gee et al. 2022,
arXiv:2402.09977), so that the model reads something near the old text. Where input and output are one table, the rule
of the output holds: only that one is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grown(table: Tensor, rows: int, known: int, pieces: Sequence[Sequence[int]] = ()) -> Tensor:
    """The table [N, H] with `rows` rows [M, H]: the first `known` as they are, the row of new token i the mean of the
    rows of pieces[i], where those are given, and everything else that is new the mean of the known ones.

    Rows of padding that the loaded table has behind the last new token stay as they are.
    """
    assert rows >= table.shape[0] >= known and known + len(pieces) <= rows
    mean = table[:known].double().mean(0).to(table.dtype)
    out = torch.cat([table, mean.expand(rows - table.shape[0], -1)])
    for row, ids in enumerate(pieces, start=known):
        out[row] = table[list(ids)].double().mean(0).to(table.dtype) if ids else mean
    return out
