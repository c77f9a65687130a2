"""Limits to the source's own numbers: boundary values, languages, missing values, wrong limits.

python -m pytest -q tests/data/test_score.py
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import SourceConfig
from pretrainer.data.filters.score import score_stage
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.errors import ConfigError


def run(scores: list[list[float | None]], limits: tuple[str, ...], languages: list[str] | None = None) -> Verdict:
    docs = pa.table(
        {
            "scores": pa.array(scores, pa.list_(pa.float64())),
            "language": pa.array(languages or [""] * len(scores), pa.large_string()),
        }
    )
    return run_stages(docs, [score_stage(SourceConfig(name="s", uris=("x",), scores=limits))])


def reasons(values: list[float], limits: tuple[str, ...], languages: list[str] | None = None) -> list[str | None]:
    return run([[value] for value in values], limits, languages).reasons


BELOW, ABOVE = math.nextafter(0.28, 0), math.nextafter(0.28, 1)


def test_boundaries() -> None:
    assert reasons([0.28, BELOW, math.inf, -math.inf], ("a>=0.28",)) == [None, "score_a", None, "score_a"]
    assert reasons([0.28, ABOVE, math.inf, -math.inf], ("a<=0.28",)) == [None, "score_a", "score_a", None]
    assert reasons([0.1, 0.2, 0.3, 0.4], ("a>=0.2", "a<=0.3")) == ["score_a", None, None, "score_a"]


def test_limit_of_a_language_beats_the_general_one() -> None:
    limits, languages = ("a>=0.28", "a[zh]>=0.26"), ["zh", "en", "", "zh-CN", "cmn_Hani", "zh"]
    values = [0.26, 0.27, 0.27, 0.27, 0.27, 0.25]
    assert reasons(values, limits, languages) == [None, "score_a", "score_a", None, None, "score_a"]
    assert reasons([0.29, 0.27], ("a>=0.28", "a[zh]>=0.3"), ["zh", "en"]) == ["score_a", "score_a"]


def test_directions_are_apart() -> None:
    """A language's own floor leaves the general ceiling as it is."""
    limits = ("a>=0.2", "a<=0.8", "a[zh]>=0.1")
    assert reasons([0.15, 0.9, 0.15], limits, ["zh", "zh", "en"]) == [None, "score_a", "score_a"]


def test_language_without_a_limit_passes() -> None:
    assert reasons([0.1, 0.1, math.nan], ("a[zh]>=0.26",), ["zh", "en", "en"]) == ["score_a", None, None]


@pytest.mark.parametrize("value", [[], [None], [math.nan], None])
def test_missing_value_is_dropped_where_a_limit_holds(value: list[float | None]) -> None:
    assert run([value], ("a>=0.1",)).reasons == run([value], ("a<=0.1",)).reasons == ["score_a_missing"]
    assert run([value], ("a[zh]>=0.1",), ["en"]).reasons == [None]


def test_columns_stand_in_the_order_of_the_config() -> None:
    limits = ("b>=0.5", "a<=0.5", "b[zh]>=0.1")
    assert run([[0.6, 0.4], [0.4, 0.6], [0.6, 0.6], [0.6, math.nan]], limits).reasons == [
        None,
        "score_b",
        "score_a",
        "score_a_missing",
    ]


def test_raw_values_are_measured() -> None:
    measures = run([[0.25, 7.0], [math.nan, -1.0]], ("a>=0.5", "b[zh]<=3"), ["zh", "en"]).measures
    assert np.array_equal(measures["score_a"], [0.25, math.nan], equal_nan=True)
    assert measures["score_b"].tolist() == [7.0, -1.0]
    assert measures["score_a_missing"].tolist() == [0, 1] and measures["score_b_missing"].tolist() == [0, 0]
    assert np.array_equal(measures["score_a_margin"], [-0.25, math.nan], equal_nan=True)
    assert np.array_equal(measures["score_b_margin"], [-4.0, math.nan], equal_nan=True)


def test_slices_and_chunks_are_read_as_they_are() -> None:
    table = pa.table(
        {"scores": pa.array([[9.0], [1.0], [3.0], []], pa.list_(pa.float64())), "language": ["", "", "", ""]}
    )
    stage = score_stage(SourceConfig(name="s", uris=("x",), scores=("a>=2",)))
    parts = pa.concat_tables([table.slice(1, 2), table.slice(3)])
    assert run_stages(parts, [stage]).reasons == ["score_a", None, "score_a_missing"]
    assert run_stages(table.slice(1, 2), [stage]).reasons == ["score_a", None]
    assert run_stages(table.slice(4), [stage]).reasons == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.sampled_from(["zh", "en", "", "x\n"])), max_size=8))
def test_rule_is_what_it_says(rows: list[tuple[float, str]]) -> None:
    def expected(value: float, language: str) -> str | None:
        least = 0.26 if language == "zh" else 0.28
        if math.isnan(value):
            return "score_a_missing"
        return None if least <= value <= 1e300 else "score_a"

    limits, values = ("a>=0.28", "a[zh]>=0.26", "a<=1e300"), [value for value, _language in rows]
    found = reasons(values, limits, [language for _value, language in rows])
    assert found == [expected(*row) for row in rows]


@pytest.mark.parametrize("limits", [("a>=0.1", "a>=0.2"), ("a[zh]>=0.1", "a[zho]>=0.2"), ("a>=1", "a_missing>=1")])
def test_limits_that_do_not_go_together_are_refused(limits: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\[s\]\.scores"):
        score_stage(SourceConfig(name="s", uris=("x",), scores=limits))
