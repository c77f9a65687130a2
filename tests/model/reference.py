"""A second, slow transformer to compare with: float64, one row and one head at a time, written from the formulas."""

import math

import torch
from torch import Tensor

from pretrainer.config import ModelConfig, MoeConfig

Params = dict[str, Tensor]


def _part(params: Params, start: str) -> Params:
    return {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}


def _norm(x: Tensor, p: Params, name: str, c: ModelConfig, kind: str | None = None) -> Tensor:
    rows = []
    for row in x:
        if (kind or c.norm) == "layernorm":
            row = row - row.sum() / row.numel()
        rows.append(row / torch.sqrt((row * row).sum() / row.numel() + c.norm_eps))
    out = torch.stack(rows) * p[f"{name}.weight"]
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def _linear(x: Tensor, p: Params, name: str) -> Tensor:
    out = x @ p[f"{name}.weight"].T
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def _frequency(i: int, c: ModelConfig) -> float:
    """Radians per token of the pair (i, i + D/2), from the papers' formulas."""
    width, s = c.width_per_head, c.rope_scaling
    plain = c.rope_theta ** (-2 * i / width)
    if s.type == "linear":
        return plain / s.factor
    if s.type == "ntk":
        return (c.rope_theta * s.factor ** (width / (width - 2))) ** (-2 * i / width)
    if s.type == "llama3":
        wavelength = 2 * math.pi / plain
        if wavelength < s.original_context / s.high_freq_factor:
            return plain
        if wavelength > s.original_context / s.low_freq_factor:
            return plain / s.factor
        smooth = (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        return (1 - smooth) * plain / s.factor + smooth * plain
    if s.type == "yarn":
        low, high = (
            width / 2 * math.log(s.original_context / (2 * math.pi * beta)) / math.log(c.rope_theta)
            for beta in (s.beta_fast, s.beta_slow)
        )
        low, high = max(0, math.floor(low)), min(width - 1, math.ceil(high))
        ramp = min(1.0, max(0.0, (i - low) / (high - low)))
        return plain * (1 - ramp) + plain / s.factor * ramp
    return plain


def _rotate(vector: Tensor, position: int, c: ModelConfig) -> Tensor:
    """The pair (i, i + D/2) as a complex number times exp(i * position * frequency), and YaRN's factor."""
    half, s = vector.numel() // 2, c.rope_scaling
    angles = torch.tensor([position * _frequency(i, c) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones(half, dtype=torch.float64), angles)
    factor = (s.attention_factor or 1 + 0.1 * math.log(s.factor)) if s.type == "yarn" else 1.0
    return torch.cat((turned.real, turned.imag)) * factor


def _sees(c: ModelConfig, layer: int, i: int, j: int) -> bool:
    everything = c.sliding_window is None or (
        c.global_attention_every is not None and (layer + 1) % c.global_attention_every == 0
    )
    return (j <= i or not c.causal) and (everything or abs(i - j) < c.sliding_window)


def _attention(x: Tensor, p: Params, c: ModelConfig, layer: int, positions: list[int], documents: list[int]) -> Tensor:
    length, width, group = len(positions), c.width_per_head, c.heads // c.num_kv_heads
    q, k, v = (_linear(x, p, f"attention.{n}") for n in "qkv")
    heads = []
    for head in range(c.heads):
        own, shared = slice(head * width, (head + 1) * width), slice(head // group * width, (head // group + 1) * width)
        qs, ks = q[:, own], k[:, shared]
        if c.qk_norm:
            qs = _norm(qs, p, "attention.q_norm", c, "rmsnorm")
            ks = _norm(ks, p, "attention.k_norm", c, "rmsnorm")
        if c.positions == "rope":
            qs = [_rotate(qs[i], positions[i], c) for i in range(length)]
            ks = [_rotate(ks[i], positions[i], c) for i in range(length)]
        slope = 2.0 ** (-8 * (head + 1) / c.heads) if c.positions == "alibi" else 0.0  # heads: a power of two
        rows = []
        for i in range(length):
            seen = [j for j in range(length) if documents[j] == documents[i] and _sees(c, layer, i, j)]
            scores = torch.stack([qs[i] @ ks[j] / math.sqrt(width) - slope * abs(i - j) for j in seen])
            rows.append(sum(w * v[j, shared] for w, j in zip(scores.softmax(0), seen, strict=True)))
        heads.append(torch.stack(rows))
    return _linear(torch.cat(heads, dim=1), p, "attention.o")


def _activation(x: Tensor, name: str) -> Tensor:
    if name == "swiglu":
        return x * torch.sigmoid(x)
    if name in ("geglu", "gelu"):
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    positive = torch.where(x > 0, x, 0.0)
    return positive * positive if name == "relu2" else positive


def _feed_forward(x: Tensor, p: Params, c: ModelConfig) -> Tensor:
    inner = _linear(x, p, "up")
    if c.ffn in ("swiglu", "geglu"):
        inner = _activation(_linear(x, p, "gate"), c.ffn) * inner
    else:
        inner = _activation(inner, c.ffn)
    return _linear(inner, p, "down")


def _scores(logits: Tensor, moe: MoeConfig) -> Tensor:
    return torch.sigmoid(logits) if moe.score == "sigmoid" else logits.softmax(-1)


def _experts(x: Tensor, p: Params, c: ModelConfig, routing: list) -> Tensor:
    """One token at a time; appends (logits [S, E], chosen experts of each token) to routing."""
    logits, moe, rows, choices = x @ p["router.weight"].T, c.moe, [], []
    for token, own in zip(x, logits, strict=True):
        scores = _scores(own, moe)
        preference = scores + p["router.expert_bias"] if moe.balance == "bias" else scores
        chosen = sorted(range(moe.experts), key=lambda e: -preference[e].item())[: moe.top_k]
        total = sum(scores[e] for e in chosen) if moe.normalise else 1.0
        row = 0.0
        for e in chosen:
            one = {f"{n}.weight": p[f"experts.{n}"][e] for n in ("gate", "up", "down") if f"experts.{n}" in p}
            row = row + scores[e] / total * _feed_forward(token[None], one, c)[0]
        rows.append(row)
        choices.append(chosen)
    routing.append((logits, choices))
    out = torch.stack(rows)
    return out + _feed_forward(x, _part(p, "shared."), c) if moe.shared_experts else out


def reference_logits(
    params: Params, c: ModelConfig, tokens: list[int], positions: list[int], documents: list[int],
    routing: list | None = None,
) -> Tensor:  # fmt: skip
    """Logits [S, V] float64 of one row, from parameters (and buffers) by our names; one entry of routing per block."""
    x = torch.stack([params["embed.weight"][t] for t in tokens])
    if c.positions == "learned":
        x = x + torch.stack([params["embed_positions.weight"][i] for i in positions])
    routing = [] if routing is None else routing
    for layer in range(c.layers):
        p = _part(params, f"blocks.{layer}.")

        def attention(h: Tensor, p: Params = p, layer: int = layer) -> Tensor:
            return _attention(h, p, c, layer, positions, documents)

        def ffn(h: Tensor, p: Params = p) -> Tensor:
            own = _part(p, "ffn.")
            return _experts(h, own, c, routing) if c.moe.experts else _feed_forward(h, own, c)

        for name, part in (("attention_norm", attention), ("ffn_norm", ffn)):
            x = _norm(x + part(x), p, name, c) if c.norm_position == "post" else x + part(_norm(x, p, name, c))
    head = params["embed.weight"] if c.tie_embeddings else params["head.weight"]
    return (x if c.norm_position == "post" else _norm(x, params, "norm", c)) @ head.T


def reference_nll_sum(params: Params, c: ModelConfig, rows: list[tuple]) -> tuple[Tensor, int]:
    """(sum of -log p over valid targets, their number) of rows of (tokens, targets or None, positions, documents)."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens, targets, positions, documents in rows:
        log_p = reference_logits(params, c, tokens, positions, documents).log_softmax(-1)
        for i, target in enumerate(targets):
            if target is not None:
                total, count = total - log_p[i, target], count + 1
    return total, count


def reference_auxiliary_sum(params: Params, c: ModelConfig, rows: list[tuple]) -> tuple[Tensor, Tensor]:
    """(balance and z-loss of one group of rows, summed as the loss is; how often [L, E] each expert was chosen)."""
    moe, kept = c.moe, [[] for _ in range(c.layers)]
    for tokens, targets, positions, documents in rows:
        routing: list = []
        reference_logits(params, c, tokens, positions, documents, routing)
        for layer, (logits, choices) in enumerate(routing):
            kept[layer] += [(logits[i], choices[i]) for i, target in enumerate(targets) if target is not None]
    total, counts = torch.zeros((), dtype=torch.float64), torch.zeros(c.layers, moe.experts, dtype=torch.int64)
    for layer, tokens in enumerate(kept):
        for _logits, chosen in tokens:
            counts[layer, chosen] += 1
        for e in range(moe.experts):
            if not tokens or moe.balance not in ("sequence", "slot_block"):
                continue
            share = counts[layer, e].item() / (moe.top_k * len(tokens))
            mean = sum((s := _scores(logits, moe))[e] / s.sum() for logits, _ in tokens) / len(tokens)
            total = total + moe.balance_weight * len(tokens) * moe.experts * share * mean
        total = total + moe.z_loss_weight * sum(torch.logsumexp(logits, 0) ** 2 for logits, _ in tokens)
    return total, counts
