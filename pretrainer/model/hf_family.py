"""What a family of Hugging Face models is: which tensors of ours are which of theirs, and what it can compute.

RoPE has the same "rotate half" layout on both sides, so weights are renamed, transposed, joined or stacked, never
permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrainer.config import ModelConfig

Pack = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Weights:
    """Some tensors of ours that are some tensors of theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pack: Pack = list  # ours to theirs
    unpack: Pack = list  # theirs to ours


def renamed(ours: str, theirs: str) -> Weights:
    return Weights((ours,), (theirs,))


def transposed(ours: str, theirs: str) -> Weights:
    """GPT-2's Conv1D holds [in, out]."""
    return Weights((ours,), (theirs,), _transpose, _transpose)


def _transpose(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.T for tensor in tensors]


def joined(ours: tuple[str, ...], theirs: str, flip: bool) -> Weights:
    """Several matrices [out, in] or biases [out] as one along their outputs; flip: theirs is [in, out]."""

    def pack(tensors: Sequence[Tensor]) -> list[Tensor]:
        whole = torch.cat(list(tensors))
        return [whole.T if flip else whole]

    def unpack(tensors: Sequence[Tensor]) -> list[Tensor]:
        whole = tensors[0].T if flip else tensors[0]
        return list(whole.chunk(len(ours)))

    return Weights(ours, (theirs,), pack, unpack)


def stacked(ours: str, theirs: tuple[str, ...]) -> Weights:
    """One tensor [experts, …] of ours for one of theirs per expert."""
    return Weights((ours,), theirs, lambda t: list(t[0].unbind()), lambda t: [torch.stack(list(t))])


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers."""

    architecture: str
    needs: Mapping[str, tuple[Any, ...]]  # field of ModelConfig -> values that it can have
    weights: Callable[[ModelConfig], Iterator[Weights]]
    write: Callable[[ModelConfig, int], dict[str, Any]]  # (config, context) -> fields of config.json
    read: Callable[[Mapping[str, Any]], dict[str, Any]]  # config.json -> fields of ModelConfig

    def refuses(self, config: ModelConfig) -> tuple[str, Any, tuple[Any, ...]] | None:
        """(field, value, possible values) of the first field that the family has not; None where it can compute it."""
        for name, possible in self.needs.items():
            value = _of(config, name)
            if value not in possible:
                return name, value, possible
        return None


def _of(config: ModelConfig, name: str) -> Any:
    """A field that `Family.needs` can name: of the config, of its mixture, or how it has a thing at all."""
    derived: dict[str, Callable[[], Any]] = {
        "moe.experts": lambda: config.moe.experts > 0,
        "moe.score": lambda: config.moe.score,
        "moe.balance": lambda: config.moe.balance,
        "moe.normalise": lambda: config.moe.normalise,
        "moe.shared_experts": lambda: config.moe.shared_experts,
        "sliding_window": lambda: config.sliding_window is not None,
        "global_attention_every": lambda: config.global_attention_every is not None,
        "kv_heads": lambda: config.num_kv_heads != config.heads,
        "head_width": lambda: config.heads * config.width_per_head != config.hidden,
    }
    return derived[name]() if name in derived else getattr(config, name)
