"""The way from a card to what is derived, and from a comparison to an exit code; the derivation is tests/e2e's.

    python -m pytest -q tests/test_reproduce.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.driver.card import MOST_DIGESTS, order_digests
from pipelines.driver.cli import Cluster
from pipelines.reproduce import DIFFERS, conclude, config_of, fit_readers, read_card, wanted_steps
from pretrainer.data.pipeline import data_cpus
from pretrainer.errors import UserError
from pretrainer.plan.hardware import load_prices
from pretrainer.report.card import card
from pretrainer.report.compare import Row
from pretrainer.storage import Store
from tests.report.example import config, facts, inputs


def example() -> dict[str, Any]:
    return card(facts(), inputs(), load_prices())


@pytest.mark.parametrize(("at", "given"), [("card.json", "card.json"), ("card.json", ""), ("export/card.json", "")])
def test_a_card_is_found_as_itself_in_its_folder_and_in_a_run(tmp_path: Path, at: str, given: str) -> None:
    Store(str(tmp_path)).write(at, json.dumps(example()).encode())
    assert read_card(Store(f"{tmp_path}/{given}"))["run"]["name"] == "example"


def test_what_is_no_card_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no card.json at"):
        read_card(Store(str(tmp_path)))
    with pytest.raises(UserError, match="there is no card.json at"):
        read_card(Store(str(tmp_path / "other.json")))
    for content in (b"{", b"[]", b'{"config": {}}', json.dumps({**example(), "digests": {}}).encode()):
        (tmp_path / "card.json").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a run card"):
            read_card(Store(str(tmp_path)))


def test_steps_end_at_a_point_of_the_chain() -> None:
    assert [wanted_steps(example(), asked) for asked in (None, 500, 200, 199, 60)] == [200, 200, 200, 100, 60]
    with pytest.raises(UserError, match="--steps 59 is not possible: the first digest in the card is of step 60"):
        wanted_steps(example(), 59)


def test_the_config_is_the_run_s_on_this_cluster_into_a_folder_of_its_own() -> None:
    content = example()
    content["config"]["cluster"]["address"] = "head:6379"
    content["config"]["run"]["copy_to"] = "s3://elsewhere"
    found = config_of(content, ["data.sources.0.uris=[/new]"], "/folder")
    assert found.data.sources[0].uris == ("/new",) and found.data.sources[1] == config().data.sources[1]
    assert (found.run.storage, found.run.copy_to, found.cluster.address) == ("/folder", None, "auto")
    content["config"]["init"]["uri"], content["config"]["run"]["storage"] = "parent", "/runs"
    assert found.init.uri is None and config_of(content, [], "/folder").init.uri == "/runs/parent"
    assert config_of(content, ["cluster.address=here:1"], "/folder").cluster.address == "here:1"


def test_readers_fit_into_a_small_machine_and_are_left_alone_on_a_large_one() -> None:
    large = replace(config(), data=replace(config().data, read_cpus=4.0))
    found = fit_readers(large, Cluster(2.0, 0.0, 1, None, True))
    assert 0.02 <= found.data.read_cpus < 1 and data_cpus(found.data) <= 2.0
    assert replace(found, data=large.data) == large
    assert fit_readers(large, Cluster(100.0, 0.0, 1, None, True)) == large


def order(card_digest: str, here: str) -> Row:
    return Row("order digest", card_digest, here, "because of settings")


def test_the_order_digest_decides_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    same, other = Row("code", "3 parts", "3 parts"), Row("code", "3 parts", "1 of 3 differ")
    end = "x after step 200"
    assert conclude([same, order(end, end)], 200) == 0
    assert "reproduced: the first 200 steps" in capsys.readouterr().out
    assert conclude([other, order(end, end)], 200) == 0
    assert "although these differ: code" in capsys.readouterr().out
    assert conclude([same, order(end, "y after step 200")], 200) == DIFFERS == 8
    assert "not reproduced" in capsys.readouterr().err


def test_a_stream_that_ends_early_is_not_reproduced() -> None:
    assert conclude([order("x after step 100", "x after step 100")], 200) == DIFFERS


def test_the_chain_in_a_card_is_bounded_and_ends_at_the_committed_step(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    for first in range(0, 1000, 2):
        lines = [json.dumps({"order_digest": f"d{step + 1}"}) for step in (first, first + 1)]
        run.write(f"audit/{first:09d}-{first + 1:09d}-a000000.jsonl", "\n".join(lines).encode())
    run.write("audit/attempts/000000.json", b"{}")
    found = order_digests(run, 998)
    assert len(found) <= MOST_DIGESTS + 1 and max(found) == 998
    assert all(digest == f"d{steps}" for steps, digest in found.items())
    assert order_digests(run, 1) == {} and list(order_digests(run, 7)) == [2, 4, 6]
