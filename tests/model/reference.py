"""A second, slow transformer to compare with: float64, one row and one head at a time, written from the formulas."""

import math

import torch
from torch import Tensor

from pretrainer.config import ModelConfig


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.stack([row / torch.sqrt((row * row).sum() / row.numel() + eps) for row in x]) * weight


def _rotate(vector: Tensor, position: int, theta: float) -> Tensor:
    """The pair (i, i + D/2) as a complex number times exp(i * position * theta^(-2i/D))."""
    half = vector.numel() // 2
    angles = torch.tensor([position * theta ** (-2 * i / vector.numel()) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones(half, dtype=torch.float64), angles)
    return torch.cat((turned.real, turned.imag))


def _attention(x: Tensor, p: dict[str, Tensor], c: ModelConfig, positions: list[int], documents: list[int]) -> Tensor:
    length, width, group = len(positions), c.hidden // c.heads, c.heads // c.num_kv_heads
    q, k, v = (x @ p[f"attention.{n}.weight"].T for n in "qkv")
    heads = []
    for head in range(c.heads):
        own, shared = slice(head * width, (head + 1) * width), slice(head // group * width, (head // group + 1) * width)
        qs = [_rotate(q[i, own], positions[i], c.rope_theta) for i in range(length)]
        ks = [_rotate(k[i, shared], positions[i], c.rope_theta) for i in range(length)]
        rows = []
        for i in range(length):
            seen = [j for j in range(i + 1) if documents[j] == documents[i]]
            scores = torch.stack([qs[i] @ ks[j] for j in seen]) / math.sqrt(width)
            rows.append(sum(w * v[j, shared] for w, j in zip(scores.softmax(0), seen, strict=True)))
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ p["attention.o.weight"].T


def reference_logits(
    params: dict[str, Tensor], c: ModelConfig, tokens: list[int], positions: list[int], documents: list[int]
) -> Tensor:
    """Logits [S, V] float64 of one row, from parameters by our names."""
    x = torch.stack([params["embed.weight"][t] for t in tokens])
    for layer in range(c.layers):
        start = f"blocks.{layer}."
        p = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
        x = x + _attention(_norm(x, p["attention_norm.weight"], c.norm_eps), p, c, positions, documents)
        h = _norm(x, p["ffn_norm.weight"], c.norm_eps)
        gate = h @ p["ffn.gate.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (h @ p["ffn.up.weight"].T)) @ p["ffn.down.weight"].T
    head = params["embed.weight"] if c.tie_embeddings else params["head.weight"]
    return _norm(x, params["norm.weight"], c.norm_eps) @ head.T


def reference_nll_sum(params: dict[str, Tensor], c: ModelConfig, rows: list[tuple]) -> tuple[Tensor, int]:
    """(sum of -log p over valid targets, their number) of rows of (tokens, targets or None, positions, documents)."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens, targets, positions, documents in rows:
        log_p = reference_logits(params, c, tokens, positions, documents).log_softmax(-1)
        for i, target in enumerate(targets):
            if target is not None:
                total, count = total - log_p[i, target], count + 1
    return total, count
