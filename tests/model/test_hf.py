"""Models of every family go to transformers and back with the same logits, and so do theirs.

    python -m pytest -q tests/model/test_hf.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from pretrainer import schema
from pretrainer.config import ModelConfig, MoeConfig, RopeScalingConfig
from pretrainer.errors import ConfigError, StorageError
from pretrainer.model.hf import export_family, from_hf, to_hf
from pretrainer.model.transformer import Transformer
from tests.model.architectures import ARCHITECTURES
from tests.model.fill import fill

VOCAB, LENGTH = 150, 100
GQA = ModelConfig(layers=3, hidden=64, heads=4, kv_heads=2, tie_embeddings=False, rope_theta=5e5)
GPT2 = ModelConfig(layers=2, hidden=64, heads=4, positions="learned", context=LENGTH, norm="layernorm", bias="all",
                   ffn="gelu_tanh")  # fmt: skip


def scaled(**scaling: Any) -> ModelConfig:
    return replace(GQA, rope_theta=1e4, rope_scaling=RopeScalingConfig(factor=4.0, **scaling))


EXPORTED = {
    "tied": (ModelConfig(layers=2, hidden=64, heads=4, norm_eps=1e-6), "llama"),
    "untied-gqa": (GQA, "llama"),
    "head-width": (ModelConfig(layers=1, hidden=48, heads=4, head_width=16, kv_heads=2), "llama"),
    "tied-mqa": (ModelConfig(layers=1, hidden=64, heads=8, kv_heads=1, ffn_hidden=100, norm_eps=1e-2), "llama"),
    "biases": (replace(GQA, bias="all"), "llama"),
    "geglu": (replace(GQA, ffn="geglu"), "llama"),
    "linear": (scaled(type="linear"), "llama"),
    "ntk": (scaled(type="ntk"), "llama"),
    "yarn": (scaled(type="yarn", original_context=32, beta_fast=3.0, beta_slow=0.5), "llama"),
    "yarn-factor": (scaled(type="yarn", original_context=32, attention_factor=1.5), "llama"),
    "llama3": (scaled(type="llama3", original_context=32), "llama"),
    "mistral": (replace(GQA, sliding_window=7), "mistral"),
    "qwen2": (replace(GQA, bias="qkv"), "qwen2"),
    "qwen2-window": (replace(GQA, layers=4, bias="qkv", sliding_window=5, global_attention_every=2), "qwen2"),
    "qwen3": (replace(GQA, qk_norm=True, head_width=24), "qwen3"),
    "qwen3-window": (replace(GQA, qk_norm=True, sliding_window=9), "qwen3"),
    "mixtral": (replace(GQA, moe=MoeConfig(experts=4, top_k=2)), "mixtral"),
    "mixtral-window": (replace(GQA, moe=MoeConfig(experts=4, top_k=3), sliding_window=7), "mixtral"),
    "qwen3-moe": (replace(GQA, qk_norm=True, moe=MoeConfig(experts=5, top_k=2, normalise=False)), "qwen3_moe"),
    "gpt2": (GPT2, "gpt2"),
    "gpt2-untied-relu2": (replace(GPT2, tie_embeddings=False, ffn="relu2", ffn_hidden=104), "gpt2"),
}
# Small models of transformers, with what differs from its defaults.
_LLAMA = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=256)  # fmt: skip
_MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40)
THEIRS = {
    "llama": LlamaConfig(**_LLAMA, head_dim=20, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama3": LlamaConfig(**_LLAMA, rope_parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}),
    "mistral": MistralConfig(**_LLAMA, sliding_window=11),
    "qwen2": Qwen2Config(**_LLAMA),
    "qwen2-window": Qwen2Config(**_LLAMA, use_sliding_window=True, sliding_window=9, max_window_layers=0),
    "qwen3": Qwen3Config(**_LLAMA, head_dim=20),
    "mixtral": MixtralConfig(**_LLAMA, num_local_experts=3, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(**_LLAMA, **_MOE, norm_topk_prob=True, head_dim=16),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=64, n_layer=2, n_head=4),
}  # fmt: skip


def tokens_and_positions() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(LENGTH).expand(2, -1)


@torch.no_grad()
def largest_difference(ours: Transformer, theirs: nn.Module) -> float:
    tokens, positions = tokens_and_positions()
    logits = ours(tokens, positions)
    assert logits.std() > 0.1  # so that 1e-4 means something
    return (theirs.eval().float()(tokens).logits - logits).abs().max().item()


@pytest.fixture(params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Transformer, Path, str]:
    config, family = EXPORTED[request.param]
    model = fill(Transformer(config, VOCAB).eval())
    to_hf(model.state_dict(), model.config, VOCAB, tmp_path, seq_len=256)
    return model, tmp_path, family


def test_transformers_gives_the_same_logits(exported: tuple[Transformer, Path, str]) -> None:
    model, folder, family = exported
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert theirs.config.model_type == family
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert largest_difference(model, theirs) < 1e-4
    assert (theirs.config.pad_token_id, theirs.config.bos_token_id, theirs.config.eos_token_id) == (
        schema.PAD, schema.BOS, schema.EOS
    )  # fmt: skip


def test_reading_back_gives_the_same_model(exported: tuple[Transformer, Path, str]) -> None:
    model, folder, _family = exported
    state, config, vocab = from_hf(folder)
    again = Transformer(config, vocab).eval()
    again.load_state_dict(state)
    assert vocab == VOCAB and config.head_width == model.config.head_width
    tokens, positions = tokens_and_positions()
    if model.config.rope_scaling.type == "ntk":  # comes back as another base
        assert torch.allclose(again(tokens, positions), model(tokens, positions), atol=1e-5)
    else:
        assert torch.equal(again(tokens, positions), model(tokens, positions))


def save_theirs(name: str, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(THEIRS[name]).eval()
    for key, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in key or ".ln_" in key else 0.0, std=0.15)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_of_transformers_is_read_with_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs = save_theirs(name, tmp_path)
    state, config, vocab = from_hf(tmp_path)
    ours = Transformer(config, vocab).eval()
    ours.load_state_dict(state)
    assert largest_difference(ours, theirs) < 1e-4
    assert export_family(config) == THEIRS[name].model_type


def edit(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def test_special_ids_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    ids = {"bos_token_id": 7, "eos_token_id": 7, "pad_token_id": 9}
    to_hf(fill(Transformer(GPT2, VOCAB)).state_dict(), GPT2, VOCAB, tmp_path, special_ids=ids)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).config
    assert {name: getattr(theirs, name) for name in ids} == ids


def test_gpt2_without_its_prefix_and_with_old_buffers_is_read(tmp_path: Path) -> None:
    """As the folders of GPT-2 itself are."""
    theirs = save_theirs("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    save_file(bare, tmp_path / "model.safetensors")
    state, config, vocab = from_hf(tmp_path)
    ours = Transformer(config, vocab).eval()
    ours.load_state_dict(state)
    assert largest_difference(ours, theirs) < 1e-4


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("untied-gqa", {"model_type": "bert"}, "model_type 'bert': use one of llama, mistral"),
    ("untied-gqa", {"attention_bias": True}, "biases in one of attention and MLP"),
    ("untied-gqa", {"num_hidden_layers": 9}, "lacks .* tensors"),
    ("untied-gqa", {"num_hidden_layers": 2}, r"no place for \(model.layers.2.input_layernorm.weight"),
    ("untied-gqa", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type 'dynamic'"),
    ("untied-gqa", {"hidden_act": "tanh"}, "hidden_act 'tanh'"),
    ("untied-gqa", {"tie_word_embeddings": True}, r"no place for \(lm_head.weight\)"),
    ("qwen2-window", {"layer_types": ["full_attention", *["sliding_attention"] * 3]}, "not every n-th"),
    ("qwen3-moe", {"mlp_only_layers": [0]}, "dense layers between"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scales attention"),
]


@pytest.mark.parametrize(("name", "changes", "words"), REFUSED)
def test_what_this_model_cannot_compute_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    model = fill(Transformer(EXPORTED[name][0], VOCAB))
    to_hf(model.state_dict(), model.config, VOCAB, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(StorageError, match=words):
        from_hf(tmp_path)


NO_FAMILY = {
    "layernorm-without-bias", "post-norm", "relu", "relu2", "alibi", "window-alibi-global", "encoder",
    "encoder-window-alibi", "experts-sigmoid-shared", "experts-raw-weights", "experts-bias",
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_exported_or_refused_by_its_field(name: str, tmp_path: Path) -> None:
    config = ARCHITECTURES[name]
    model = Transformer(config, VOCAB)
    if name in NO_FAMILY:
        with pytest.raises(ConfigError, match=r"model\..*transformers has no such model"):
            to_hf(model.state_dict(), config, VOCAB, tmp_path / "export")
        assert not (tmp_path / "export").exists()
    else:
        to_hf(model.state_dict(), config, VOCAB, tmp_path / "export")
