"""Every option of the architecture, each in a tiny model; what a test of all of them is parametrised over."""

from pretrainer.config import ModelConfig, MoeConfig, RopeScalingConfig


def tiny(**options) -> ModelConfig:
    return ModelConfig(**{"layers": 2, "hidden": 16, "heads": 4, "kv_heads": 2, "ffn_hidden": 24} | options)


def scaled(**options) -> ModelConfig:
    return tiny(heads=2, kv_heads=1, rope_theta=100.0, rope_scaling=RopeScalingConfig(factor=4.0, **options))


def experts(**options) -> ModelConfig:
    moe = MoeConfig(**{"experts": 4, "top_k": 2, "balance_weight": 0.5, "z_loss_weight": 0.1} | options)
    return tiny(ffn_hidden=16, moe=moe)


ARCHITECTURES = {
    "gpt2": tiny(kv_heads=None, positions="learned", context=16, norm="layernorm", bias="all", ffn="gelu_tanh"),
    "layernorm-without-bias": tiny(norm="layernorm", ffn="gelu"),
    "post-norm": tiny(norm_position="post", norm="layernorm", bias="all"),
    "qwen2": tiny(bias="qkv", tie_embeddings=False),
    "qk-norm": tiny(qk_norm=True, head_width=6),
    "geglu": tiny(ffn="geglu"),
    "relu": tiny(ffn="relu", bias="all"),
    "relu2": tiny(ffn="relu2", kv_heads=1),
    "linear": scaled(type="linear"),
    "ntk": scaled(type="ntk"),
    "yarn": scaled(type="yarn", original_context=32, beta_fast=3.0, beta_slow=0.5),
    "llama3": scaled(type="llama3", original_context=32),
    "alibi": tiny(positions="alibi", kv_heads=None),
    "window": tiny(sliding_window=3),
    "window-alibi-global": tiny(layers=3, sliding_window=2, global_attention_every=2, positions="alibi"),
    "encoder": tiny(causal=False),
    "encoder-window-alibi": tiny(causal=False, sliding_window=3, positions="alibi"),
    "mixtral": experts(),
    "experts-sigmoid-shared": experts(score="sigmoid", shared_experts=2, balance="sequence"),
    "experts-raw-weights": experts(normalise=False, balance="none", top_k=1),
    "experts-bias": experts(balance="bias", experts=5, top_k=3),
}
