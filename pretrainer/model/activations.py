"""Bytes that autograd keeps between the forward and the backward pass, derived from our own blocks, operation by
operation.

Kept by a pre-norm block for each token (SwiGLU, no dropout), in elements: what each norm reads (2 H), what the first
products of a sub-layer read (2 H), rotated queries and keys, values and the output of attention (2 N D + 2 M D), gate,
activated gate, up and their product (4 F), and for each head the float32 log of the softmax's sum. Kernels differ: on
CUDA a norm keeps its input as it came and dropout a byte per element; on the CPU RMSNorm keeps its input and its
normalised input in float32, dropout a factor per element, and a masked attention its mask in every block.

tests/model/test_memory_plan.py compares this with what autograd really keeps on the CPU. torch.compile keeps less, by
an amount that is its own.

Shapes: H hidden, F width of a feed-forward layer, N query heads, M key and value heads, D width of a head, S tokens of
a row, E experts, k chosen ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.config import ModelConfig

Checkpointing = Literal["none", "selective", "full"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass of a rank."""

    rows: int  # of a micro-batch
    seq_len: int
    half: bool = True  # bfloat16 in matrix products
    autocast: bool = False  # exact mode: parameters and residual stream stay float32
    device: Device = "cuda"
    documents: bool = True  # rows may hold several documents, which attention has to be kept inside of
    checkpointing: Checkpointing = "none"
    tensor_parallel: int = 1
    context_parallel: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one rank."""
        return self.rows * -(-self.seq_len // self.context_parallel)

    @property
    def element(self) -> int:
        """Bytes of an element in matrix products and attention."""
        return 2 if self.half else 4

    @property
    def stream(self) -> int:
        """Bytes of an element of the residual stream."""
        return 4 if self.autocast else self.element

    @property
    def casts(self) -> bool:
        """Whether every matrix product keeps its own cast of what it reads."""
        return self.half and self.autocast


def _norm(config: ModelConfig, run: Pass, kind: str, elements: int, vectors: int, element: int) -> int:
    """Of a norm over so many elements per token in so many vectors, without its output."""
    if kind == "layernorm":
        return element * elements + 8 * vectors
    return (8 if run.device == "cpu" else element) * elements + 4 * vectors


def _into_products(run: Pass, elements: int, products: int) -> int:
    """Of what several matrix products read alike."""
    return run.element * elements * (products if run.casts else 1)


def _dropout(config: ModelConfig, run: Pass) -> int:
    """Of dropout on one output of width H."""
    each = 1 if run.device == "cuda" else run.element
    return each * config.hidden if config.dropout else 0


def _mask(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of attention's dense mask, which a block keeps in the type of its scores; FlexAttention has none."""
    window, alibi = config.window(layer), config.positions == "alibi"
    needed = run.documents or alibi or (window is not None and window < run.seq_len)
    if not needed or (run.device == "cuda" and config.width_per_head >= 16):
        return 0
    each = run.element * run.seq_len * (config.heads if alibi else 1)
    # Without documents all rows share one. ALiBi's has float32 already, and blocks which look alike share that.
    kinds = len({config.window(i) for i in range(config.layers)}) if alibi and not run.half else config.layers
    return each * kinds // (config.layers * (1 if run.documents else run.rows))


def attention_bytes(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of an attention layer for one token, from what its norm gave to what it adds."""
    queries = config.heads * config.width_per_head // run.tensor_parallel
    keys = config.num_kv_heads * config.width_per_head // run.tensor_parallel
    heads = (config.heads + config.num_kv_heads) // run.tensor_parallel
    kernel = run.element * (2 * queries + 2 * keys) + 4 * (config.heads // run.tensor_parallel)
    # Norms of queries and keys read the products' outputs; what they give is rotated into tensors of their own.
    norms = _norm(config, run, "rmsnorm", queries + keys, heads, run.element) if config.qk_norm else 0
    return _into_products(run, config.hidden, 3) + norms + kernel + _mask(config, run, layer) + _dropout(config, run)


def _inner(config: ModelConfig, width: int) -> int:
    """Elements kept inside a feed-forward layer of this width."""
    if config.gated:
        return 4 * width  # gate, its activation, up, their product
    return width if config.ffn == "relu" else 2 * width  # relu keeps its result, which the next product keeps anyway


def ffn_bytes(config: ModelConfig, run: Pass) -> int:
    """Of a feed-forward layer or its experts for one token, from what its norm gave to what it adds."""
    moe, hidden, first = config.moe, config.hidden, 2 if config.gated else 1
    width = config.ffn_width // run.tensor_parallel
    if moe.experts == 0:
        return _into_products(run, hidden, first) + run.element * _inner(config, width) + _dropout(config, run)
    # Router: what it reads in float32, logits and scores, the choice and its weights; two permutations of int64.
    router = 4 * hidden + 8 * moe.experts + 32 * moe.top_k + 8
    routed = _into_products(run, hidden, first) + run.element * (_inner(config, width) + hidden)  # read, inside, given
    shared = run.element * _inner(config, moe.shared_experts * width)
    if moe.shared_experts and run.half:  # in float32 they read what the router reads
        shared += _into_products(run, hidden, first)
    return router + moe.top_k * routed + shared + _dropout(config, run)


def _norms(config: ModelConfig, run: Pass) -> int:
    return 2 * _norm(config, run, config.norm, config.hidden, 1, run.stream)


def block_bytes(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of a block without checkpointing, for one token."""
    return _norms(config, run) + attention_bytes(config, run, layer) + ffn_bytes(config, run)


def kept_outputs(config: ModelConfig, run: Pass) -> int:
    """checkpointing=selective: of a block for one token, its input and what matrix products and attention gave."""
    queries = config.heads * config.width_per_head // run.tensor_parallel
    keys = config.num_kv_heads * config.width_per_head // run.tensor_parallel
    width, first, moe = config.ffn_width // run.tensor_parallel, 2 if config.gated else 1, config.moe
    attention = 2 * queries + 2 * keys + config.hidden  # q, k, v, attention, o
    ffn = first * width + config.hidden
    if moe.experts:
        ffn = moe.top_k * ffn + (moe.shared_experts * first * width + config.hidden if moe.shared_experts else 0)
    scores = 4 * (config.heads // run.tensor_parallel)
    return run.stream * config.hidden + run.element * (attention + ffn) + scores


def kept_bytes(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of a block for one token until its backward pass begins."""
    if run.checkpointing == "none":
        return block_bytes(config, run, layer)
    routing = 4 * config.moe.experts + 8 * config.moe.top_k if config.moe.experts else 0  # a block gives it away
    return routing + (run.stream * config.hidden if run.checkpointing == "full" else kept_outputs(config, run))


def _first_bytes(config: ModelConfig, run: Pass) -> int:
    """Before the first block, for one token: ids and rotary tables."""
    looked_up = 16 if config.positions == "learned" else 8
    rotary = 8 * config.width_per_head if config.positions == "rope" else 0
    return looked_up + rotary + _dropout(config, run)


def _last_bytes(config: ModelConfig, run: Pass) -> int:
    """Behind the last block, for one token: the final norm, and its output for the output layer."""
    norm = 0 if config.norm_position == "post" else _norm(config, run, config.norm, config.hidden, 1, run.stream)
    return norm + run.element * config.hidden


def activation_bytes(config: ModelConfig, run: Pass) -> int:
    """Of the whole model, kept when the forward pass ends."""
    blocks = sum(kept_bytes(config, run, layer) for layer in range(config.layers))
    return run.tokens * (_first_bytes(config, run) + blocks + _last_bytes(config, run))


def backward_bytes(config: ModelConfig, run: Pass) -> int:
    """While the last block's backward pass is at its widest: what is kept, made again, and gradients of its inside.

    The widest point is behind the product of a gated layer: gradients of both its factors stand beside what was kept.
    """
    last, hidden = config.layers - 1, config.hidden
    again = 0 if run.checkpointing == "none" else block_bytes(config, run, last) - kept_bytes(config, run, last)
    width = config.ffn_width // run.tensor_parallel
    inside = 2 * width if config.gated else width
    if config.moe.experts:
        inside = config.moe.top_k * (inside - hidden)  # what the experts gave is free by then
    # Context parallel ranks hold a block's keys and values of the whole row, and their gradients.
    ring = 4 * config.num_kv_heads * config.width_per_head // run.tensor_parallel * run.context_parallel
    inside = max(0, inside) + (ring if run.context_parallel > 1 else 0)
    working = max(0, again) + run.element * inside + run.stream * hidden - _last_bytes(config, run)
    return activation_bytes(config, run) + run.tokens * working
