"""Continue a prompt. Draws are counter-based: the n-th new token depends on the logits, the seed and n alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pretrainer.config import ModelConfig
from pretrainer.model.attention import KVCache


def _uniform(seed: int, index: int) -> float:
    digest = hashlib.sha256(f"sample/{seed}/{index}".encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2.0**53  # in [0, 1)


def choose(logits: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    """One token id from logits [V]: the largest at temperature 0, else where the distribution passes `uniform` in [0,
    1).

    top_k keeps the k most probable tokens (Fan et al. 2018); None or a k beyond the vocabulary keeps all.
    """
    logits = logits.double().cpu()
    if temperature <= 0:
        return int(logits.argmax())
    keep = min(top_k or logits.numel(), logits.numel())
    values, ids = logits.topk(keep)
    cumulative = (values / temperature).softmax(dim=0).cumsum(dim=0)
    index = torch.searchsorted(cumulative, uniform * cumulative[-1].item(), right=True)
    return int(ids[min(int(index), keep - 1)])


def longest_text(model: nn.Module) -> int | None:
    """Tokens that the model can look at together: the rows of learned positions; None where there is no limit."""
    config = getattr(model, "config", None)
    return config.context if isinstance(config, ModelConfig) and config.positions == "learned" else None


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    stop_id: int | None = None,
    device: torch.device | str = "cpu",
) -> list[int]:
    """New token ids after the prompt, with a key-value cache; the stop id ends the text and is not returned.

    A text longer than learned positions reach is continued from its end, which the cache cannot help with.
    """
    was_training = model.training
    model.eval()
    new_ids: list[int] = []
    cache, given, limit = KVCache(), list(prompt_ids), longest_text(model)
    for index in range(max_new_tokens):
        start = cache.length
        if limit is not None and start + len(given) > limit:
            cache, start, given = KVCache(), 0, [*prompt_ids, *new_ids][-limit:]
        tokens = torch.tensor([given], device=device)
        logits = model(tokens, torch.arange(start, start + len(given), device=device)[None], None, cache)
        token = choose(logits[0, -1], temperature, top_k, _uniform(seed, index))
        if token == stop_id:
            break
        new_ids.append(token)
        given = [token]
    model.train(was_training)
    return new_ids


def release_gathered(model: nn.Module) -> None:
    """Give a sharded model its shards back as parameters after forward passes that no backward pass followed.

    What FSDP keeps gathered for the backward pass would otherwise stay so, and a checkpoint would find whole tensors.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _agree(token: int, device: torch.device | str) -> int:
    # Ranks on unlike hardware may round logits differently; one that stops earlier than the others would hang them.
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return token
    box = torch.tensor([token], device=device)
    dist.broadcast(box, src=0)
    return int(box)


@torch.no_grad()
def generate_in_lockstep(
    model: nn.Module,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    stop_id: int | None = None,
    device: torch.device | str = "cpu",
) -> list[int]:
    """`generate` without a cache, for a sharded model: all ranks call it alike and get the same tokens."""
    was_training = model.training
    model.eval()
    ids, limit = list(prompt_ids), longest_text(model)
    for index in range(max_new_tokens):
        seen = ids if limit is None else ids[-limit:]
        logits = model(torch.tensor([seen], device=device), torch.arange(len(seen), device=device)[None])
        token = _agree(choose(logits[0, -1], temperature, top_k, _uniform(seed, index)), device)
        if token == stop_id:
            break
        ids.append(token)
    release_gathered(model)
    model.train(was_training)
    return ids[len(prompt_ids):]
