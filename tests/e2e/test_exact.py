"""Exact mode as a user runs it: one digest of the weights, whatever the number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.head import Head, corpus, pipeline, tiny_config


@pytest.mark.slow
def test_weights_are_the_same_bits_at_every_number_of_workers(head: Head, tmp_path: Path) -> None:
    source = {"name": "all", "uris": [str(corpus(tmp_path / "corpus"))], "preset": "code", "id_column": "id"}
    config = tiny_config(tmp_path, [source], model={"dropout": 0.1})
    results = {}
    for name, *arguments in (
        ("one", "train.exact=true", "train.num_workers=1"),
        ("three", "train.exact=true", "train.num_workers=3"),  # 3 does not divide 8 slot blocks
        ("normal", "train.num_workers=2"),
    ):
        results[name] = pipeline("pretrain", "--config", str(config), f"run.name={name}", *arguments, env=head.env)
        assert results[name].code == 0, results[name].out + results[name].err
    one, three, normal = (results[name].summary for name in ("one", "three", "normal"))
    assert len(one["weights_sha256"]) == 64 and one["weights_sha256"] == three["weights_sha256"]
    assert one["train_loss"] == three["train_loss"] and one["validation"] == three["validation"]
    assert normal["weights_sha256"] is None and "weights SHA-256" not in results["normal"].out
    assert f"weights SHA-256 {one['weights_sha256']}" in results["one"].out
    assert json.loads(Path(three["checkpoint"], "state.json").read_text())["extra"]["weights_sha256"] == (
        one["weights_sha256"]
    )
    assert normal["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
