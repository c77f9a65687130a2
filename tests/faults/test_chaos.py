"""Twenty random kills of every kind over one elastic training in exact mode; `make chaos` runs more."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import chaos


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    table = chaos.chaos(tmp_path, kills=20, seed=1, steps=240)
    print(table)
    assert all(kind in table for kind in chaos.KINDS) and "20 kills" in table
    found = re.search(r"(\d+) resizes", table)
    assert found is not None and int(found[1]) >= 4, table


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], chaos.Run]:
    """A run whose terminal says what the test wants; no process behind it."""

    def make(text: str) -> chaos.Run:
        run = object.__new__(chaos.Run)
        run.log = tmp_path / "log"
        run.log.write_text(text)
        return run

    return make


def test_steps_are_read_from_the_terminal(run: Callable[[str], chaos.Run]) -> None:
    told = "[00:01] step      2/1,000  loss\n[00:02] checkpoint of step 10, order\n[01:00] step  1,234/2,000  loss 3\n"
    assert run(told).steps_seen() == [2, 1234]
