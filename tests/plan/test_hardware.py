"""GPUs, prices, hours, dollars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.errors import ConfigError
from pretrainer.model.flops import PEAK_FLOPS
from pretrainer.plan.hardware import cost, flops_of_dollars, flops_of_hours, load_prices
from pretrainer.plan.laws import Split
from tests.plan.plans import prices

NAMES = sorted(prices().gpus)


def gpu(name: str, tflops: float):
    found = prices().gpus[name]
    return replace(found, mfu=tflops * 1e12 / found.peak_flops)


def test_70b_on_2t_is_63_days_on_1024_a100_at_150_tflops() -> None:
    assert cost(Split(70e9, 2e12).flops, gpu("A100", 150), 1024).days == pytest.approx(63, rel=0.05)


def test_smolgpt_is_18_5_hours_and_13_dollars() -> None:
    """27.5M on 4B tokens on one L4 (github.com/Om-Alve/smolGPT): 9.9 TFLOP/s by 6 N D."""
    spent = cost(Split(27.5e6, 4e9).flops, gpu("L4", 10), 1)
    assert spent.gpu_hours == pytest.approx(18.5, rel=0.05)
    assert spent.days * 24 == pytest.approx(spent.gpu_hours)
    assert spent.dollars == pytest.approx(13, rel=0.05)


def test_an_8b_model_on_h100_is_as_fast_as_published() -> None:
    # torchtitan: 6,667 tokens/s per GPU for 8B compiled (500 W parts); OLMo-core: 9.7 to 10.6 thousand for 7B.
    tokens_per_s = prices().gpus["H100"].flops_per_s / (6 * 8.03e9)
    assert 6667 < tokens_per_s < 10_600


@given(st.sampled_from(NAMES), st.floats(0.01, 1e9), st.integers(1, 100_000))
def test_dollars_and_hours_come_back(name: str, dollars: float, gpus: int) -> None:
    found = prices().gpus[name]
    spent = cost(flops_of_dollars(dollars, found), found, gpus)
    assert spent.dollars == pytest.approx(dollars)
    assert spent.days * 24 * gpus == pytest.approx(spent.gpu_hours)
    assert flops_of_hours(spent.gpu_hours, found) == pytest.approx(flops_of_dollars(dollars, found))


@given(st.sampled_from(NAMES), st.floats(1e15, 1e26), st.integers(1, 10_000))
def test_more_gpus_take_fewer_days_for_the_same_money(name: str, flops: float, gpus: int) -> None:
    one, more = cost(flops, prices().gpus[name], gpus), cost(flops, prices().gpus[name], gpus + 1)
    assert more.days < one.days and more.dollars == pytest.approx(one.dollars)


def test_the_shipped_table_is_dated_and_whole() -> None:
    table = prices()
    year, month = table.date.split("-")
    assert len(year) == 4 and 1 <= int(month) <= 12 and table.source
    assert {"H100", "H200", "A100", "L4"} <= set(table.gpus)
    for name, found in table.gpus.items():
        known = next(peak for part, peak in PEAK_FLOPS.items() if part in name)
        assert found.peak_flops == known and 0.2 <= found.mfu <= 0.5
        assert 10 < found.memory_gib < 300 and 0.1 < found.dollars_per_hour < 20


def test_a_file_goes_over_the_table(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(
        "date: '2027-01'\ngpus:\n  H100: {dollars_per_hour: 1.0}\n"
        "  X1: {dollars_per_hour: 2, memory_gib: 48, peak_tflops: 200, mfu: 0.5, gpus_per_node: 4}\n"
    )
    table = load_prices(str(path))
    assert table.date == "2027-01" and table.source == prices().source
    assert table.gpus["H100"] == replace(prices().gpus["H100"], dollars_per_hour=1.0)
    assert table.gpus["X1"].flops_per_s == 1e14 and table.gpus["X1"].gpus_per_node == 4
    assert table.gpus["A100"] == prices().gpus["A100"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpus: [", "not valid YAML"),
        ("- 1", "write date, source and gpus"),
        ("gpus: 3", "write date, source and gpus"),
        ("price: 3", "only date, source and gpus"),
        ("gpus: {H100: 3}", "gpus.H100=3"),
        ("gpus: {H100: {dollars: 3}}", "dollars_per_hour"),
        ("gpus: {H100: {dollars_per_hour: cheap}}", "gpus.H100.dollars_per_hour='cheap'"),
        ("gpus: {H100: {dollars_per_hour: -1}}", "gpus.H100.dollars_per_hour=-1"),
        ("gpus: {H100: {mfu: 1.5}}", "gpus.H100.mfu=1.5"),
        ("gpus: {H100: {gpus_per_node: 0}}", "gpus.H100.gpus_per_node=0"),
        ("gpus: {X1: {dollars_per_hour: 1, memory_gib: 8}}", "gpus.X1.peak_tflops"),
        ("gpus: {X1: {peak_tflops: 10, memory_gib: 8}}", "gpus.X1.dollars_per_hour"),
        ("gpus: {X1: {peak_tflops: 10, dollars_per_hour: 8}}", "gpus.X1.memory_gib"),
    ],
)
def test_a_wrong_table_is_one_message(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_prices(str(path))
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.yaml"):
        load_prices(str(tmp_path / "absent.yaml"))


def test_gpus_are_found_by_name_in_any_case_and_the_nearest_is_offered() -> None:
    assert prices().find("h100") is prices().gpus["H100"] and prices().find("H100X") is None
    assert prices().nearest("h100x").name == "H100" and prices().nearest("A100-80GB").name == "A100-40GB"
    cheapest = min(prices().gpus.values(), key=lambda one: one.dollars_per_hour / one.flops_per_s)
    assert prices().nearest("tpu") is cheapest
