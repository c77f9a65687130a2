"""A run that begins with another run, or with its export: same loss, same tokenizer, replay, and what was forgotten.

    python -m pytest -q tests/e2e/test_continue.py
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pretrainer.config_load import parse_config
from tests.e2e.head import Head, Result, pipeline, tiny_config, two_sources

pytestmark = pytest.mark.slow  # minutes of real runs; make test-all has them

ADDED = ["<|call|>", "self.assertEqual"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("continue")


@pytest.fixture(scope="module")
def sources(folder: Path) -> list[dict[str, Any]]:
    return two_sources(folder / "corpus")


@pytest.fixture(scope="module")
def parent(head: Head, folder: Path, sources: list[dict[str, Any]]) -> Result:
    """A run on the early source alone."""
    config = tiny_config(folder / "parent", [{**sources[0], "share": 1.0}], run={"storage": str(folder / "runs")})
    result = pipeline("pretrain", "--config", str(config), "run.name=parent", env=head.env)
    assert result.code == 0, result.out + result.err
    return result


def child_config(folder: Path, sources: list[dict[str, Any]]) -> Path:
    """The late source alone is new; model, tokenizer and learning rate are left out."""
    path = tiny_config(folder / "child", [{**sources[1], "share": 1.0}], run={"storage": str(folder / "runs")})
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line == "model:")
    kept = [line for i, line in enumerate(lines) if not start <= i <= start + 4 and "learning_rate" not in line]
    assert len(kept) == len(lines) - 6
    path.write_text("\n".join(kept) + "\n")
    return path


@pytest.fixture(scope="module")
def child(head: Head, folder: Path, parent: Result, sources: list[dict[str, Any]]) -> Result:
    config = child_config(folder, sources)
    result = pipeline("pretrain", "--config", str(config), "run.name=child", "init.uri=parent", env=head.env)
    assert result.code == 0, result.out + result.err
    return result


def validations(folder: Path, name: str) -> dict[tuple[str, int], float]:
    """(metric, step) -> value, from MLflow's database."""
    run_id = json.loads((folder / "runs" / name / "mlflow.json").read_text())["run_id"]
    with sqlite3.connect(folder / "runs" / "mlflow.db") as database:
        rows = database.execute("select key, step, value from metrics where run_uuid = ?", (run_id,)).fetchall()
    return {(key, step): value for key, step, value in rows}


def test_a_child_begins_at_the_loss_that_its_parent_ended_with(folder: Path, parent: Result, child: Result) -> None:
    """On the same held-out documents: those of the parent, which it was not trained on."""
    before, now = validations(folder, "parent"), validations(folder, "child")
    assert now["validation/early/loss", 0] == pytest.approx(before["validation/early/loss", 6], abs=1e-6)
    assert now["validation/early/loss", 0] < before["validation/early/loss", 0] - 0.1  # a drawn model has more
    documents = "held_out/early.documents.arrow"
    theirs, ours = (folder / "runs" / name / "data" / documents for name in ("parent", "child"))
    assert theirs.read_bytes() == ours.read_bytes()


def test_what_is_left_out_comes_from_the_parent(folder: Path, child: Result) -> None:
    config = parse_config((folder / "runs" / "child" / "config.yaml").read_text())
    assert (config.model.layers, config.model.hidden, config.model.kv_heads) == (1, 32, 1)
    assert config.train.learning_rate == pytest.approx(0.002) and "0.2 of the 0.01 that the model had" in child.out
    assert "warm-up again over 2 steps" in child.out
    assert [(s.name, s.share) for s in config.data.sources] == [("late", 0.5), ("early", 0.5)]
    assert config.init.replay == ("early",) and config.init.checkpoint == "6"
    for name in ("data/tokenizer.model",):
        assert (folder / "runs" / "child" / name).read_bytes() == (folder / "runs" / "parent" / name).read_bytes()
    assert child.summary["mixture"]["early"] == {"asked": 0.5, "realised": 0.5}


def test_forgetting_is_in_the_summary_on_the_terminal_and_in_mlflow(folder: Path, child: Result) -> None:
    found, metrics = child.summary["forgetting"], validations(folder, "child")
    assert found["sources"] == ["early"] and found["step"] == 6
    change = metrics["validation/early/loss", 6] - metrics["validation/early/loss", 0]
    assert found["loss"] == pytest.approx(change, abs=1e-9) and change != 0
    assert metrics["forgetting/loss", 6] == pytest.approx(change, abs=1e-9)
    bits = metrics["validation/early/bits_per_byte", 6] - metrics["validation/early/bits_per_byte", 0]
    assert found["bits_per_byte"] == pytest.approx(bits, abs=1e-9)
    assert f"forgetting      {found['loss']:+.4f} nats per token" in child.out


def test_the_digest_of_the_loaded_weights_is_an_input(folder: Path, child: Result) -> None:
    run = folder / "runs" / "child"
    digest = json.loads((run / "init" / "weights.json").read_text())["sha256"]
    where = str(folder / "runs" / "parent")
    assert child.summary["init"] == {"uri": where, "checkpoint": "6", "weights_sha256": digest}
    (state,) = run.glob("checkpoints/step-000000006-*/state.json")
    assert json.loads(state.read_text())["extra"]["init_sha256"] == digest


def test_a_child_goes_on_when_its_parent_is_gone_and_is_no_other_ones(
    head: Head, folder: Path, child: Result, sources: list[dict[str, Any]]
) -> None:
    config = child_config(folder, sources)
    moved = folder / "moved"
    shutil.move(folder / "runs" / "parent", moved)
    try:
        more = ["--config", str(config), "run.name=child", "train.steps=8"]
        result = pipeline("pretrain", *more, "init.uri=parent", env=head.env)
        assert result.code == 0, result.out + result.err
        assert result.summary["steps"] == 8 and "begin at step 6" in result.out
        assert result.summary["forgetting"]["before"] == child.summary["forgetting"]["before"]
        for other in ("child", None):
            refused = pipeline("pretrain", *more, *([f"init.uri={other}"] if other else []), env=head.env)
            assert refused.code == 2 and "began with" in refused.err and "Traceback" not in refused.err
    finally:
        shutil.move(moved, folder / "runs" / "parent")


def test_from_an_exported_folder_with_added_tokens(
    head: Head, folder: Path, parent: Result, sources: list[dict[str, Any]]
) -> None:
    """Two workers read safetensors; old logits stay, so each token costs at most log(1 + 2 / V) more."""
    config, export = child_config(folder, sources), folder / "runs" / "parent" / "export"
    asked = ["--config", str(config), "run.name=added", f"init.uri={export}", f"init.add_tokens={json.dumps(ADDED)}"]
    refused = pipeline("pretrain", *asked, env=head.env)
    assert refused.code == 2 and "train.learning_rate is missing" in refused.err
    result = pipeline("pretrain", *asked, "train.learning_rate=1e-3", "train.steps=2", env=head.env)
    assert result.code == 0, result.out + result.err
    before = load_file(export / "model.safetensors")["model.embed_tokens.weight"]
    after = load_file(Path(result.summary["export"]) / "model.safetensors")["model.embed_tokens.weight"]
    assert after.shape[0] == before.shape[0] + 2 == result.summary["vocab_size"]
    tokenizer = json.loads((Path(result.summary["export"]) / "tokenizer.json").read_text())
    assert [one["content"] for one in tokenizer["added_tokens"]][-2:] == ADDED
    assert result.summary["forgetting"] is None and result.summary["init"]["checkpoint"] == "newest"


def sums(folder: Path, documents: int = 120) -> dict[str, Any]:
    """A source of another language: lines of sums."""
    folder.mkdir()
    rng = random.Random(5)
    lines = [
        json.dumps({"text": "\n".join(f"{a} + {b} = {a + b}" for a, b in _pairs(rng, 120))}) for _ in range(documents)
    ]
    (folder / "sums.jsonl").write_text("\n".join(lines) + "\n")
    return {"name": "sums", "uris": [str(folder)], "preset": "none", "share": 1.0, "max_epochs": 8}


def _pairs(rng: random.Random, count: int) -> list[tuple[int, int]]:
    return [(rng.randrange(1000), rng.randrange(1000)) for _ in range(count)]


def test_forgetting_is_less_with_replay_than_without(head: Head, folder: Path, sources: list[dict[str, Any]]) -> None:
    """A model of code learns sums: through the whole pipeline, with half of the tokens replayed and with none."""
    code = [{**sources[0], "share": 1.0, "max_epochs": 16}]
    train = {"steps": 100, "checkpoint_every_steps": 100, "validate_every_steps": 50}
    place = {"storage": str(folder / "runs")}
    first = tiny_config(folder / "coder", code, run={**place, "name": "coder"}, train=train)
    parent = pipeline("pretrain", "--config", str(first), env=head.env)
    assert parent.code == 0, parent.out + parent.err
    second = tiny_config(folder / "adder", [sums(folder / "sums")], run=place, train={**train, "steps": 60})
    asked = ["--config", str(second), "init.uri=coder", "train.learning_rate=3e-3"]
    found = {}
    for share in (0.5, 0):
        named = [f"run.name=adder-{share}", f"init.replay_share={share}"]
        found[share] = pipeline("pretrain", *asked, *named, env=head.env)
        assert found[share].code == 0, found[share].out + found[share].err
    forgot, kept = (found[share].summary["forgetting"] for share in (0, 0.5))
    assert forgot["before"] == kept["before"] and forgot["before"]["loss"] == pytest.approx(parent.summary["val_loss"])
    assert forgot["loss"] > 0.3 and kept["loss"] < 0.5 * forgot["loss"]
    assert found[0].summary["mixture"]["early"] == {"asked": 0.0, "realised": 0.0}
    assert "none of the training tokens; their held-out loss says what is forgotten" in found[0].out
