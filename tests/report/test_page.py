"""The page: everything of a run is on it, nothing is loaded or run, and what the run says is text.

    python -m pytest -q tests/report/test_page.py
"""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from pretrainer.plan.chart import BOTTOM, LEFT, RIGHT, TOP, WIDTH
from pretrainer.report import charts
from pretrainer.report.evaluation import by_task
from pretrainer.report.page import NOT_RECORDED, render, table
from pretrainer.report.story import KINDS, tell
from tests.report.example import HOSTILE, empty, facts, start, steps_event, task, validation

VOID = {"meta", "br", "input", "link", "img"}


class Checked(HTMLParser):
    """Collects tags and text; every tag is closed in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page.decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def headings(page: bytes) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.decode())


def test_the_page_runs_nothing_and_loads_nothing() -> None:
    page = render(facts())
    checked = Checked(page)
    assert not {"script", "link", "img", "iframe", "object", "a", "form"} & {tag for tag, _attributes in checked.tags}
    names = {name for _tag, attributes in checked.tags for name in attributes}
    assert not {"href", "src", "style", "onclick"} & names  # the policy would not let a style through
    style = re.search(r"<style>(.*?)</style>", page.decode(), re.DOTALL)
    assert style and "url(" not in style[1]
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page.decode()


def test_what_the_run_says_is_text() -> None:
    page = render(facts(run=HOSTILE, message=HOSTILE, uri=HOSTILE)).decode()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8  # title, message, marks, documents, samples …
    assert table(["<b>"], [("<svg onload=x>", "<i>")]).count("&lt;") == 3


def test_every_section_is_there_and_has_its_numbers() -> None:
    page = render(facts())
    text = Checked(page).text
    assert [name for name in headings(page) if name != "arc"] == [
        "What to look at", "Loss", "What happened", "Stability decisions", "By source", "Evaluation",
        "Samples over time", "Speed and schedule", "Where the workers&#x27; time went", "Documents", "What it was",
    ]  # fmt: skip
    for words in (
        "200 of 200", "102,400", "4.3000", "2.150 bits per byte (gzip -9 2.500)", "completed", "95.0%", 
        "7 documents, those with the most tokens first", "1,234", "Curated when it was last looked at: web 50%",
        "Of 2.00 worker-hours", "duplicate_near", "75.00%", "d200", "f00d", "torch 2.13.0", "train.steps", "step 20",
        "steps that curation is ahead of training", "rank 1:", "1970-01-01 00:18:21",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "not started"])
def test_a_run_that_has_recorded_nothing_has_a_page_that_says_so(status: str) -> None:
    page = render(empty(status))
    text = Checked(page).text
    assert status in text and text.count(NOT_RECORDED) > 8 and "Stability decisions" not in text
    assert "Infinity" not in text and "nan" not in text.lower().split()


def test_one_step_is_a_page_too() -> None:
    page = render(facts(events=[start(0, 1), steps_event(1, 5.0), validation(0, 6.0)], steps=1, heals=()))
    assert "loss over steps" in page.decode() and Checked(page)


def test_the_legend_names_what_is_in_the_picture() -> None:
    text = Checked(render(facts())).text
    for kind, words in KINDS.items():
        found = sum(mark.kind == kind for mark in tell(facts()).marks)
        assert (f"{words} ({found})" in text) == (found > 0)


def test_long_lists_are_cut_and_say_so() -> None:
    fell = [{"kind": "failure", "message": f"number {n}", "reason": None, "ranks": []} for n in range(500)]
    page = render(facts(events=[start(0, 1), steps_event(10, 5.0), *fell], heals=()))
    assert "300 more are left out here" in Checked(page).text and len(page) < 300_000
    samples = Checked(render(facts(samples=[(n, f"text {n}") for n in range(1000)]))).text
    assert "text 0" in samples and "text 999" in samples and samples.count("text ") < 20


# ----------------------------------------------------------------------------------------------------------- charts


def shapes(svg: str | None, kind: str) -> list[ElementTree.Element]:
    assert svg is not None
    return [element for element in ElementTree.fromstring(svg).iter() if kind in (element.get("class") or "").split()]


def test_what_happened_stands_at_its_step() -> None:
    svg = charts.loss(facts(), tell(facts()))
    width = WIDTH - LEFT - RIGHT
    (failed,) = shapes(svg, "failure")
    assert float(failed.get("x1", 0)) == pytest.approx(LEFT + width / 2, abs=0.1)  # step 100 of 200
    (spike,) = shapes(svg, "spike")
    assert float(spike.get("cx", 0)) == pytest.approx(LEFT + width * 90 / 200, abs=0.1)
    assert len(shapes(svg, "tick-mark")) == 2 and len(shapes(svg, "heal")) == 1 and len(shapes(svg, "resize")) == 2
    assert "rank 1" in (failed.find("title").text or "")  # type: ignore[union-attr]


def test_workers_are_a_strip_of_their_steps() -> None:
    strips = [rect for rect in shapes(charts.loss(facts(), tell(facts())), "strip")]
    width = WIDTH - LEFT - RIGHT
    assert [round(float(r.get("width", 0)) / width, 2) for r in strips] == [0.3, 0.45, 0.25]
    assert len({rect.get("class") for rect in strips}) == 3  # three sizes, three colours


def test_a_spike_far_above_does_not_flatten_the_curve() -> None:
    told = [start(0, 1), *(steps_event(n, 1e6 if n == 100 else 5.0 + n / 100) for n in range(10, 1001, 10))]
    known = facts(events=told, heals=())
    svg = charts.loss(known, tell(known))
    assert svg is not None
    polyline = next(e for e in ElementTree.fromstring(svg).iter() if "raw" in (e.get("class") or ""))
    heights = [float(pair.split(",")[1]) for pair in (polyline.get("points") or "").split()]
    assert min(heights) >= TOP - 0.1 and max(heights) <= charts.LARGE - BOTTOM + 0.1
    assert sorted(heights)[-1] - sorted(heights)[1] > 0.5 * (charts.LARGE - BOTTOM - TOP)


def test_a_waterfall_ends_where_its_parts_leave_off() -> None:
    svg = charts.waterfall("all", [("a", 0.3), ("b", 0.1)], "rest")
    bars = {kind: shapes(svg, kind) for kind in ("whole", "lost", "kept")}
    full = float(bars["whole"][0].get("width", 0))
    assert [round(float(bar.get("width", 0)) / full, 3) for bar in bars["lost"] + bars["kept"]] == [0.3, 0.1, 0.6]
    left = float(bars["whole"][0].get("x", 0))
    assert (float(bars["lost"][1].get("x", 0)) - left) / full == pytest.approx(0.6, abs=1e-3)


def test_a_constant_curve_and_a_single_point_can_be_drawn() -> None:
    story = tell(facts())
    for points in ([(10.0, 3.0), (20.0, 3.0)], [(10.0, 0.0)], [(10.0, 0.0), (20.0, 0.0)]):
        svg = charts.curves("x", {"a": points}, story, "{:.2f}".format, True)
        assert svg is not None and ElementTree.fromstring(svg) is not None and "nan" not in svg
    assert charts.curves("x", {"a": []}, story, str) is None


# ------------------------------------------------------------------------------------------------------- evaluation


def test_points_of_several_cadences_become_curves_by_task() -> None:
    points = [
        {"step": 200, "cadence": "quick", "tasks": {"arc": task(0.4)}},
        {"step": 100, "cadence": "quick", "tasks": {"arc": task(0.3)}},
        {"step": 200, "cadence": "full", "tasks": {"arc": task(0.5), "piqa": task(0.6, None)}},
    ]
    curves = by_task(points)
    assert {name: [(p.step, p.results[0].metrics["acc"].value) for p in found] for name, found in curves.items()} == {
        "arc": [(100, 0.3), (200, 0.5)], "piqa": [(200, 0.6)],
    }  # fmt: skip
    newest = facts(evaluation=points).newest_tasks()
    assert {name: (task["step"], task["metrics"]["acc"]["value"]) for name, task in newest.items()} == {
        "arc": (200, 0.5), "piqa": (200, 0.6),
    }  # fmt: skip
    text = Checked(render(facts(evaluation=points))).text
    assert "arc 200 acc 50 % ± 2 %" in text and "piqa 200 acc 60 % ± 2 %" in text
