"""What happens to a block's forward pass before it is sharded: computed again in the backward pass, and compiled.

Both replace `block.forward` and no module, so parameters keep their names and FSDP2's hooks stay outside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pretrainer.config import TrainConfig
from pretrainer.model.transformer import Transformer

aten = torch.ops.aten
# Dear to compute and no larger than a block's input; attention above all, whose cost grows with the sequence.
ATTENTION = {
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops.higher_order.flex_attention,
}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten._grouped_mm.default, aten._scaled_mm.default}


def _policy() -> Callable[..., CheckpointPolicy]:
    """Keeps attention and every second matrix product, as torchtitan's `selective` (op) does."""
    products = {False: 0, True: 0}  # in the first pass, and in the second: both must decide alike

    def decide(context: Any, function: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        if function in PRODUCTS:
            products[context.is_recompute] += 1
            kept = products[context.is_recompute] % 2 == 1
        else:
            kept = function in ATTENTION
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return decide


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy())


def recomputed(forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """A block's forward pass that keeps only its input ("full"), or attention and half of the products beside it.

    Chen et al. 2016, arXiv:1604.06174. Dropout is drawn alike both times.
    """
    if kind == "selective":
        return partial(checkpoint, forward, use_reentrant=False, context_fn=_selective_contexts)
    return partial(checkpoint, forward, use_reentrant=False)


def prepare_blocks(model: Transformer, train: TrainConfig) -> None:
    """Recomputation, then compilation, of every block; in place."""
    for block in model.blocks:
        assert isinstance(block, nn.Module)
        if train.activation_checkpointing != "none":
            block.forward = recomputed(block.forward, train.activation_checkpointing)
        if train.compile:
            block.forward = torch.compile(block.forward)
