"""What stands around the one-device model. The order, once and for all: build on meta, float8, split matrices (tensor
parallelism), recompute and compile blocks, shard each block, shard the root (FSDP2), allocate; then `init_weights` or
`load_sharded` fills the parameters, and the optimizer is built last.

Exact mode needs the whole model on every rank instead: a replica, which nothing is summed for behind its back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.float8 import check_float8, use_float8
from pretrainer.model.flops import check_exact_memory
from pretrainer.model.loss import LossSettings
from pretrainer.model.memory_plan import RESHARD_FROM_PARAMETERS, is_alone
from pretrainer.model.transformer import Transformer
from pretrainer.train.sharding.layout import Layout, Ranks
from pretrainer.train.sharding.recompute import prepare_blocks
from pretrainer.train.sharding.tensor_parallel import split_matrices


def precision_for(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Type of matrix products: as configured, and for "auto" bfloat16 on GPUs that have it, float32 elsewhere."""
    if config.precision != "auto":
        return getattr(torch, config.precision)
    # Older GPUs only emulate bfloat16, slower than float32.
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float32


def loss_settings(config: TrainConfig) -> LossSettings:
    """What the config says about the loss."""
    return LossSettings(config.loss_chunk_tokens, config.z_loss)


def _shard_module(module: nn.Module, settings: dict[str, Any]) -> None:
    sharded = fully_shard(module, **settings)
    sharded.set_gradient_divide_factor(1.0)
    # Else the factor 1 becomes a premultiplied sum, which gloo does not have.
    sharded.set_force_sum_reduction_for_comms(True)


def shard(model: Transformer, mesh: DeviceMesh, train: TrainConfig, device: torch.device) -> Transformer:
    """Shard the model in place over the mesh (FSDP2, Zhao et al. 2023, arXiv:2304.11277) and allocate it if it is on
    meta.

    Parameters, gradients and their reduction stay float32; only gathered parameters and activations have the type of
    matrix products. Gradients are summed over ranks, not averaged: `train_step` has divided by the global number of
    targets already. On a mesh of two dimensions the first one has copies (HSDP).
    """
    # RoPE tables are inputs of the blocks and must stay float32, so nothing is cast at block boundaries.
    precision = precision_for(train, device)
    param_dtype = None if precision == torch.float32 else precision
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Small models keep gathered parameters until the backward pass: measured 1.2 to 1.4 times the speed
    # (log 2026-11-20).
    reshard = sum(p.numel() for p in model.parameters()) > RESHARD_FROM_PARAMETERS
    settings: dict[str, Any] = dict(mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    if train.cpu_offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for module in (*model.blocks, model):
        _shard_module(module, settings)
    register_fsdp_forward_method(model, "hidden")
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device="cpu" if train.cpu_offload else device)
    for module in model.modules():  # what is offloaded are parameters
        there = {name: buffer.to(device) for name, buffer in module._buffers.items() if buffer is not None}
        module._buffers.update(there)
    return model


def build_sharded(
    config: ModelConfig, vocab_size: int, train: TrainConfig, device: torch.device, ranks: Ranks | None = None
) -> Transformer:
    """An allocated, sharded model whose parameters are still to be filled; every rank of the process group calls it."""
    ranks = ranks or Ranks(Layout.of(train, dist.get_world_size()), device.type)
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    if train.float8:
        use_float8(model)
    if ranks.layout.tensor > 1:
        split_matrices(model, ranks.mesh["tensor"])
    prepare_blocks(model, train)
    if is_alone(train, ranks.layout.world):
        precision = precision_for(train, device)
        model.compute_dtype = None if precision == torch.float32 else precision
        model.to_empty(device=device)
    else:
        shard(model, ranks.sharding, train, device)
    model.token_group = ranks.tokens  # type: ignore[assignment]  # read by step.py and experts.py
    return model


class Replica(Transformer):
    """A whole model whose matrix products have `precision`; its parameters and gradients stay float32."""

    precision = torch.float32

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(tokens.device.type, self.precision, enabled=self.precision != torch.float32):
            return super().forward(tokens, *args, **kwargs)


def build_replicated(config: ModelConfig, vocab_size: int, train: TrainConfig, device: torch.device) -> Replica:
    """An allocated model, whole on this rank, whose parameters are still to be filled.

    Raises ConfigError when it cannot fit into the GPU.
    """
    with torch.device("meta"):
        model = Replica(config, vocab_size)
    model.precision = precision_for(train, device)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
        check_exact_memory(config, vocab_size, model.precision == torch.bfloat16, there, "this GPU")
    prepare_blocks(model, train)
    return model.to_empty(device=device)


def build_model(
    config: ModelConfig, vocab_size: int, train: TrainConfig, device: torch.device, ranks: Ranks | None = None
) -> Transformer:
    """Sharded over the process group, or in exact mode a replica; every rank calls it. ranks: made anew if not given.

    Raises ConfigError for what the device cannot do.
    """
    if train.float8:
        check_float8(device)
    if train.exact:
        model: Transformer = build_replicated(config, vocab_size, train, device)
    else:
        model = build_sharded(config, vocab_size, train, device, ranks)
    model.loss_settings = loss_settings(train)  # type: ignore[assignment]  # any value may be set; step.py reads it
    return model
