"""The page and the table: safe, complete, and right about what is where.

    python -m pytest -q tests/evaluation/test_report.py
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.evaluation.chart import Level, Line, chart, ticks
from pretrainer.evaluation.evaluate import TaskResult
from pretrainer.evaluation.metrics import Metric
from pretrainer.evaluation.report import Point, as_plain, render, table

EVIL = "</style><script>window.pwned=1</script><img src=x onerror=alert(1)> & \u2028 <!-- '\""


class Elements(HTMLParser):
    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def result(name: str = "arc", **metrics: Metric) -> TaskResult:
    is_choice = "acc" in metrics
    return TaskResult(name, "choice" if is_choice else "text", 3, 1172, metrics, 0.25 if is_choice else None)


def points() -> list[Point]:
    return [
        Point(step, [
            result(EVIL, acc=Metric(value, 0.01), acc_norm=Metric(value + 0.05, 0.02)),
            result("held-out web", top1=Metric(value, 0.001), bits_per_byte=Metric(2 - value, None)),
        ])
        for step, value in ((100, 0.2), (2000, 0.3))
    ]  # fmt: skip


def test_the_page_runs_nothing_loads_nothing_and_shows_hostile_names() -> None:
    page = render(EVIL, points())
    found = Elements(page)
    assert not {"script", "img", "link", "iframe", "object"} & set(found.tags)
    assert not [name for name, _value in found.attributes if name.startswith("on") or name in ("href", "src", "style")]
    assert any(EVIL in text for text in found.texts)
    style = re.search("<style>(.*?)</style>", page.decode(), re.DOTALL)
    (policy,) = [value for name, value in found.attributes if name == "content" and value and "default-src" in value]
    assert style is not None and "default-src 'none'" in policy
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy


def test_the_page_has_every_number_and_the_yardsticks() -> None:
    text = " ".join(Elements(render("run", points())).texts)
    about = "1,172 lines, 3 shots, a blind guess 25 %"
    for shown in ("20 % ± 1 %", "35 % ± 2 %", "30 % ± 0.1 %", "1.8", "step 2,000", about):
        assert shown in text
    assert "people 29 %" in text and "GPT-3 56 %" in text and "blind guess" in text and "arXiv:2212.11281" in text


def test_one_model_without_a_step_has_no_steps() -> None:
    page = render("folder", [Point(None, [result(acc=Metric(0.5, 0.1))])]).decode()
    assert "step" not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL) and page.count("<rect") == 1
    assert table([Point(None, [result(acc=Metric(0.5, 0.1))])])[-1] == "   acc 50 % ± 10 %"


def test_the_table_has_a_block_per_task_and_a_line_per_checkpoint() -> None:
    lines = table(points())
    assert [line for line in lines if line.startswith("  step")] == [
        "  step 100       acc 20 % ± 1 %   acc_norm 25 % ± 2 %",
        "  step 2,000     acc 30 % ± 1 %   acc_norm 35 % ± 2 %",
        "  step 100       top1 20 % ± 0.1 %   bits_per_byte 1.8",
        "  step 2,000     top1 30 % ± 0.1 %   bits_per_byte 1.7",
    ]
    assert "29 %" in lines[-1] and "29 %" not in " ".join(table([Point(1, [result(acc=Metric(0.5))])]))


def test_plain_values_are_json_and_hold_everything() -> None:
    plain = json.loads(json.dumps(as_plain("run", points())))
    last = plain["checkpoints"][-1]
    assert last["step"] == 2000 and plain["yardsticks_top1"] == {"people": 0.29, "GPT-3": 0.56}
    assert last["tasks"][EVIL]["metrics"]["acc"] == {"value": 0.3, "stderr": 0.01}
    assert last["tasks"]["held-out web"] | {"metrics": 0} == {
        "scoring": "text", "shots": 3, "documents": 1172, "guess": None, "metrics": 0,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- charts


numbers = st.floats(-1e6, 1e6)


@settings(max_examples=200)
@given(numbers, st.floats(0, 1e6))
def test_ticks_are_few_and_around_everything(low: float, size: float) -> None:
    marks = ticks(low, low + size)
    slack = 1e-6 * max(1.0, abs(low), size)
    assert 2 <= len(marks) <= 9 and marks[0] <= low + slack and marks[-1] >= low + size - slack
    assert marks == sorted(set(marks))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10**7), numbers, st.none() | st.floats(0, 100)), min_size=1, max_size=9),
       st.lists(numbers, max_size=3), st.booleans())  # fmt: skip
def test_everything_is_inside_the_picture(
    values: list[tuple[int, float, float | None]], levels: list[float], is_share: bool
) -> None:
    places = {x: Metric(value, error) for x, value, error in values}
    line = Line("a & b", sorted(places.items()))
    svg = chart("t", [line], [Level("level", value) for value in levels], str, is_share)
    for name, high in (("x", 460), ("y", 220)):
        found = [float(value) for value in re.findall(rf'\b(?:c{name}|{name}[12]?)="([^"]+)"', svg)]
        assert found and all(-0.1 <= value <= high + 0.1 for value in found)
    assert svg.count("<circle") + svg.count("<rect") == len(places) and "a &amp; b" in svg


def test_names_at_the_bottom_are_a_line_apart_and_in_the_picture() -> None:
    """Found by the test above, once in hundreds of runs: three levels at zero below a bar of nothing."""
    svg = chart("t", [Line("a", [(0, Metric(0.0))])], [Level("level", 0.0)] * 3, str)
    heights = [float(y) for y in re.findall(r'<text class="name [^"]+" x="[^"]+" y="([^"]+)"', svg)]
    assert len(heights) == 4 and max(heights) <= 220
    assert all(below - above >= 12.9 for above, below in pairwise(heights))


def test_a_higher_value_is_drawn_higher_and_a_later_one_to_the_right() -> None:
    svg = chart("t", [Line("a", [(0, Metric(0.1)), (10, Metric(0.4))])], [], show=str)
    (x0, y0), (x1, y1) = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([^"]+)" cy="([^"]+)"', svg)]
    assert x0 < x1 and y0 > y1


def test_what_is_no_number_is_left_out() -> None:
    lines = [Line("a", [(0, Metric(math.inf)), (1, Metric(2.0, 0.5))]), Line("b", [(0, Metric(math.nan))])]
    svg = chart("t", lines, [], show=str)
    assert svg.count("<rect") == 1 and "nan" not in svg and "inf" not in svg


def test_a_perplexity_is_drawn_by_powers_of_ten() -> None:
    values = [Metric(value, value / 10) for value in (1e4, 1e3, 1e2)]
    svg = render("run", [Point(step, [result(perplexity=value)]) for step, value in enumerate(values)]).decode()
    heights = [float(y) for y in re.findall(r'<circle cx="[^"]+" cy="([^"]+)"', svg)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2) and heights[0] < heights[1]
    assert ">10,000<" in svg and ">100<" in svg


def test_shares_are_never_drawn_below_nothing() -> None:
    line = Line("a", [(0, Metric(0.001, 0.01)), (1, Metric(0.3, 0.01))])
    assert 'text-anchor="end" x="46" y="190.0">0.0<' in chart("t", [line], [], str, is_share=True)
    assert ">-0.1<" in chart("t", [line], [], str)


def test_names_do_not_lie_on_each_other() -> None:
    svg = chart("t", [Line(name, [(0, Metric(0.5))]) for name in "abcd"], [Level("e", 0.5)], show=str)
    heights = [float(y) for y in re.findall(r'<text class="name [^"]*" x="[^"]+" y="([^"]+)"', svg)]
    assert len(heights) == 5 and all(b - a >= 12 for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False))
