"""The transformer, for one device: sharding, mixed precision and checkpoints are applied elsewhere.

By default Llama's architecture (Touvron et al. 2023, arXiv:2302.13971): pre-norm RMSNorm, RoPE, SwiGLU, grouped-query
attention. `ModelConfig` turns it into GPT-2, GPT-3, Mistral, Mixtral or Qwen2.5 (presets.py), or into an encoder for
masked language models. Departures: embeddings may be tied, dropout may be used, attention may be kept inside the
documents of a packed row.

One file per part: positions.py, masks.py, attention.py, norms.py, ffn.py, moe.py with balance.py, init.py.

Shapes: B rows, S tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from pretrainer.config import ModelConfig
from pretrainer.model.attention import Attention, Context, KVCache
from pretrainer.model.cast import Linear, like
from pretrainer.model.ffn import FeedForward, make_dropout
from pretrainer.model.init import init_weights
from pretrainer.model.masks import Mask, Pattern, make_mask
from pretrainer.model.moe import MixtureOfExperts, Routing
from pretrainer.model.norms import make_norm
from pretrainer.model.positions import rotary_tables
from pretrainer.model.ring import Ring

__all__ = ["Block", "KVCache", "Transformer", "init_weights"]


class Block(nn.Module):
    """One layer; the unit of sharding. [B, S, H] to [B, S, H], and what its router did where there is one."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.post_norm = config.norm_position == "post"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config)
        self.ffn = MixtureOfExperts(config) if config.moe.experts else FeedForward(config, config.ffn_width)
        self.dropout = make_dropout(config)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Routing | None]:
        if self.post_norm:  # Vaswani et al. 2017, arXiv:1706.03762
            x = self.attention_norm(x + self.dropout(self.attention(x, context)))
            out, routing = self._feed_forward(x)
            return self.ffn_norm(x + self.dropout(out)), routing
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        out, routing = self._feed_forward(self.ffn_norm(x))
        return x + self.dropout(out), routing

    def _feed_forward(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        return self.ffn(x) if isinstance(self.ffn, MixtureOfExperts) else (self.ffn(x), None)


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """[..., V] from hidden [..., H] and weight [V, H], whose rows tensor parallelism may have split over ranks."""
    if isinstance(weight, DTensor):
        whole = DTensor.from_local(hidden, weight.device_mesh, [Replicate()], run_check=False)
        return cast(DTensor, F.linear(whole, weight)).full_tensor()
    return F.linear(hidden, like(weight, hidden))


class Transformer(nn.Module):
    """Token ids to logits. It can be built on the meta device and emptied: `init_weights` or a checkpoint fills
    parameters and buffers alike."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab_size, config.hidden)
        self.embed_positions = None
        if config.positions == "learned":
            assert config.context is not None
            self.embed_positions = nn.Embedding(config.context, config.hidden)
        self.dropout = make_dropout(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.Identity() if config.norm_position == "post" else make_norm(config)
        self.head = None if config.tie_embeddings else Linear(config.hidden, vocab_size, bias=False)
        self.heads_here = slice(None)  # of the query heads, those that this rank has under tensor parallelism
        self.compute_dtype: torch.dtype | None = None  # None: that of the parameters; see cast.py
        self.routing: list[Routing] = []  # of the last forward pass, one per block with experts
        self.expert_tokens: Tensor | None = None  # of this step so far, see pretrainer/train/sharding/experts.py
        self.look: Callable[[int, Tensor], None] | None = None  # gets what each block gives, see train/monitor.py

    @property
    def output_weight(self) -> Tensor:
        """[V, H] matrix from hidden states to logits; it has no bias."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        output: Callable[[Tensor, Tensor], Tensor] | None = None,
        ring: Ring | None = None,
    ) -> Tensor:
        """Logits [B, S, V] of tokens [B, S] int64 at positions [B, S] int64.

        With document_ids [B, S] attention stays inside a document. With a cache, only the tokens after the cached
        ones are given: first a prompt of any length, then one token at a time; documents are not masked then.
        output makes something else of (hidden states [B, S, H], output_weight [V, H]), such as a loss in chunks; under
        FSDP the weight is whole inside this call only. With a ring the tokens and positions are this rank's part of
        the rows (see ring.py) and document_ids those of whole rows.
        """
        output = logits if output is None else output
        return output(self._states(tokens, positions, document_ids, cache, ring), self.output_weight)

    def hidden(
        self, tokens: Tensor, positions: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Final normed hidden states [B, S, H]; arguments as those of `forward`."""
        return self._states(tokens, positions, document_ids, cache)

    def _states(
        self, tokens: Tensor, positions: Tensor, document_ids: Tensor | None, cache: KVCache | None,
        ring: Ring | None = None,
    ) -> Tensor:  # fmt: skip
        # Apart from `hidden`, which FSDP wraps: after it the root's parameters are shards again.
        assert cache is None or (document_ids is None and (cache.length == 0 or tokens.shape[1] == 1))
        assert cache is None or self.config.causal, "a cache holds what later tokens cannot change"
        x = self._looked_up(self.embed, tokens)
        if self.embed_positions is not None:
            x = x + self._looked_up(self.embed_positions, positions)
        x, routing = self.dropout(x), []
        contexts = self._contexts(tokens, positions, document_ids, cache, ring)
        for layer, (block, context) in enumerate(zip(self.blocks, contexts, strict=True)):
            x, routed = block(x, context)
            if routed is not None:
                routing.append(routed)
            if self.look is not None:
                self.look(layer, x.detach())
        self.routing = routing
        return self.norm(x)

    def _looked_up(self, table: nn.Module, ids: Tensor) -> Tensor:
        found: Tensor = table(ids)
        return found if self.compute_dtype is None else found.to(self.compute_dtype)

    def _contexts(
        self, tokens: Tensor, positions: Tensor, document_ids: Tensor | None, cache: KVCache | None, ring: Ring | None
    ) -> list[Context]:
        """One per block; blocks that look alike share their mask."""
        config, queries = self.config, tokens.shape[1]
        length = queries + (cache.length if cache is not None else 0)
        rotary = rotary_tables(positions, config) if config.positions == "rope" else None
        masks: dict[Pattern, Mask] = {}
        patterns = [Pattern.of(config, layer, self.heads_here) for layer in range(config.layers)]
        for pattern in patterns:
            if pattern not in masks:
                masks[pattern] = make_mask(
                    pattern, queries, length, document_ids, tokens.device, config.width_per_head, ring
                )
        return [Context(rotary, masks[pattern], cache) for pattern in patterns]
