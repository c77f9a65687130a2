"""Combinations that no model can be built from are refused by field, value and remedy."""

import pytest

from pretrainer.config import Config, DataConfig, ModelConfig, MoeConfig, RopeScalingConfig, SourceConfig, TrainConfig
from pretrainer.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(layers=0), "model.layers=0.*1 or more"),
        (dict(heads=0), "model.heads=0.*1 or more"),
        (dict(hidden=100, heads=3), "model.hidden=100.*multiple of model.heads=3"),
        (dict(head_width=5), "model.heads=12.*even for RoPE"),
        (dict(heads=12, kv_heads=5), "model.kv_heads=5.*divide model.heads=12"),
        (dict(kv_heads=0), "model.kv_heads=0"),
        (dict(sliding_window=0), "model.sliding_window=0"),
        (dict(ffn_hidden=0), "model.ffn_hidden=0"),
        (dict(dropout=1.0), "model.dropout=1"),
        (dict(positions="learned"), "model.context=None.*data.seq_len"),
        (dict(global_attention_every=2), "model.global_attention_every=2.*sliding_window"),
        (dict(positions="alibi", rope_scaling=RopeScalingConfig(type="linear", factor=2.0)), "type='linear'.*use none"),
        (dict(rope_scaling=RopeScalingConfig(type="yarn", factor=2.0)), "original_context=None.*yarn"),
        (dict(rope_scaling=RopeScalingConfig(type="linear", factor=0.5)), "rope_scaling.factor=0.5"),
        (dict(head_width=2, rope_scaling=RopeScalingConfig(type="ntk", factor=2.0)), "type='ntk'.*wider heads"),
        (
            dict(rope_scaling=RopeScalingConfig(type="llama3", original_context=8, high_freq_factor=1.0)),
            "high_freq_factor=1.0.*above",
        ),
        (dict(rope_scaling=RopeScalingConfig(type="yarn", original_context=8, beta_fast=0.5)), "beta_fast=0.5.*above"),
        (dict(moe=MoeConfig(experts=4, top_k=5)), "model.moe.top_k=5.*experts=4"),
        (dict(moe=MoeConfig(experts=4, top_k=0)), "model.moe.top_k=0"),
        (dict(moe=MoeConfig(shared_experts=1)), "model.moe.shared_experts=1.*set model.moe.experts"),
        (dict(moe=MoeConfig(experts=4, balance_weight=-1.0)), "model.moe.balance_weight=-1"),
        (dict(moe=MoeConfig(experts=4), bias="all"), "model.bias='all'.*none or qkv"),
        (dict(moe=MoeConfig(experts=4), ffn_hidden=100), "model.ffn_hidden=100.*multiple of 8"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**fields)


def test_heads_of_odd_width_are_fine_without_rope_and_any_number_with_a_width():
    assert ModelConfig(head_width=5, positions="alibi").width_per_head == 5
    assert ModelConfig(hidden=100, heads=3, head_width=8).width_per_head == 8


def test_a_plain_layer_is_four_times_as_wide_and_a_gated_one_eight_thirds():
    assert ModelConfig(hidden=768, ffn="gelu").ffn_width == 3072
    assert ModelConfig(hidden=768).ffn_width == 2048


def test_every_nth_block_is_global():
    config = ModelConfig(layers=6, sliding_window=4, global_attention_every=3)
    assert [config.window(layer) for layer in range(6)] == [4, 4, None, 4, 4, None]
    assert ModelConfig(sliding_window=4).window(5) == 4 and ModelConfig().window(0) is None


def test_rows_longer_than_learned_positions_are_refused():
    def run(context):
        source = SourceConfig(name="a", uris=("/a",))
        model = ModelConfig(positions="learned", context=context)
        return Config(data=DataConfig(sources=(source,), seq_len=1024), train=TrainConfig(steps=1), model=model)

    assert run(1024).model.context == 1024
    with pytest.raises(ConfigError, match="model.context=1023.*1024 or more"):
        run(1023)
