"""What continued pre-training is for, in small trainings with the trainer's own steps: a longer context, and a new
language without the old one forgotten.

    python -m pytest -q tests/train/test_continued.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pretrainer.config import ModelConfig, RopeScalingConfig
from pretrainer.data.mixture import make_mixture
from pretrainer.model.hf import to_hf
from pretrainer.storage import Store
from pretrainer.train.initialise import initialise
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spec import Origin
from pretrainer.train.stability.replay import alone
from tests.train.small_runs import CPU, VOCAB, answer_loss, chain, config_of, held_out, recall, train

SHORT, LONG = 32, 128
MODEL = ModelConfig(layers=1, hidden=32, heads=2, ffn_hidden=64)
FAR = recall(LONG, questions=1, shortest=64)
"""Texts whose one answer is further away than any that the parent has seen."""
OLD, NEW = chain(1, SHORT), chain(2, SHORT)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with alone(CPU):
        yield


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    """A model that recalls what was said up to 30 tokens before."""
    config = config_of(MODEL, SHORT, 200, learning_rate=0.01)
    model, origin = train(config, lambda _step: recall(SHORT), tmp_path_factory.mktemp("short"))
    assert answer_loss(model, recall(SHORT, 1)) < 0.2
    return origin


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Origin, float]:
    """A model of the old language, and its held-out loss."""
    config = config_of(MODEL, SHORT, 60, learning_rate=0.01)
    model, origin = train(config, lambda _step: OLD, tmp_path_factory.mktemp("speaker"))
    return origin, held_out(model, config, OLD)


def loaded(origin: Origin, model: ModelConfig, folder: Path) -> object:
    config = config_of(model, LONG, 1)
    found = build_model(model, VOCAB, config.train, CPU)
    initialise(found, 0, origin, Store(str(folder)), local_rank=0)
    return found


def test_context_extension_lowers_the_loss_on_long_documents(short: Origin, tmp_path: Path) -> None:
    """Four times the context, linear scaling, and 30 steps: against the unextended model."""
    extended = replace(MODEL, rope_scaling=RopeScalingConfig(type="linear", factor=LONG / SHORT))
    before = answer_loss(loaded(short, MODEL, tmp_path / "before"), FAR)  # type: ignore[arg-type]
    config = config_of(extended, LONG, 30, learning_rate=0.002)
    after, _origin = train(config, lambda _step: recall(LONG), tmp_path / "extended", short)
    assert answer_loss(after, FAR) < 0.2 * before and before > 0.3  # 0.025 and 0.527 when this was written
    assert answer_loss(after, recall(SHORT, 1)) < 0.1  # and what is near is still known


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_alone_already_reaches_further(kind: str, short: Origin, tmp_path: Path) -> None:
    scaling = RopeScalingConfig(type=kind, factor=LONG / SHORT, original_context=SHORT)  # type: ignore[arg-type]
    plain, scaled = loaded(short, MODEL, tmp_path / "a"), loaded(short, replace(MODEL, rope_scaling=scaling), tmp_path)
    assert answer_loss(scaled, FAR) < 0.5 * answer_loss(plain, FAR)  # type: ignore[arg-type]


def test_forgetting_is_less_with_replay_than_without(speaker: tuple[Origin, float], tmp_path: Path) -> None:
    origin, at_first = speaker
    config = config_of(MODEL, SHORT, 40, learning_rate=0.002)
    mixture = make_mixture([0.5, 0.5], 64)
    alone_on_new, _ = train(config, lambda _step: NEW, tmp_path / "alone", origin)
    with_replay, _ = train(config, lambda step: (OLD, NEW)[mixture.expected(step)[0]], tmp_path / "replay", origin)
    forgot, kept = (held_out(model, config, OLD) - at_first for model in (alone_on_new, with_replay))
    assert forgot > 0.8 and kept < 0.4 * forgot
    learned = held_out(loaded(origin, MODEL, tmp_path), config, NEW) - held_out(with_replay, config, NEW)  # type: ignore[arg-type]
    assert learned > 1.0


def test_it_starts_at_the_loss_that_is_measured_outside(speaker: tuple[Origin, float], tmp_path: Path) -> None:
    """From the checkpoint, and from the same weights as a Hugging Face folder."""
    origin, outside = speaker
    model, config = loaded(origin, MODEL, tmp_path / "run"), config_of(MODEL, SHORT, 1)
    assert held_out(model, config, OLD) == pytest.approx(outside, abs=1e-6)  # type: ignore[arg-type]
    to_hf(model.state_dict(), MODEL, VOCAB, tmp_path / "hf")  # type: ignore[attr-defined]
    folder = loaded(Origin(str(tmp_path / "hf"), False, VOCAB), MODEL, tmp_path / "other")
    assert held_out(folder, config, OLD) == pytest.approx(outside, abs=1e-6)  # type: ignore[arg-type]
