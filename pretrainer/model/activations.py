"""Bytes that autograd keeps between the forward and the backward pass, derived from our own blocks, operation by
operation.

Kept by a pre-norm block for each token (SwiGLU, no dropout), in elements: what each norm reads (2 H), what the first
products of a sub-layer read (2 H), rotated queries and keys, values and the output of attention (2 N D + 2 M D), gate,
activated gate, up and their product (4 F), and for each head the float32 log of the softmax's sum. Kernels differ: on
CUDA a norm keeps its input as it came and dropout a byte per element; on the CPU RMSNorm in bfloat16 keeps its input
and its normalised input in float32, dropout a factor per element, and a masked attention its mask in every block.

tests/model/test_memory_plan.py compares this with what autograd really keeps on the CPU. torch.compile keeps less, by
an amount that is its own.

Shapes: H hidden, F width of a feed-forward layer, N query heads, M key and value heads, D width of a head, S tokens of
a row, E experts, k chosen ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.config import ModelConfig
from pretrainer.model.masks import FLEX_HEAD_WIDTH

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
    has_no_kernel = run.device == "cpu" and (element != 4 or run.tensor_parallel > 1)  # see norms.py
    return (8 if has_no_kernel else element) * elements + 4 * vectors


def _into_products(run: Pass, elements: int, products: int) -> int:
    """Of what several matrix products read alike."""
    return run.element * elements * (products if run.casts else 1)


def _dropout(config: ModelConfig, run: Pass, element: int) -> int:
    """Of dropout on one output of width H, whose elements have so many bytes."""
    each = 1 if run.device == "cuda" else element
    return each * config.hidden if config.dropout else 0


def _is_flex(config: ModelConfig, run: Pass) -> bool:
    """Whether attention with a mask is FlexAttention."""
    return run.device == "cuda" and config.width_per_head >= FLEX_HEAD_WIDTH


def _mask(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of attention's dense mask, which a block keeps in the type of its scores; FlexAttention has none."""
    window, alibi = config.window(layer), config.positions == "alibi"
    needed = run.documents or alibi or (window is not None and window < run.seq_len)
    if not needed or run.context_parallel > 1 or _is_flex(config, run):
        return 0
    each = run.element * run.seq_len * (config.heads if alibi else 1)
    # Without documents all rows share one. ALiBi's has float32 already, and blocks which look alike share that.
    kinds = len({config.window(i) for i in range(config.layers)}) if alibi and not run.half else config.layers
    return each * kinds // (config.layers * (1 if run.documents else run.rows))


def _widths(config: ModelConfig, run: Pass) -> tuple[int, int, int]:
    """(queries N D, keys or values M D, heads N) on one tensor parallel rank."""
    queries, keys = config.heads * config.width_per_head, config.num_kv_heads * config.width_per_head
    return queries // run.tensor_parallel, keys // run.tensor_parallel, config.heads // run.tensor_parallel


def _kernel(config: ModelConfig, run: Pass) -> int:
    """Of the attention kernel for one token: queries, keys, values, output, log-sum-exp; in a ring of each round."""
    queries, keys, heads = _widths(config, run)
    if run.context_parallel == 1:
        return run.element * 2 * (queries + keys) + 4 * heads
    rounds, merges = run.context_parallel, (run.context_parallel - 1) * (8 * queries + 8 * heads)
    if _is_flex(config, run):
        each = run.element * (2 * keys + queries) + 4 * heads
        return run.element * 2 * queries + rounds * each + merges
    # On the CPU: queries, keys and values of every head in float32, scores twice, and the mask.
    seen = -(-run.seq_len // rounds)
    return run.element * queries + rounds * (12 * queries + (8 * heads + 1) * seen + 4 * heads) + merges


def attention_bytes(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of an attention layer for one token, from what its norm gave to what it adds."""
    queries, keys, heads = _widths(config, run)
    vectors = heads + config.num_kv_heads // run.tensor_parallel
    # Norms of queries and keys read the products' outputs; what they give is rotated into tensors of their own.
    norms = _norm(config, run, "rmsnorm", queries + keys, vectors, run.element) if config.qk_norm else 0
    inside = norms + _kernel(config, run) + _mask(config, run, layer) + _held(config, run)
    return _into_products(run, config.hidden, 1 if _joins(run) else 3) + inside + _dropout(config, run, run.element)


def _joins(run: Pass) -> bool:
    """Whether queries, keys and values are one product (see cast.py)."""
    return run.device == "cpu" and run.tensor_parallel == 1


def joined_bytes(config: ModelConfig, run: Pass) -> int:
    """Of the weights that a block joins for it, whatever the number of tokens; autocast keeps a cast of them, which
    counts as gathered parameters."""
    queries, keys, _heads = _widths(config, run)
    return run.element * config.hidden * (queries + 2 * keys) if _joins(run) and not run.autocast else 0


def _held(config: ModelConfig, run: Pass) -> int:
    """Of the product's queries and keys for one token, which stay beside those made from them: its values are kept."""
    replaced = config.positions == "rope" or config.qk_norm
    is_kept_anyway = config.qk_norm and run.element == 4  # by the norm
    queries, keys, _heads = _widths(config, run)
    return run.element * (queries + keys) if _joins(run) and replaced and not is_kept_anyway else 0


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
        kept = _into_products(run, hidden, first) + run.element * _inner(config, width)
        return kept + _dropout(config, run, run.element)
    # Router: what it reads in float32, logits and scores, the choice and its weights; two permutations of int64.
    router = 4 * hidden + 8 * moe.experts + 32 * moe.top_k + 8
    routed = _into_products(run, hidden, first) + run.element * (_inner(config, width) + hidden)  # read, inside, given
    shared = run.element * _inner(config, moe.shared_experts * width)
    if moe.shared_experts and run.half:  # in float32 they read what the router reads
        shared += _into_products(run, hidden, first)
    # The router's weights are float32, and under autocast with them what the experts give together.
    return router + moe.top_k * routed + shared + _dropout(config, run, run.stream)


def _norms(config: ModelConfig, run: Pass) -> int:
    return 2 * _norm(config, run, config.norm, config.hidden, 1, run.stream)


def block_bytes(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of a block without checkpointing, for one token."""
    return _norms(config, run) + attention_bytes(config, run, layer) + ffn_bytes(config, run)


def _products(config: ModelConfig, run: Pass) -> list[int]:
    """Bytes that each matrix product of a block gives for one token, in the order of the forward pass."""
    queries, keys, _heads = _widths(config, run)
    width, hidden, moe = config.ffn_width // run.tensor_parallel, config.hidden, config.moe
    inner = [width] * (2 if config.gated else 1)
    first = [queries + 2 * keys] if _joins(run) else [queries, keys, keys]
    attention, dense = [*first, hidden], [*inner, hidden]
    if not moe.experts:
        return [run.element * each for each in attention + dense]
    shared = [*([moe.shared_experts * width] * len(inner)), hidden] if moe.shared_experts else []
    routed = [run.element * moe.top_k * each for each in dense]
    if run.device == "cpu":  # a product for every expert, of which every second one is kept
        routed = [each // 2 for each in routed for _ in range(2)]
    return [*(run.element * each for each in attention), 4 * moe.experts, *routed, *(run.element * e for e in shared)]


def kept_outputs(config: ModelConfig, run: Pass) -> int:
    """checkpointing=selective: what attention and every second matrix product gave, for one token."""
    queries, _keys, heads = _widths(config, run)
    return sum(_products(config, run)[::2]) + run.element * queries + 4 * heads


def kept_bytes(config: ModelConfig, run: Pass, layer: int) -> int:
    """Of a block for one token until its backward pass begins."""
    if run.checkpointing == "none":
        return block_bytes(config, run, layer)
    routing = 4 * config.moe.experts + 8 * config.moe.top_k if config.moe.experts else 0  # a block gives it away
    selected = kept_outputs(config, run) if run.checkpointing == "selective" else 0
    return routing + run.stream * config.hidden + selected


def _first_bytes(config: ModelConfig, run: Pass) -> int:
    """Before the first block, for one token: ids and rotary tables."""
    looked_up = 16 if config.positions == "learned" else 8
    rotary = 8 * config.width_per_head if config.positions == "rope" else 0
    return looked_up + rotary + _dropout(config, run, run.stream)


def _last_bytes(config: ModelConfig, run: Pass) -> int:
    """Behind the last block, for one token: the final norm, and its output for the output layer."""
    norm = 0 if config.norm_position == "post" else _norm(config, run, config.norm, config.hidden, 1, run.stream)
    return norm + run.element * config.hidden


def activation_bytes(config: ModelConfig, run: Pass) -> int:
    """Of the whole model, kept when the forward pass ends."""
    blocks = sum(kept_bytes(config, run, layer) for layer in range(config.layers))
    joined = config.layers * joined_bytes(config, run) if run.checkpointing == "none" else 0
    return run.tokens * (_first_bytes(config, run) + blocks + _last_bytes(config, run)) + joined


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
    working = max(0, again) + run.element * max(0, inside) + run.stream * hidden - _last_bytes(config, run)
    joined = 0 if run.checkpointing == "none" else joined_bytes(config, run)
    return activation_bytes(config, run) + run.tokens * working + joined
