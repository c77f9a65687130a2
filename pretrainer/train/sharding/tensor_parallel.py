"""Tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053) by DTensor, from outside the model, before FSDP2.

Queries, keys, values, gate and up are split by output, o and down by input, the embedding and the output layer by
vocabulary; experts are split inside, each by its width. What is between sub-layers is whole and alike on every rank,
and so are norms and routers: their parameters are DTensors too, so that all of the model's lie on one mesh.

To add a module with parameters to the model, add its line to `_plan`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from pretrainer.model.ffn import FeedForward
from pretrainer.model.moe import MixtureOfExperts
from pretrainer.model.transformer import Block, Transformer


def _distribute(module: nn.Module, mesh: DeviceMesh, placements: dict[str, Placement]) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        placed = distribute_tensor(parameter, mesh, [placements.get(name, Replicate())], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(placed))


class Whole(ParallelStyle):
    """A norm that computes alike on every rank, or on each rank's heads: then its gradient is a sum over the ranks."""

    def __init__(self, inputs: Placement) -> None:
        super().__init__()
        self.inputs = inputs

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _distribute(module, device_mesh, {})

        def enter(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (DTensor.from_local(args[0], device_mesh, [self.inputs], run_check=False),)

        def leave(_module: nn.Module, _args: Any, out: DTensor) -> Tensor:
            return out.to_local()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
        return module


class WholeWeights(ParallelStyle):
    """A module that takes its own weights off the mesh (a router, a table) and computes alike on every rank."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _distribute(module, device_mesh, {})
        return module


class SplitExperts(ParallelStyle):
    """Every expert by its width: its first matrices by output, its last by input, so one sum over the ranks in all."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _distribute(module, device_mesh, {"gate": Shard(1), "up": Shard(1), "down": Shard(2)})

        def enter(_module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x = DTensor.from_local(args[0], device_mesh, [Replicate()], run_check=False)
            return x.to_local(grad_placements=[Partial()]), args[1]

        def leave(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            part = DTensor.from_local(out, device_mesh, [Partial()], run_check=False)
            return part.redistribute(placements=[Replicate()]).to_local()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
        return module


def _feed_forward_plan(name: str, ffn: FeedForward) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        name: PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),)),
        f"{name}.up": ColwiseParallel(),
        f"{name}.down": RowwiseParallel(),
    }
    return plan | ({f"{name}.gate": ColwiseParallel()} if ffn.gate is not None else {})


def _plan(block: Block) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        "attention_norm": Whole(Replicate()),
        "attention": PrepareModuleInput(
            input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None)
        ),
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.o": RowwiseParallel(),
        "ffn_norm": Whole(Replicate()),
    }
    if block.attention.q_norm is not None:
        plan |= {"attention.q_norm": Whole(Shard(1)), "attention.k_norm": Whole(Shard(1))}
    if not isinstance(block.ffn, MixtureOfExperts):
        return plan | _feed_forward_plan("ffn", block.ffn)
    if block.ffn.shared is not None:
        plan |= _feed_forward_plan("ffn.shared", block.ffn.shared)
    return plan | {"ffn.router": WholeWeights(), "ffn.experts": SplitExperts()}


def split_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Make every parameter a DTensor over the one-dimensional mesh; in place, on a model on the meta device too."""
    for block in model.blocks:
        assert isinstance(block, Block)
        parallelize_module(block, mesh, _plan(block))
    outer: dict[str, ParallelStyle] = {"embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())}
    if model.embed_positions is not None:
        outer["embed_positions"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    if not isinstance(model.norm, nn.Identity):
        outer["norm"] = Whole(Replicate())
    parallelize_module(model, mesh, outer)
    if model.head is not None:  # its weight is multiplied in model/loss.py
        _distribute(model.head, mesh, {"weight": Shard(0)})
    each = model.config.heads // mesh.size()
    model.heads_here = slice(mesh.get_local_rank() * each, (mesh.get_local_rank() + 1) * each)
