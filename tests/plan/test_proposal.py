"""Depth and width for a size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.config import ModelConfig, MoeConfig
from pretrainer.errors import ConfigError
from pretrainer.model.presets import parameter_count, resolve
from pretrainer.plan.proposal import LADDER, SIZES, SMALLEST, preset_model, propose, size_for, smallest

SIZE = st.floats(5.4, 12.5).map(lambda power: 10.0**power)


@given(SIZE)
def test_a_proposal_has_the_parameters_and_a_sound_shape(parameters: float) -> None:
    vocab_size = size_for(parameters).vocab_size
    model = resolve(propose(parameters, vocab_size))
    error = abs(parameter_count(model, vocab_size) / parameters - 1)
    steps = 0.15 if parameters < 5e6 else 0.07 if parameters < 60e6 else 0.051  # small models grow in large steps
    assert error < steps
    assert 15 < model.hidden / model.layers < 260
    assert model.hidden == model.heads * model.width_per_head and model.heads % model.num_kv_heads == 0
    assert 2 <= model.ffn_width / model.hidden <= 4.5


@pytest.mark.slow
@given(SIZE.filter(lambda n: n > 1e9))
def test_large_models_can_be_split_over_a_node(parameters: float) -> None:
    model = resolve(propose(parameters, 131_072))
    assert all(width % 8 == 0 for width in (model.heads, model.num_kv_heads, model.ffn_width))


@pytest.mark.parametrize("name", LADDER)
def test_the_size_of_a_preset_gives_the_preset(name: str) -> None:
    parameters = parameter_count(resolve(ModelConfig(preset=name)), 32_768)
    assert propose(parameters, 32_768) == ModelConfig(preset=name)
    assert propose(parameters * 1.04, 32_768) == ModelConfig(preset=name)
    assert propose(parameters * 1.2, 32_768).preset is None


def test_the_ladder_ascends_from_the_smallest_preset() -> None:
    counts = [parameter_count(resolve(ModelConfig(preset=name)), 32_768) for name in LADDER]
    assert counts == sorted(counts) and LADDER[0] == SMALLEST and counts[0] == smallest(32_768)
    with pytest.raises(ConfigError, match="tiny"):
        propose(smallest(32_768) * 0.9, 32_768)


def test_a_style_keeps_its_architecture() -> None:
    style = resolve(ModelConfig(preset="llama3-8b", qk_norm=True))
    model = propose(3e9, 65_536, style)
    assert parameter_count(model, 65_536) == pytest.approx(3e9, rel=0.05)
    assert (model.qk_norm, model.rope_theta, model.tie_embeddings, model.num_kv_heads) == (True, 5e5, False, 8)
    assert model.ffn_width / model.hidden == pytest.approx(3.5, rel=0.05) and model.width_per_head == 128
    plain = replace(ModelConfig(), bias="all", ffn="gelu", positions="learned", context=2048)
    other = propose(50e6, 4096, plain)
    assert (other.bias, other.ffn, other.positions, other.context) == ("all", "gelu", "learned", 2048)
    assert parameter_count(other, 4096) == pytest.approx(50e6, rel=0.05)


def test_vocabulary_and_context_grow_with_the_size() -> None:
    assert [size_for(n).vocab_size for n in (1e6, 27.5e6, 125e6, 1e9, 70e9)] == [2048, 4096, 32_768, 65_536, 131_072]
    for below, above in zip(SIZES, SIZES[1:], strict=False):
        assert below < above and below.seq_len < above.seq_len


def test_only_dense_presets_that_exist_are_planned_with() -> None:
    assert preset_model("1b") == ModelConfig(preset="1b")
    with pytest.raises(ConfigError, match="'mixtral-8x7b' is a mixture"):
        preset_model("mixtral-8x7b")
    with pytest.raises(ConfigError, match="'2b' is not known.*125m"):
        preset_model("2b")
    assert MoeConfig().experts == 0
