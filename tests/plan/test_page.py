"""Tables, the picture, and numbers in words."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.plan.chart import BOTTOM, HEIGHT, LEFT, LINE_HEIGHT, RIGHT, TOP, WIDTH, Axis, apart
from pretrainer.plan.laws import FRONTIERS, REFIT
from pretrainer.plan.page import BUDGETS, frontiers, isoflops, ratios, render
from pretrainer.plan.planner import Plan
from pretrainer.plan.report import as_text, tables
from pretrainer.plan.request import Available
from pretrainer.plan.units import dollars, duration, number, short
from tests.plan.plans import example, plan, prices

PLANS = {
    "dollars": {"dollars": 1e5},
    "tiny": {"parameters": 3e5},
    "huge": {"flops": 1e25},
    "long": {"tokens": 1e12, "parameters": 1e8},
}


@cache
def planned(name: str) -> Plan:
    return plan(**PLANS[name])


def column(text: str, title: str) -> list[str]:
    """Lines of the table with this title."""
    block = next(block for block in text.split("\n\n") if block.startswith(title))
    return block.splitlines()[1:]


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", PLANS)
def test_tables_are_aligned_and_have_the_numbers_of_the_plan(name: str) -> None:
    found = planned(name)
    text = as_text(tables(found))
    assert [block.splitlines()[0].split(" of ")[0] for block in text.split("\n\n")] == [
        "plan", "best split", "longer training", "batch and learning rate, by law", "other numbers",
        "memory by sharding", "tokens required and available",
    ]  # fmt: skip
    assert max(map(len, text.splitlines())) <= 160 and not any(line != line.rstrip() for line in text.splitlines())
    for table in tables(found)[1:4]:  # their last column is one of numbers
        lines = column(text, table.title)[: 1 + len(table.rows)]
        assert len({len(line) for line in lines}) == 1 and lines[0].split() == " ".join(table.head).split()
    facts = dict(row for row in tables(found)[0].rows)
    assert short(found.parameters) in facts["model"] and short(found.tokens) in facts["tokens"]
    assert facts["predicted loss"].startswith(f"{found.loss:.3f} nats" if name != "tiny" else "none")
    assert f"{found.run.batch_tokens:,}" in facts["batch"]
    assert f"{found.run.gpus:,} {found.gpu.name}" in facts["GPUs"]
    assert facts["cost"].startswith(dollars(found.cost.dollars))
    assert facts["time"].startswith(duration(found.cost.days))


def test_every_law_has_its_row_and_disagreement_is_said() -> None:
    found = planned("dollars")
    laws = tables(found)[1]
    assert [row[0] for row in laws.rows] == [*FRONTIERS, "plan"]
    for row in laws.rows[:-1]:
        best = FRONTIERS[row[0]].at(found.split.flops)
        assert row[1:3] == (short(best.parameters), short(best.tokens)) and row[4] == f"{REFIT.loss(*best):.3f}"
    said = [note for note in laws.notes if note.startswith("Disagreement")]
    assert len(said) == 2 and "approach3 takes a model" in said[0] and "smaller" in said[0] and "kaplan" in said[1]
    assert any("critical batch" in note for note in laws.notes)


def test_what_the_law_cannot_know_is_said() -> None:
    notes = {name: " ".join(tables(planned(name))[0].notes) for name in PLANS}
    assert "extrapolated" in notes["tiny"] and "mean nothing" not in notes["dollars"]
    assert "a model that knows nothing has ln(2,048) = 7.62" in notes["tiny"]
    assert "extrapolated" not in " ".join(tables(plan(flops=1e21))[0].notes)
    assert all("2026-" in words for words in notes.values())


def test_sharding_rows_are_those_of_the_cluster_and_the_plans_is_among_them() -> None:
    found = planned("dollars")
    memory = tables(found)[5]
    rows = {row[0]: row for row in memory.rows}
    assert {"a copy on each GPU", "FSDP inside a node", "FSDP over all", "of the plan"} <= set(rows)
    assert rows["a copy on each GPU"][-1] == "no" and rows["of the plan"][-1] == "yes"
    assert sum(map(float, rows["of the plan"][1:7])) == pytest.approx(float(rows["of the plan"][7]), abs=0.3)


def test_other_numbers_of_gpus_are_shown_around_the_plans() -> None:
    found = planned("dollars")
    clusters = tables(found)[4]
    counts = [int(row[0].split()[0].replace(",", "")) for row in clusters.rows]
    assert counts == sorted(counts) and found.run.gpus in counts and 3 <= len(counts) <= 7
    at = counts.index(found.run.gpus)
    assert clusters.rows[at][:2] == (f"{found.run.gpus} (of the plan)", duration(found.cost.days))
    assert counts[at + 1] == 2 * found.run.gpus


def test_repeats_are_told() -> None:
    one = replace(example(), available=(Available("stdlib-code", 3e6, 0.97), Available("stdlib-prose", 2e5, 0.03, 0.5)))
    table = tables(plan(tokens=1e8, base=one))[6]
    assert [row[0] for row in table.rows] == ["stdlib-code", "stdlib-prose"]
    assert [row[-1] for row in table.rows] == ["100%", "50%"] and table.rows[0][3] == "32.34"
    assert "worth" in table.notes[0] and "little any more" in table.notes[1] and "best spent on" in table.notes[1]
    enough = replace(example(), available=(Available("stdlib-code", 3e9, 1.0),))
    assert tables(plan(tokens=1e8, base=enough))[6].notes == ["No token is seen twice."]
    few = replace(example(), available=(Available("stdlib-code", 4e7, 1.0),))
    assert len(tables(plan(tokens=1e8, base=few))[6].notes) == 1
    assert "Nothing is prepared" in tables(planned("dollars"))[6].notes[0]


# -------------------------------------------------------------------------------------------------------------- picture


class Elements(HTMLParser):
    """Tags with their attributes, and the text of the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.style, self.inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "style"

    def handle_data(self, data: str) -> None:
        self.style += data if self.inside else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


@pytest.mark.parametrize("name", PLANS)
def test_the_page_is_whole_loads_nothing_and_runs_nothing(name: str) -> None:
    text = render(planned(name)).decode()
    found = Elements(text)
    names = [tag for tag, _ in found.tags]
    assert names.count("svg") == 3 and names.count("table") == 7 and not {"script", "img", "link", "iframe"} & {*names}
    assert not any(word in attrs for _, attrs in found.tags for word in ("src", "href", "style", "onload"))
    policy = next(attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    assert policy is not None and "default-src 'none'" in policy and f"'sha256-{digest}'" in policy
    classes = {word for _, attrs in found.tags for word in (attrs.get("class") or "").split()}
    assert {word for word in classes if not re.search(rf"\.{word}\b", found.style)} <= {"curve", "law", "words"}


def test_names_from_files_are_no_markup() -> None:
    evil = "<b onload=x>&"
    table = replace(prices(), source=evil, gpus={evil: replace(prices().gpus["H100"], name=evil)})
    text = render(plan(flops=1e20, gpu=evil, prices=table)).decode()
    assert not any(tag == "b" for tag, _ in Elements(text).tags) and "&lt;b onload=x&gt;&amp;" in text


@pytest.mark.parametrize("name", PLANS)
def test_charts_are_well_formed_and_inside_their_frame(name: str) -> None:
    for chart in (isoflops(planned(name)), frontiers(planned(name)), ratios(planned(name))):
        root = ElementTree.fromstring(chart.svg())
        lines = root.findall("polyline")
        assert lines and len(root.findall("circle")) == 1
        for line in lines:
            for point in line.attrib["points"].split():
                x, y = map(float, point.split(","))
                assert LEFT - 1 <= x <= WIDTH - RIGHT + 1 and TOP - 1 <= y <= HEIGHT - BOTTOM + 1
        (circle,) = root.findall("circle")
        assert LEFT <= float(circle.attrib["cx"]) <= WIDTH - RIGHT
        ticks = [text for text in root.findall("text") if text.attrib["class"].startswith("tick")]
        assert 5 <= len(ticks) <= 40


def test_the_plan_lies_on_its_isoflop_curve() -> None:
    for name in ("dollars", "huge"):
        root = ElementTree.fromstring(isoflops(planned(name)).svg())
        assert len([line for line in root.findall("polyline") if "curve" in line.attrib["class"]]) == len(BUDGETS)
        own = next(line for line in root.findall("polyline") if "own" in line.attrib["class"])
        points = [tuple(map(float, point.split(","))) for point in own.attrib["points"].split()]
        (circle,) = root.findall("circle")
        at = (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
        assert min((x - at[0]) ** 2 + (y - at[1]) ** 2 for x, y in points) < 6**2
        lowest = max(points, key=lambda point: point[1])  # y grows downwards
        best = isoflops(planned(name)).x.share(REFIT.frontier.at(planned(name).split.flops).parameters)
        assert lowest[0] == pytest.approx(LEFT + best * (WIDTH - LEFT - RIGHT), abs=6)
        labels = [text.text or "" for text in root.findall("text")]
        assert any(label.startswith("plan: ") for label in labels)
        assert all(any(label.startswith(law) for label in labels) for law in ("approach1", "approach3", "refit"))


def test_an_axis_has_round_ticks_inside() -> None:
    linear = Axis(1.93, 2.51, "", str, log=False)
    assert linear.ticks() == pytest.approx([2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    assert Axis(3e8, 2e10, "", str).ticks() == pytest.approx([5e8, 1e9, 2e9, 5e9, 1e10, 2e10])
    assert Axis(1e3, 1e20, "", str).ticks()[0] == 1e3 and len(Axis(1e3, 1e20, "", str).ticks()) < 20
    assert (linear.share(1.93), linear.share(2.51)) == (0, 1) and Axis(1, 100, "", str).share(10) == pytest.approx(0.5)


@given(st.lists(st.floats(0, 500), max_size=8))
def test_words_are_moved_apart_and_keep_their_order(heights: list[float]) -> None:
    moved = apart(heights)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    assert all(after >= before for before, after in zip(heights, moved, strict=True))
    for i, j in zip(order, order[1:], strict=False):
        assert moved[j] - moved[i] >= LINE_HEIGHT - 1e-9


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "value"), [("70B", 70e9), ("1.4T", 1.4e12), ("27.5m", 27.5e6), ("5e18", 5e18), ("1_000", 1e3), ("3k", 3e3)]
)
def test_numbers_are_read(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "B", "x", "-1", "0", "nan", "inf", "1e400", "1BB"])
def test_what_is_no_positive_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        number(text)


@given(st.floats(1, 9e14))
def test_short_numbers_are_read_back(value: float) -> None:
    assert number(short(value)) == pytest.approx(value, rel=0.006)


def test_numbers_in_words() -> None:
    assert [short(x) for x in (0.5, 999, 1000, 27.5e6, 999.9e6, 1.4e12, 2e15)] == [
        "0.5", "999", "1K", "27.5M", "1B", "1.4T", "2e+15",
    ]  # fmt: skip
    assert [dollars(x) for x in (0.001, 12.5, 99_999.6)] == ["less than a cent", "$12.50", "$100,000"]
    assert [duration(x) for x in (1e-5, 0.01, 0.7708, 63.3, 400)] == [
        "0.864 seconds", "14.4 minutes", "18.5 hours", "63.3 days", "400 days",
    ]  # fmt: skip
