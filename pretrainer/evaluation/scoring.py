"""Log-likelihoods of continuations and greedy answers, batched; the batch a row is in does not change its result but
for rounding.

Shapes: B rows, S tokens, H hidden, V vocabulary, N scored tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretrainer.evaluation.encoding import Request
from pretrainer.evaluation.lanes import Lanes, Row, batches_of, padded
from pretrainer.model.generate import release_gathered
from pretrainer.model.transformer import Transformer, logits

LOGIT_BYTES = 2**28  # float32 logits that may exist at a time


class Score(NamedTuple):
    """Of one request."""

    log_likelihood: float  # of the continuation, in nats
    tokens: int  # in the continuation
    top1: int  # of them, those that the model would have chosen

    @property
    def is_greedy(self) -> bool:
        return self.top1 == self.tokens


@torch.no_grad()
def score(
    model: Transformer, requests: Sequence[Request], device: torch.device | str, max_tokens: int, batch_tokens: int
) -> list[Score]:
    """One per request. All ranks of a sharded model call it alike and get the same.

    Requests that let the model read the same tokens, such as the choices of one token behind a question, share a row.
    """
    rows: dict[Row, list[int]] = {}
    for number, request in enumerate(requests):
        rows.setdefault(request.inputs(max_tokens), []).append(number)
    keys, lanes, found = sorted(rows), Lanes.of(model), dict[int, Score]()
    was_training = model.training
    model.eval()
    for batch, counts in lanes.deal(batches_of([len(key) for key in keys], batch_tokens)):
        inputs = [keys[row] for row in batch]
        asked = [(row, number) for row, key in enumerate(inputs) for number in rows[key]]
        scores = _score_batch(model, inputs, [(row, requests[number].continuation) for row, number in asked], device)
        if counts:
            found |= {number: one for (_row, number), one in zip(asked, scores, strict=True)}
    release_gathered(model)
    model.train(was_training)
    found = lanes.share(found)
    return [found[number] for number in range(len(requests))]


def _score_batch(
    model: Transformer, inputs: Sequence[Row], asked: Sequence[tuple[int, Row]], device: torch.device | str
) -> list[Score]:
    """Scores of (row, continuation), whose last token follows the row's last one."""
    tokens, positions = padded(inputs, device)
    scored = [
        (row, len(inputs[row]) - len(continuation) + place, token)
        for row, continuation in asked
        for place, token in enumerate(continuation)
    ]
    rows, places, targets = torch.tensor(scored, device=device).unbind(1)  # [N] each

    def likelihoods(hidden: Tensor, weight: Tensor) -> Tensor:
        each = max(1, LOGIT_BYTES // (4 * model.vocab_size))
        parts = zip(hidden[rows, places].split(each), targets.split(each), strict=True)
        return torch.cat([_of_targets(logits(part, weight), wanted) for part, wanted in parts], dim=1)  # [2, N]

    sizes = [len(continuation) for _row, continuation in asked]
    nats, top1 = model(tokens, positions, None, None, likelihoods).double().cpu()
    return [
        Score(float(one.sum()), size, int(hits.sum()))
        for one, hits, size in zip(nats.split(sizes), top1.split(sizes), sizes, strict=True)
    ]


def _of_targets(values: Tensor, targets: Tensor) -> Tensor:
    """[2, n] from logits [n, V]: log-likelihood of each target, and 1 where it is the most likely token."""
    values = values.float()
    nats = values.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return torch.stack((nats, (values.argmax(-1) == targets).float()))


@torch.no_grad()
def answer(
    model: Transformer,
    prompts: Sequence[Row],
    max_new_tokens: int,
    is_done: Callable[[Sequence[int]], bool],
    device: torch.device | str,
    batch_tokens: int,
) -> list[list[int]]:
    """The most likely tokens after each prompt, until is_done of those that are there, or max_new_tokens.

    Without a key-value cache: rows of a batch end at different places, and the ranks of a sharded model, which all
    call this alike, have to make equal passes.
    """
    lanes, found = Lanes.of(model), dict[int, list[int]]()
    was_training = model.training
    model.eval()
    for batch, counts in lanes.deal(batches_of([len(one) + max_new_tokens for one in prompts], batch_tokens)):
        new: list[list[int]] = [[] for _ in batch]
        waiting = list(range(len(batch)))
        while lanes.any(bool(waiting), device):
            rows = [(*prompts[batch[row]], *new[row]) for row in waiting or [0]]
            for row, token in zip(waiting, _next_tokens(model, rows, device), strict=False):
                new[row].append(token)
            waiting = [row for row in waiting if len(new[row]) < max_new_tokens and not is_done(new[row])]
        if counts:
            found |= dict(zip(batch, new, strict=True))
    release_gathered(model)
    model.train(was_training)
    found = lanes.share(found)
    return [found[number] for number in range(len(prompts))]


def _next_tokens(model: Transformer, rows: Sequence[Row], device: torch.device | str) -> list[int]:
    tokens, positions = padded(rows, device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)

    def best(hidden: Tensor, weight: Tensor) -> Tensor:
        return logits(hidden[torch.arange(len(rows), device=device), last], weight).argmax(-1)

    return [int(token) for token in model(tokens, positions, None, None, best)]
