"""The architecture."""

from __future__ import annotations

from dataclasses import dataclass

from pretrainer.errors import require


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
    ffn_hidden: int | None = None
    """Width of the SwiGLU layer; by default 8/3 of hidden, rounded up to a multiple of 64."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    norm_eps: float = 1e-5
    """Epsilon of RMSNorm."""
    dropout: float = 0.0
    """Dropout on embeddings and on the output of each sub-layer."""
    tie_embeddings: bool = True
    """Share the input embedding with the output layer."""
    causal: bool = True
    """A token attends to those before it; without it to all of its document, as train.objective=mlm needs."""
    document_mask: bool = True
    """Attention stays inside a document of a packed row; positions restart there."""

    def __post_init__(self) -> None:
        require(self.layers >= 1, "model.layers", self.layers, "use 1 or more")
        require(
            self.heads >= 1 and self.hidden % self.heads == 0,
            "model.hidden",
            self.hidden,
            f"must be a multiple of model.heads={self.heads}",
        )
        require(
            (self.hidden // self.heads) % 2 == 0,
            "model.heads",
            self.heads,
            "the head width hidden/heads must be even for RoPE",
        )
        require(
            self.kv_heads is None or (self.kv_heads >= 1 and self.heads % self.kv_heads == 0),
            "model.kv_heads",
            self.kv_heads,
            f"must divide model.heads={self.heads}",
        )
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "use a number in [0, 1)")

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_width(self) -> int:
        return self.ffn_hidden or -(-(8 * self.hidden // 3) // 64) * 64
