"""Batch and learning-rate laws at the points that their papers name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.plan.batch import BATCH_LAWS, deepseek, gpt3, nanochat, olmo_ladder, step_law, warmup_steps

SIZES = st.floats(1e6, 1e12)


def test_deepseek_at_the_budgets_of_its_models() -> None:
    # DeepSeek-AI 2024, table 2: 7B on 2T tokens with 2304 x 4096 and 4.2e-4, 67B with 4608 x 4096 and 3.2e-4.
    assert deepseek(7e9, 2e12).tokens == pytest.approx(2304 * 4096, rel=0.05)
    assert deepseek(7e9, 2e12).learning_rate == pytest.approx(4.2e-4, rel=0.05)
    assert deepseek(67e9, 2e12).tokens == pytest.approx(4608 * 4096, rel=0.05)
    assert deepseek(67e9, 2e12).learning_rate == pytest.approx(3.2e-4, rel=0.05)


def test_the_law_of_plans_is_near_the_quickstart() -> None:
    batch = deepseek(1.1e6, 700 * 2048)
    assert 2048 / 3 < batch.tokens < 2048 * 3 and batch.learning_rate == pytest.approx(7e-3, rel=0.1)


def test_reference_points_of_the_others() -> None:
    assert olmo_ladder(108e6, 1e9) == pytest.approx((2048 * 160, 0.0047 / 2))
    assert olmo_ladder(8 * 108e6, 1e9) == pytest.approx((2048 * 160 * 4, 0.0047 / 4))
    assert nanochat(1e8, 1.32e9).tokens == pytest.approx(2**19) and nanochat(1e8, 1.32e9).learning_rate is None
    assert step_law(1e9, 1e11) == pytest.approx((0.58 * 1e11**0.571, 1.79 * 1e9**-0.713 * 1e11**0.307))
    assert gpt3(1.3e9, 1) == pytest.approx((1e6, 2e-4)) and gpt3(1e15, 1) == gpt3(175e9, 1)
    assert gpt3(1, 1) == pytest.approx((0.5e6, 6e-4))


@given(SIZES, SIZES, st.floats(1.1, 10))
def test_batches_grow_and_rates_fall_with_the_model(parameters: float, tokens: float, factor: float) -> None:
    for law in BATCH_LAWS.values():
        here, larger, longer = (
            law(parameters, tokens),
            law(parameters * factor, tokens),
            law(parameters, tokens * factor),
        )
        assert larger.tokens >= here.tokens * (1 - 1e-9) and longer.tokens >= here.tokens * (1 - 1e-9)
        assert here.learning_rate is None or larger.learning_rate <= here.learning_rate * (1 + 1e-9)


def test_warm_up_is_two_thousand_steps_or_a_twentieth() -> None:
    assert [warmup_steps(steps) for steps in (1, 100, 1000, 40_000, 10**6)] == [1, 5, 50, 2000, 2000]
