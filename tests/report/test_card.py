"""The card: everything is on it, nothing is invented, nothing secret gets in, and Markdown stays Markdown.

    python -m pytest -q tests/report/test_card.py
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from pretrainer.config_load import parse_config
from pretrainer.plan.hardware import load_prices
from pretrainer.report.card import Inputs, card, clean, not_recorded
from pretrainer.report.card_text import as_markdown, shown
from pretrainer.report.costs import PUE, TDP_W, cost, energy, name_of
from tests.report.example import SECRET, config, driver, empty, facts, inputs, start

H100 = "NVIDIA H100 80GB HBM3"


def made(**changes: Any) -> dict[str, Any]:
    return card(facts(**changes), inputs(), load_prices())


def test_the_card_is_plain_json_with_every_field_of_the_config() -> None:
    whole = made()
    assert json.loads(json.dumps(whole)) == json.loads(json.dumps(whole, default=str))
    assert parse_config(yaml.safe_dump(whole["config"])) == config()


def test_the_card_has_what_published_runs_leave_out() -> None:
    whole = made()
    web = whole["data"]["sources"]["web"]
    assert web["documents"]["dropped"]["duplicate_near"] == 15 and web["shards"]["objects"][0] == ("a.jsonl", 10)
    assert whole["data"]["sources"]["code"]["licences"] == {"MIT": 30, "none named": 19}
    assert whole["data"]["mixture"]["web"] == {"asked": 0.75, "realised": 0.75}
    assert [heal["action"] for heal in whole["instabilities"]] == ["nothing is done", "119 is left out"]
    assert whole["training"]["restarts"] == 2 and whole["training"]["world_sizes"][1]["workers"] == 3
    assert [mark["kind"] for mark in whole["training"]["what_happened"]].count("failure") == 1
    assert whole["checkpoint"]["rule"] == "the newest committed one" and whole["training"]["early_stop"] == "no"
    assert whole["evaluation"]["tasks"]["arc"]["step"] == 200
    assert whole["software"]["git_commit"] == "abc" and whole["software"]["software"]["torch"] == "2.13.0"
    assert whole["digests"]["order_digest"] == {"steps": 200, "digest": "d200"}


def test_device_hours_become_money_and_energy() -> None:
    whole = made()
    hours, price = 2.0, load_prices().gpus["H100"].dollars_per_hour
    assert whole["hardware"]["device_hours"] == hours and whole["hardware"]["devices"] == [H100]
    assert whole["cost"]["dollars"] == pytest.approx(hours * price)
    assert whole["cost"]["price_date"] == load_prices().date
    assert whole["energy"]["kwh"] == pytest.approx(hours * TDP_W["H100"] * PUE / 1000)
    assert "assumption" in whole["energy"]["assumption"]


@pytest.mark.parametrize(
    ("device", "name"),
    [(H100, "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H200", "H200"), ("NVIDIA L40S", "L40S"),
     ("NVIDIA L4", "L4"), ("NVIDIA A10G", "A10G"), ("NVIDIA A100-SXM4-40GB", "A100"), ("cpu", None),
     ("Tesla T4", None)],
)  # fmt: skip
def test_a_device_is_known_by_whole_words(device: str, name: str | None) -> None:
    assert name_of(device, TDP_W) == name


def test_the_smaller_a100_has_its_own_price() -> None:
    assert cost(["NVIDIA A100-SXM4-40GB"], 1.0, load_prices())["dollars"] == 1.3
    assert cost(["NVIDIA A100-SXM4-80GB"], 1.0, load_prices())["dollars"] == 1.5


def test_what_is_not_known_is_not_invented() -> None:
    for devices, hours in ((["cpu"], 3.0), ([], 3.0), ([H100], None)):
        assert cost(devices, hours, load_prices())["dollars"] is None and energy(devices, hours)["kwh"] is None
    text = as_markdown(made(events=[driver(1, 1.0), start(0, 1, device="cpu")]))
    assert "not known (no price is known of cpu)" in text and "not known (no board power is known of cpu)" in text


def test_two_kinds_of_device_have_no_price() -> None:
    whole = made(events=[start(0, 1), start(10, 1, device="NVIDIA L4")])
    assert whole["hardware"]["devices"] == [H100, "NVIDIA L4"] and whole["cost"]["dollars"] is None
    assert f"{H100} and NVIDIA L4" in whole["energy"]["assumption"]


def test_an_empty_run_has_a_card_that_says_so() -> None:
    whole = card(empty("failed"), Inputs(), load_prices())
    text = as_markdown(whole)
    missing = set(not_recorded(whole))
    assert {"tokenizer", "checkpoint", "model.parameters", "training.tokens", "hardware.device_hours"} <= missing
    assert "Not recorded: `" in text and "`model.parameters`" in text and "None" not in text


def test_settings_without_a_value_are_not_missing() -> None:
    names = set(not_recorded(made()))
    assert not any(name.startswith(("config", "model.settings")) for name in names)
    assert "data.sources.web.licences" in names and "data.sources.code.licences" not in names


def test_a_model_that_was_loaded_is_named_and_is_not_from_scratch() -> None:
    assert "trained from scratch" in as_markdown(made()) and made()["init"] == "none, the weights were drawn"
    held = json.loads(json.dumps(facts().config))
    held["init"]["uri"] = "s3://bucket/parent"
    summary = {**facts().summary, "init": {"weights_sha256": "cafe"}, "forgetting": {"loss": 0.1}}
    whole = made(config=held, summary=summary)
    assert (whole["init"]["weights_sha256"], whole["init"]["forgetting"]) == ("cafe", {"loss": 0.1})
    assert "trained on from s3://bucket/parent" in as_markdown(whole) and "from scratch" not in as_markdown(whole)


def test_secrets_stay_out() -> None:
    values = {"tracking": {"uri": "https://me:word@host/x"}, "run": [f"{SECRET}"], "n": 3}
    assert "word" not in str(clean(values)) and SECRET not in str(clean(values)) and clean(values)["n"] == 3
    known = facts()
    held = json.loads(json.dumps(known.config))
    held["tracking"]["uri"] = "https://me:word@host/x"
    held["data"]["sources"][0]["uris"] = ["https://host/file?token=word"]
    whole = made(config=held)
    assert "word@" not in json.dumps(whole) and "token=word" not in json.dumps(whole)


# --------------------------------------------------------------------------------------------------------- markdown


def test_the_front_matter_is_what_the_hub_reads() -> None:
    _before, front, body = as_markdown(made()).split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["library_name"] == "transformers" and "license" not in values
    (results,) = [one["results"] for one in values["model-index"]]
    assert results[0]["dataset"]["name"] == "arc" and results[0]["metrics"] == [{"type": "acc", "value": 0.4}]
    assert body.lstrip().startswith("# example")


def test_tables_keep_their_columns_whatever_a_run_says() -> None:
    text = as_markdown(made())
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(blocks) >= 10 and all(set(block[1]) == set("|-") for block in blocks)
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1, block
    assert "<script" not in text and "a new line" in text


def test_every_part_of_the_card_is_told() -> None:
    text = as_markdown(made())
    for words in (
        "30,000 parameters, 102,400 tokens in 200 of 200 steps", "## What is weak", "duplicate\\_near | 15 | 15.00%",
        "MIT 30, none named 19", "| 0 to 60 | 2 |", "Restarts of the workers: 2.", "step 89: loss 9 is above 7",
        "119 is left out", "| arc | 200 | 5 | 100 | acc | 0.4 | 0.02 | 0.25 |", "5.90 USD", "1.68 kWh", "d200", "f00d",
        "the newest committed one", "global_batch_tokens: 512", "torch 2.13.0", "Not recorded:",
    ):  # fmt: skip
        assert words in text, words


def test_values_are_words() -> None:
    assert shown(None) == "not recorded" and shown(1234567) == "1,234,567" and shown(True) == "True"
    assert shown([]) == "none" and shown({"a": None}) == "a not recorded" and shown("a|b\n_c_") == "a\\|b \\_c\\_"
