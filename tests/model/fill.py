"""Weights for tests: large enough everywhere that an error in any part of the model shows in its output."""

import hashlib

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def _value(name: str, shape: torch.Size) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if name.endswith("bias"):
        return 0.2 * noise
    if "norm" in name:
        return 1 + 0.3 * noise  # ones would hide a swap of two norms
    return noise * (0.2 if name.startswith(("embed", "head")) else shape[-1] ** -0.5)


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """Draw every parameter and buffer by its name, sharded or not; returns the model."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        value = _value(name, tensor.shape)
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
            tensor.to_local().copy_(value)
        else:
            tensor.copy_(value)
    return model
