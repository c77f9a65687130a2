import pytest
import torch

from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError
from pretrainer.model.flops import flops_per_token, memory_estimate_bytes, model_flops_utilization, peak_flops
from pretrainer.model.presets import PRESETS, parameter_count, resolve
from pretrainer.model.transformer import Transformer


def built_parameters(config, vocab):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config, vocab).parameters())


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("vocab", [512, 32_768])
def test_parameter_count_is_that_of_the_built_model(name, vocab):
    config = resolve(ModelConfig(preset=name))
    assert parameter_count(config, vocab) == built_parameters(config, vocab)


@pytest.mark.parametrize(
    ("name", "vocab", "parameters"),
    [("llama2-7b", 32_000, 6_738_415_616), ("llama3-8b", 128_256, 8_030_261_248), ("1b", 128_256, 1_235_814_400)],
)
def test_presets_have_the_published_parameter_counts(name, vocab, parameters):
    assert parameter_count(resolve(ModelConfig(preset=name)), vocab) == parameters


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


def test_memory_shrinks_with_workers_down_to_what_every_worker_holds():
    config = resolve(ModelConfig(preset="125m"))
    n = parameter_count(config, 32_768)
    one, two, many = (memory_estimate_bytes(config, 32_768, w, "float32") for w in (1, 2, n))
    assert one - two == 16 * (n - -(-n // 2))
    assert 4 * n < many < 8 * n + 16 < one
    assert memory_estimate_bytes(config, 32_768, 1, "bfloat16") < one
