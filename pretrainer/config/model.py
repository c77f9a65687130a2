"""The architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pretrainer.errors import require

GATED = ("swiglu", "geglu")  # feed-forward layers with a gate: three matrices instead of two


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    type: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    """How rotary frequencies are changed for contexts longer than the original one."""
    factor: float = 1.0
    """By how much the context grows."""
    original_context: int | None = None
    """Context before the scaling, in tokens; yarn and llama3 need it."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_context over this are stretched by the whole factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_context over this are left alone."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this within the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this within the original context are stretched by the whole factor."""
    attention_factor: float | None = None
    """yarn: factor on queries and keys; by default 0.1 ln(factor) + 1."""

    def check(self) -> None:
        """Raise ConfigError for values that no model can be built from."""
        if self.type == "none":
            return
        name = "model.rope_scaling"
        require(self.factor >= 1, f"{name}.factor", self.factor, "use 1 or more: scaling stretches the context")
        require(
            self.type not in ("yarn", "llama3") or (self.original_context or 0) >= 1,
            f"{name}.original_context",
            self.original_context,
            f"{name}.type={self.type} needs the context that the model had before, such as 8192",
        )
        require(
            self.high_freq_factor > self.low_freq_factor > 0,
            f"{name}.high_freq_factor",
            self.high_freq_factor,
            f"must be above {name}.low_freq_factor={self.low_freq_factor:g}, and both positive",
        )
        require(
            self.beta_fast > self.beta_slow > 0,
            f"{name}.beta_fast",
            self.beta_fast,
            f"must be above {name}.beta_slow={self.beta_slow:g}, and both positive",
        )


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    experts: int = 0
    """Experts per block, each a feed-forward layer of width ffn_hidden; 0 makes every block dense."""
    top_k: int = 2
    """Experts that each token is sent to."""
    shared_experts: int = 0
    """Further experts that every token passes through."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How the router turns its logits into the weights of experts."""
    normalise: bool = True
    """Weights of a token's chosen experts are divided by their sum."""
    balance: Literal["none", "sequence", "slot_block", "bias"] = "slot_block"
    """What keeps experts evenly used: an auxiliary loss over each sequence or slot block, or a bias on the choice."""
    balance_weight: float = 0.01
    """Weight of the auxiliary loss."""
    z_loss_weight: float = 0.001
    """Weight of the squared log-sum-exp of the router's logits."""
    bias_rate: float = 0.001
    """balance=bias: by how much an expert's bias moves after each step."""

    def check(self) -> None:
        """Raise ConfigError for values that no model can be built from."""
        require(self.experts >= 0, "model.moe.experts", self.experts, "use 0 (dense) or 2 and more")
        require(self.shared_experts >= 0, "model.moe.shared_experts", self.shared_experts, "use 0 or more")
        for name in ("balance_weight", "z_loss_weight", "bias_rate"):
            value = getattr(self, name)
            require(value >= 0, f"model.moe.{name}", value, "use 0 or more")
        require(
            self.experts > 0 or self.shared_experts == 0,
            "model.moe.shared_experts",
            self.shared_experts,
            "shared experts stand beside routed ones: set model.moe.experts, or a wider model.ffn_hidden",
        )
        require(
            self.experts == 0 or 1 <= self.top_k <= self.experts,
            "model.moe.top_k",
            self.top_k,
            f"use 1 to model.moe.experts={self.experts}",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    preset: str | None = None
    """A row of pretrainer/model/presets.py; fields given here override it."""
    layers: int = 12
    """Transformer blocks."""
    hidden: int = 768
    """Width of the residual stream."""
    heads: int = 12
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads (grouped-query attention); by default as many as query heads."""
    head_width: int | None = None
    """Width of a head; by default hidden over heads."""
    ffn: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"] = "swiglu"
    """Feed-forward layer: two with a gate, and plain ones by their activation (gelu_tanh is GPT-2's)."""
    ffn_hidden: int | None = None
    """Width of the feed-forward layer; by default 8/3 of hidden with a gate, 4 without, as a multiple of 64."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation of the residual stream."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalise what enters each sub-layer, or the sum that leaves it (then there is no final norm)."""
    norm_eps: float = 1e-5
    """Epsilon of every norm."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Biases: none, on queries, keys and values (Qwen2), or on every matrix and LayerNorm of the blocks (GPT-2)."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys, before positions enter."""
    positions: Literal["rope", "alibi", "learned"] = "rope"
    """Rotary positions, linear biases on attention, or a learned table of `context` rows."""
    context: int | None = None
    """Longest text that the model is made for, in tokens; learned positions need it, the others only note it."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Rotary positions beyond an original context."""
    sliding_window: int | None = None
    """A token sees so many tokens including itself (to either side when not causal); by default all."""
    global_attention_every: int | None = None
    """Every n-th block has no window although sliding_window is set; by default all blocks have it."""
    dropout: float = 0.0
    """Dropout on embeddings and on the output of each sub-layer."""
    vocab_size: int | None = None
    """Rows of the embedding; by default as many as the tokenizer has ids. More are padding."""
    tie_embeddings: bool = True
    """Share the input embedding with the output layer."""
    causal: bool = True
    """A token attends to those before it; without it to all of its document, as train.objective=mlm needs."""
    document_mask: bool = True
    """Attention stays inside a document of a packed row; positions restart there."""
    moe: MoeConfig = field(default_factory=MoeConfig)
    """Mixture of experts in place of each block's feed-forward layer."""

    def __post_init__(self) -> None:
        require(self.layers >= 1, "model.layers", self.layers, "use 1 or more")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "use a number in [0, 1)")
        for name in ("kv_heads", "head_width", "ffn_hidden", "context", "sliding_window", "global_attention_every",
                     "vocab_size"):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}", value, "use 1 or more, or null")
        require(self.heads >= 1, "model.heads", self.heads, "use 1 or more")
        if self.preset is None:
            self.check()

    def check(self) -> None:
        """Raise ConfigError for fields that exclude each other; with a preset they are whole only after `resolve`."""
        self._check_heads()
        self._check_positions()
        self.rope_scaling.check()
        self.moe.check()
        require(
            self.moe.experts == 0 or self.bias != "all",
            "model.bias",
            self.bias,
            "experts have no biases: use none or qkv with model.moe.experts",
        )
        for name, width in (("hidden", self.hidden), ("ffn_hidden", self.ffn_width)):
            require(
                self.moe.experts == 0 or width % 8 == 0,
                f"model.{name}",
                width,
                "with experts it must be a multiple of 8, as the grouped matrix products of GPUs want it",
            )

    def _check_heads(self) -> None:
        require(
            self.head_width is not None or self.hidden % self.heads == 0,
            "model.hidden",
            self.hidden,
            f"must be a multiple of model.heads={self.heads}, unless model.head_width is given",
        )
        require(
            self.positions != "rope" or self.width_per_head % 2 == 0,
            "model.heads",
            self.heads,
            "the head width (model.head_width, or hidden/heads) must be even for RoPE",
        )
        require(
            self.kv_heads is None or self.heads % self.kv_heads == 0,
            "model.kv_heads",
            self.kv_heads,
            f"must divide model.heads={self.heads}",
        )

    def _check_positions(self) -> None:
        require(
            self.positions != "learned" or self.context is not None,
            "model.context",
            self.context,
            "model.positions=learned needs the rows of its table: use data.seq_len or more",
        )
        require(
            self.positions == "rope" or self.rope_scaling.type == "none",
            "model.rope_scaling.type",
            self.rope_scaling.type,
            f"scales rotary positions, and model.positions={self.positions}: use none",
        )
        require(
            self.rope_scaling.type != "ntk" or self.width_per_head > 2,
            "model.rope_scaling.type",
            self.rope_scaling.type,
            "a head of width 2 has one frequency, which ntk leaves alone: use linear or wider heads",
        )
        require(
            self.global_attention_every is None or self.sliding_window is not None,
            "model.global_attention_every",
            self.global_attention_every,
            "makes exceptions from a window: set model.sliding_window too",
        )

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def width_per_head(self) -> int:
        return self.head_width or self.hidden // self.heads

    @property
    def ffn_width(self) -> int:
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        return -(-(8 * self.hidden // 3 if self.gated else 4 * self.hidden) // 64) * 64

    def rows(self, ids: int) -> int:
        """Rows of the embedding with a tokenizer of so many ids."""
        require(
            self.vocab_size is None or self.vocab_size >= ids,
            "model.vocab_size",
            self.vocab_size,
            f"the tokenizer has {ids:,} ids: leave it out, or use more",
        )
        return self.vocab_size or ids

    @property
    def gated(self) -> bool:
        return self.ffn in GATED

    def window(self, layer: int) -> int | None:
        """Sliding window of a block, None where it sees everything."""
        every = self.global_attention_every
        return None if every is not None and (layer + 1) % every == 0 else self.sliding_window
