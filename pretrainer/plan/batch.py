"""Batch and learning-rate laws: published fits of the best global batch and peak rate, for AdamW.

The optimum is wide: these say where a sweep should begin. Each is a function of (parameters, tokens) and a line of
BATCH_LAWS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple


class Batch(NamedTuple):
    tokens: float  # per optimizer step
    learning_rate: float | None  # peak; None where the law has none


def deepseek(parameters: float, tokens: float) -> Batch:
    """B = 0.2920 C^0.3271 tokens, rate 0.3118 C^-0.1250: DeepSeek-AI 2024, arXiv:2401.02954, equation 1.

    Departure: C = 6 N D with embeddings, theirs is non-embedding FLOPs with attention. Fitted from 1e17 to 2e19 FLOPs.
    """
    flops = 6 * parameters * tokens
    return Batch(0.2920 * flops**0.3271, 0.3118 * flops**-0.1250)


def step_law(parameters: float, tokens: float) -> Batch:
    """B = 0.58 D^0.571 tokens, rate 1.79 N^-0.713 D^0.307: Li et al. 2025, arXiv:2503.04715 (N without embeddings)."""
    return Batch(0.58 * tokens**0.571, 1.79 * parameters**-0.713 * tokens**0.307)


def olmo_ladder(parameters: float, tokens: float) -> Batch:
    """B = 2048 * 160 (N / 108M)^(2/3) tokens, rate 0.0047 (N / 108M)^(-1/3) / 2, for WSD: allenai/OLMo-core, the
    model ladder, after Porian et al. 2024, arXiv:2406.19146."""
    relative = parameters / 108e6
    return Batch(2048 * 160 * relative ** (2 / 3), 0.0047 * relative ** (-1 / 3) / 2)


def nanochat(parameters: float, tokens: float) -> Batch:
    """B = 2^19 (D / D_ref)^0.383 tokens: karpathy/nanochat, after Bergsma et al. 2025, arXiv:2505.13738.

    D_ref is 12 tokens for each of the 110M parameters of its reference model. Its rates are for Muon and scale with
    the root of B; they are no peak for AdamW.
    """
    return Batch(2**19 * (tokens / 1.32e9) ** 0.383, None)


# (parameters, tokens per batch, peak rate): Brown et al. 2020, arXiv:2005.14165, table 2.1.
_GPT3 = (
    (125e6, 0.5e6, 6.0e-4), (350e6, 0.5e6, 3.0e-4), (760e6, 0.5e6, 2.5e-4), (1.3e9, 1e6, 2.0e-4),
    (2.7e9, 1e6, 1.6e-4), (6.7e9, 2e6, 1.2e-4), (13e9, 2e6, 1.0e-4), (175e9, 3.2e6, 0.6e-4),
)  # fmt: skip


def gpt3(parameters: float, tokens: float) -> Batch:
    """Table 2.1 of Brown et al. 2020, straight lines between its rows on logarithmic axes; its ends beyond them."""
    clipped = min(max(parameters, _GPT3[0][0]), _GPT3[-1][0])
    below, above = next((low, high) for low, high in pairwise(_GPT3) if clipped <= high[0])
    share = math.log(clipped / below[0]) / math.log(above[0] / below[0])
    batch, rate = (math.exp(math.log(a) + share * math.log(b / a)) for a, b in zip(below[1:], above[1:], strict=True))
    return Batch(batch, rate)


BATCH_LAWS: dict[str, Callable[[float, float], Batch]] = {
    "deepseek": deepseek,
    "step_law": step_law,
    "olmo_ladder": olmo_ladder,
    "nanochat": nanochat,
    "gpt3": gpt3,
}
PLANNED_BY = deepseek
"""The law of plans: it grows with compute, so with both N and D, and far below the budgets that it was fitted to it
still gives what a search found (configs/quickstart.yaml, 1e13 FLOPs: 5 thousand tokens and 7.4e-3 against 2 thousand
and 7e-3)."""


def warmup_steps(steps: int) -> int:
    """2,000 steps of linear warm-up (Touvron et al. 2023, arXiv:2302.13971), but at most a twentieth of the run."""
    return max(1, min(2000, steps // 20))
