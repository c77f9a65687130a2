"""The result of a sweep in tables and on its page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pretrainer.plan.report import as_text
from pretrainer.tuning.page import render
from pretrainer.tuning.report import grid_table, points, tables
from tests.tuning.sweeps import finished, sweep, sweep_config, trial


def page(found) -> str:  # noqa: ANN001
    return render(found).decode()


def test_the_winner_is_the_completed_trial_of_the_least_loss() -> None:
    config = sweep_config()
    trials = finished(config)
    winner = sweep(config, trials).winner
    assert winner is not None and winner.parameters == {"train.global_batch_tokens": 1024, "train.learning_rate": 6e-3}
    early = replace(winner, progress=replace(winner.progress, status="stopped"))
    others = [early if one.name == winner.name else one for one in trials]
    second = sweep(config, others).winner
    assert second is not None and second.name != winner.name
    last = replace(winner.progress.reports[-1], loss=math.inf)
    only = sweep(config, [replace(winner, progress=replace(winner.progress, reports=(last,)))])
    assert only.winner is None and sweep(config, []).winner is None


def test_tables_say_what_was_found() -> None:
    config = sweep_config("sweep.target.parameters=1.25e8")
    found = sweep(config, finished(config))
    text = as_text(tables(found))
    assert "12 completed" in text and "train.learning_rate=0.006" in text and "inside" in text and "batch^0.50" in text
    optimum = next(t for t in tables(found) if t.title.startswith("optimum"))
    assert [row[1] for row in optimum.rows] == ["0.00566", "0.008", "0.0113"]
    batches = next(t for t in tables(found) if t.title.startswith("batch size"))
    assert [row[4] for row in batches.rows] == ["0.34", "0.68", "1.37"]
    assert [row[5] for row in batches.rows] == ["1.34", "1.68", "2.37"]
    target = next(t for t in tables(found) if t.title == "extrapolation")
    deepseek = next(row for row in target.rows if row[0] == "deepseek")
    flops = (1.25e8 * 20 * 1.25e8) / (1_117_312 * found.whole_tokens / 12)
    assert float(deepseek[2]) == pytest.approx(6e-3 * flops**-0.125, rel=0.03)
    assert int(deepseek[1].replace(",", "")) == pytest.approx(1024 * flops**0.3271, rel=0.03)
    assert "none of that was tried" in text


def test_the_grid_shows_every_state() -> None:
    config = sweep_config()
    trials = [trial(config, 0, 1024, 2e-3), trial(config, 1, 1024, 6e-3, reports=2),
              trial(config, 2, 2048, 2e-3, reports=0, status="failed"),
              trial(config, 3, 2048, 6e-3, reports=0, status="running")]  # fmt: skip
    rows = grid_table(config, trials).rows
    assert rows[0][2].endswith(" at 25%") and rows[1][1] == "failed" and rows[1][2] == "…"
    assert len(points(config, trials)) == 1


def test_tokens_are_counted_over_all_trials() -> None:
    config = sweep_config("sweep.scheduler=asha")
    found = sweep(config, [trial(config, 0, 1024, 6e-3), trial(config, 1, 2048, 6e-3, reports=2)])
    assert found.trained_tokens / found.whole_tokens == pytest.approx(0.625)
    assert "62% of the" in as_text(tables(found))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("polyline",):
            return
        assert self.open.pop() == tag


def test_the_page_is_closed_and_shows_three_charts() -> None:
    config = sweep_config()
    text = page(sweep(config, finished(config)))
    parser = Tags()
    parser.feed(text)
    assert parser.open == [] and parser.seen.count("svg") == 3 and "script" not in parser.seen
    assert "default-src 'none'" in text and not re.search(r"(?:src|href)=|url\(", text)
    assert text.count('class="trial s0"') == 4 + 3 and text.count('class="optimum s') == 3
    assert "noise scale 3K" in text


def test_what_is_on_the_page_stays_on_its_charts() -> None:
    """One trial that exploded must not press the others flat, and nothing lies outside of the drawing."""
    config = sweep_config()
    trials = finished(config)
    huge = replace(trials[3].progress, reports=tuple(replace(r, loss=math.inf) for r in trials[3].progress.reports))
    text = page(sweep(config, [*trials[:3], replace(trials[3], progress=huge), *trials[4:]]))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    heights = [float(pair.split(",")[1]) for group in re.findall(r'points="([^"]+)"', drawn) for pair in group.split()]
    assert heights and all(0 <= y <= 460 for y in heights) and not re.search(r"\b(nan|inf)\b", drawn)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_sweep_that_has_hardly_begun_has_a_page(count: int) -> None:
    config = sweep_config("sweep.target.parameters=1e8")
    assert page(sweep(config, finished(config)[:count])).endswith("</html>\n")


def test_names_are_escaped() -> None:
    config = sweep_config()
    bad = replace(finished(config)[0], progress=replace(finished(config)[0].progress, message="<b>&", status="failed"))
    assert "&lt;b&gt;&amp;" in page(sweep(config, [bad])) and "<b>" not in page(sweep(config, [bad]))
