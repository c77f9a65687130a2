from dataclasses import replace

import pytest
import torch

from pretrainer.config import Config, DataConfig, ModelConfig, MoeConfig, SourceConfig, TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model.flops import (
    flops_per_token,
    keys_per_query,
    model_flops_utilization,
    peak_flops,
)
from pretrainer.model.presets import PRESETS, block_parameters, parameter_count, resolve, resolve_model_of
from pretrainer.model.transformer import Transformer
from tests.model.architectures import ARCHITECTURES, experts


def built_parameters(config, vocab):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config, vocab).parameters())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_parameter_count_of_presets_is_that_of_the_built_model(name):
    config = replace(resolve(ModelConfig(preset=name)), layers=2)  # building 126 blocks takes seconds
    assert parameter_count(config, 32_768) == built_parameters(config, 32_768)


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_parameter_count_of_every_architecture_is_that_of_the_built_model(config):
    assert parameter_count(config, 512) == built_parameters(config, 512)


# Vocabulary and parameters of the published checkpoints, to the last one.
PUBLISHED = {
    "gpt2": (50_257, 124_439_808),
    "gpt2-medium": (50_257, 354_823_168),
    "gpt2-large": (50_257, 774_030_080),
    "gpt2-xl": (50_257, 1_557_611_200),
    "llama2-7b": (32_000, 6_738_415_616),
    "llama2-13b": (32_000, 13_015_864_320),
    "llama2-70b": (32_000, 68_976_648_192),
    "tinyllama-1.1b": (32_000, 1_100_048_384),
    "llama3-8b": (128_256, 8_030_261_248),
    "llama3-70b": (128_256, 70_553_706_496),
    "llama3.1-8b": (128_256, 8_030_261_248),
    "llama3.1-70b": (128_256, 70_553_706_496),
    "llama3-405b": (128_256, 405_853_388_800),
    "1b": (128_256, 1_235_814_400),
    "mistral-7b": (32_000, 7_241_732_096),
    "mixtral-8x7b": (32_000, 46_702_792_704),
    "qwen2.5-0.5b": (151_936, 494_032_768),
    "qwen2.5-1.5b": (151_936, 1_543_714_304),
    "qwen2.5-3b": (151_936, 3_085_938_688),
    "qwen2.5-7b": (152_064, 7_615_616_512),
    "qwen2.5-14b": (152_064, 14_770_033_664),
    "qwen2.5-32b": (152_064, 32_763_876_352),
    "qwen2.5-72b": (152_064, 72_706_203_648),
}
# What papers and model cards round to.
ROUNDED = {
    "gpt3-125m": 125e6, "gpt3-350m": 350e6, "gpt3-760m": 760e6, "gpt3-1.3b": 1.3e9, "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9, "gpt3-13b": 13e9, "gpt3-175b": 175e9,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_parameter_counts(name):
    vocab, parameters = PUBLISHED[name]
    assert parameter_count(resolve(ModelConfig(preset=name)), vocab) == parameters


@pytest.mark.parametrize("name", ROUNDED)
def test_gpt3_has_the_parameters_of_its_paper_as_rounded_there(name):
    assert parameter_count(resolve(ModelConfig(preset=name)), 50_257) == pytest.approx(ROUNDED[name], rel=0.02)


def test_the_smolgpt_preset_has_27_5_million():
    assert round(parameter_count(resolve(ModelConfig(preset="smolgpt")), 4096) / 1e6, 1) == 27.5


def test_mixtral_has_13_billion_active_parameters():
    config = resolve(ModelConfig(preset="mixtral-8x7b"))
    assert parameter_count(config, 32_000, active=True) == 12_879_925_248
    idle = 32 * 6 * 3 * 4096 * 14_336  # blocks, experts not chosen, matrices of each
    assert parameter_count(config, 32_000) - parameter_count(config, 32_000, active=True) == idle


@pytest.mark.parametrize("name", sorted(n for n in PRESETS if n.startswith("gpt") and "tiny" not in n))
def test_blocks_follow_the_rule_of_twelve_l_d_squared(name):
    # Kaplan et al. 2020, arXiv:2001.08361, table 1: 4 d^2 for attention and 8 d^2 for a feed-forward layer of 4 d.
    config = resolve(ModelConfig(preset=name))
    exact, rule = config.layers * block_parameters(config), 12 * config.layers * config.hidden**2
    assert rule < exact < rule * (1 + 14 / (12 * config.hidden))  # biases and norms: 13 d of them in a block


@pytest.mark.parametrize(("name", "error"), [("llama2-7b", 0.01), ("llama2-13b", 0.01), ("125m", 0.01)])
def test_a_gate_of_eight_thirds_keeps_the_rule(name, error):
    config = resolve(ModelConfig(preset=name))
    assert block_parameters(config) == pytest.approx(12 * config.hidden**2, rel=error)


def test_a_preset_fills_sections_field_by_field():
    config = resolve(ModelConfig(preset="mixtral-8x7b", moe=MoeConfig(balance="bias", bias_rate=0.01)))
    assert (config.moe.experts, config.moe.balance, config.moe.bias_rate) == (8, "bias", 0.01)
    assert resolve(config) == config
    assert resolve(ModelConfig(preset="llama3-405b")).rope_scaling.factor == 8.0


def test_fields_that_do_not_go_with_a_preset_are_refused():
    with pytest.raises(ConfigError, match="model.bias='all'.*experts"):
        resolve(ModelConfig(preset="mixtral-8x7b", bias="all"))
    assert resolve(ModelConfig(preset="llama2-7b", heads=64, kv_heads=16)).width_per_head == 64


def test_a_preset_that_tensor_parallel_does_not_divide_is_refused():
    config = Config(
        data=DataConfig(sources=(SourceConfig(name="a", uris=("/a",)),), seq_len=1024),
        model=ModelConfig(preset="gpt2"),
        train=TrainConfig(steps=1, tensor_parallel=8, num_workers=8),
    )
    with pytest.raises(ConfigError, match=r"train.tensor_parallel=8 .*model.heads=12"):
        resolve_model_of(config)
    four = replace(config, train=replace(config.train, tensor_parallel=4))
    assert resolve_model_of(four).model == resolve(config.model)


def test_given_fields_override_the_preset_and_resolving_is_idempotent():
    config = resolve(ModelConfig(preset="llama3-8b", layers=3, dropout=0.1))
    assert (config.layers, config.dropout, config.hidden, config.tie_embeddings) == (3, 0.1, 4096, False)
    assert resolve(config) == config
    assert resolve(ModelConfig(layers=5)) == ModelConfig(layers=5)


def test_an_unknown_preset_names_the_valid_ones():
    with pytest.raises(ConfigError, match="'2b'.*125m.*llama3-8b"):
        resolve(ModelConfig(preset="2b"))


def test_flops_per_token_are_twice_per_weight_and_three_passes():
    config = ModelConfig(layers=3, hidden=64, heads=4, kv_heads=2, ffn_hidden=160, tie_embeddings=False)
    seq_len, vocab = 128, 1000
    with torch.device("meta"):
        model = Transformer(config, vocab)
    multiplied = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("embed."))
    scores_and_values = 2 * (2 * seq_len * config.hidden) * config.layers
    assert flops_per_token(config, vocab, seq_len) == 3 * (2 * multiplied + scores_and_values)


def test_flops_count_the_experts_that_a_token_meets():
    config, vocab = experts(shared_experts=1), 1000
    with torch.device("meta"):
        model = Transformer(config, vocab)
    routed = sum(p.numel() for n, p in model.named_parameters() if "ffn.experts" in n)
    multiplied = sum(p.numel() for p in model.parameters()) - routed // 2  # two of four
    assert flops_per_token(config, vocab, 32) == 6 * multiplied + 12 * config.layers * config.hidden * 32


def test_flops_of_a_window_are_those_of_the_keys_that_it_lets_through():
    plain = ModelConfig(layers=4, hidden=64, heads=4)
    every = replace(plain, sliding_window=16, global_attention_every=2)
    pairs = sum(min(i + 1, 16) for i in range(64))
    # The convention counts S keys where a causal mask lets through (S + 1) / 2 on average.
    assert keys_per_query(every, 0, 64) == pytest.approx(2 * pairs / 64 - 1, rel=0.05)
    assert keys_per_query(every, 1, 64) == 64 and keys_per_query(replace(plain, sliding_window=64), 0, 64) == 64
    saved = flops_per_token(plain, 512, 64) - flops_per_token(every, 512, 64)
    assert saved == 12 * 64 * 2 * (64 - keys_per_query(every, 0, 64))
    assert flops_per_token(replace(plain, head_width=32), 512, 64) > flops_per_token(plain, 512, 64)


def test_learned_positions_multiply_nothing():
    learned = replace(ModelConfig(layers=1, hidden=64, heads=4), positions="learned", context=128)
    assert flops_per_token(learned, 512, 64) == flops_per_token(replace(learned, positions="rope"), 512, 64)


def test_a_tied_embedding_counts_as_the_output_layer():
    tied, untied = (ModelConfig(layers=1, hidden=64, heads=4, tie_embeddings=t) for t in (True, False))
    assert flops_per_token(tied, 1000, 16) == flops_per_token(untied, 1000, 16)


def test_peak_flops_by_device_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Some CPU") is None
    assert model_flops_utilization(1e5, 989 * 10**7, 2, "NVIDIA H200") == pytest.approx(0.5)
    assert model_flops_utilization(1e5, 10**9, 2, "unknown") is None
    assert model_flops_utilization(1e5, 10**9, 2, "unknown", 100.0) == pytest.approx(0.5)
    assert model_flops_utilization(1e5, 10**9, 2, "NVIDIA H200", 100.0) == pytest.approx(0.5), "what is given counts"
