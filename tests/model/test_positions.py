"""Rotary scalings have the numbers of Hugging Face transformers, ALiBi those of its Bloom."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from pretrainer.config import ModelConfig, RopeScalingConfig
from pretrainer.model.positions import alibi_slopes, rotary_factor, rotary_frequencies, rotary_tables

WIDTH, THETA = 128, 500_000.0


def config(**scaling):
    return ModelConfig(hidden=256, heads=2, rope_theta=THETA, rope_scaling=RopeScalingConfig(**scaling))


def theirs(context=8192, seq_len=None, **parameters):
    raw = LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=WIDTH, max_position_embeddings=context,
        rope_parameters=parameters | {"rope_theta": THETA},
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](raw, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize(
    ("type_", "more"),
    [
        ("linear", {}),
        ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("llama3", {"low_freq_factor": 2.0, "high_freq_factor": 5.0}),
        ("yarn", {}),
        ("yarn", {"beta_fast": 16.0, "beta_slow": 2.0}),
        ("yarn", {"attention_factor": 1.25}),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
def test_scaled_frequencies_are_those_of_transformers(type_, more, factor):
    length = {} if type_ == "linear" else {"original_max_position_embeddings": 8192}
    frequencies, attention = theirs(rope_type=type_, factor=factor, **length, **more)
    mine = config(type=type_, factor=factor, original_context=8192, **more)
    torch.testing.assert_close(rotary_frequencies(mine), frequencies, rtol=2e-6, atol=0)
    assert rotary_factor(mine.rope_scaling) == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("stretch", [2, 5])
def test_ntk_is_the_dynamic_form_at_a_fixed_length(stretch):
    # Theirs at a sequence of `stretch` contexts and factor 3 has the base that a fixed factor of 3 stretch - 2 gives.
    frequencies, _ = theirs(rope_type="dynamic", factor=3.0, seq_len=stretch * 8192)
    mine = rotary_frequencies(config(type="ntk", factor=3.0 * stretch - 2.0))
    torch.testing.assert_close(mine, frequencies, rtol=2e-6, atol=0)
    plain = rotary_frequencies(config())
    assert mine[0] == plain[0] and mine[-1] * (3.0 * stretch - 2.0) == pytest.approx(plain[-1].item(), rel=1e-5)


def test_plain_frequencies_and_tables():
    frequencies = rotary_frequencies(config())
    assert frequencies.tolist() == pytest.approx([THETA ** (-2 * i / WIDTH) for i in range(WIDTH // 2)], rel=1e-5)
    cos, sin = rotary_tables(torch.tensor([[0, 3]]), config())
    assert cos.shape == sin.shape == (1, 1, 2, WIDTH)
    assert (cos[0, 0, 0] == 1).all() and not sin[0, 0, 0].any()
    assert cos[0, 0, 1, 0] == pytest.approx(math.cos(3)) and sin[0, 0, 1, WIDTH // 2] == pytest.approx(math.sin(3))


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 20, 32])
def test_slopes_are_those_of_bloom(heads):
    bias = build_alibi_tensor(torch.ones(1, 2), heads, torch.float64)  # slope * key position
    assert alibi_slopes(heads) == pytest.approx(bias[:, 0, 1].tolist(), rel=1e-6)
