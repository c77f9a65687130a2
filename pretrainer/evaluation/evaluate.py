"""Tasks and a model to results.

    prepared = [prepare(task, tokenizer, max_tokens) for task in tasks]     token ids; finds what cannot be scored
    results = [run(model, tokenizer, one, device) for one in prepared]      as often as there are weights

or both by `evaluate_tasks`. All ranks of a sharded model call these alike, in lockstep, and get the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pretrainer.errors import UserError
from pretrainer.evaluation.encoding import Request, TextTokenizer, encode, encode_pair, encode_windows
from pretrainer.evaluation.kinds import Example, Scoring
from pretrainer.evaluation.lanes import Row
from pretrainer.evaluation.metrics import METRICS, Metrics, answer_metrics, guess
from pretrainer.evaluation.scoring import Score, answer, score
from pretrainer.evaluation.tasks import Task
from pretrainer.model.transformer import Transformer

BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Prepared:
    """A task in token ids, for one tokenizer and one context of the model."""

    task: Task
    max_tokens: int
    requests: tuple[tuple[Request, ...], ...] = ()  # of each example; none where answers are generated
    prompts: tuple[Row, ...] = ()  # of each example; only where answers are generated


@dataclass(frozen=True)
class TaskResult:
    """What became of a task; the same on every rank."""

    name: str
    scoring: Scoring
    shots: int
    documents: int
    metrics: Metrics
    guess: float | None  # accuracy of a blind guess
    scores: tuple[tuple[Score, ...], ...] = ()  # of each example, or
    answers: tuple[str, ...] = ()


def prepare(task: Task, tokenizer: TextTokenizer, max_tokens: int) -> Prepared:
    """UserError where an answer does not fit into what the model reads."""
    if task.scoring == "generate":
        return Prepared(task, max_tokens, prompts=_prompts(task, tokenizer, max_tokens))
    found = []
    for number, (example, before) in enumerate(zip(task.examples, task.before, strict=True), 1):
        found.append(tuple(_requests(task, example, before, tokenizer, max_tokens)))
        for request in found[-1]:
            if not 0 < len(request.continuation) <= max_tokens:
                raise UserError(
                    f"task {task.config.name}: an answer of example {number:,} has {len(request.continuation):,} "
                    f"tokens, and the model reads {max_tokens:,}: leave the line out, or use kind text"
                )
    return Prepared(task, max_tokens, tuple(found))


def _requests(
    task: Task, example: Example, before: str, tokenizer: TextTokenizer, max_tokens: int
) -> Sequence[Request]:
    if task.scoring == "text":
        return list(encode_windows(tokenizer, example.pairs[0][1], max_tokens))
    return [encode_pair(tokenizer, before + context, continuation) for context, continuation in example.pairs]


def _prompts(task: Task, tokenizer: TextTokenizer, max_tokens: int) -> tuple[Row, ...]:
    """The end of each question that leaves room for the answer."""
    new = task.config.max_new_tokens
    room = max_tokens - new
    if room < 1:
        raise UserError(
            f"task {task.config.name}: evaluation.tasks[].max_new_tokens={new} leaves no room for a question in the "
            f"{max_tokens:,} tokens that the model reads: use fewer"
        )
    questions = (before + example.pairs[0][0] for example, before in zip(task.examples, task.before, strict=True))
    return tuple(tuple(encode(tokenizer, question)[-room:] or [tokenizer.bos_id]) for question in questions)


def run(
    model: Transformer, tokenizer: TextTokenizer, prepared: Prepared, device: torch.device | str,
    batch_tokens: int = BATCH_TOKENS,
) -> TaskResult:  # fmt: skip
    """The result of a task for the weights that the model has now; its training mode is left as it was."""
    task, scores, answers = prepared.task, list[tuple[Score, ...]](), list[str]()
    if task.scoring == "generate":
        answers = _answers(model, tokenizer, prepared, device, batch_tokens)
        metrics = answer_metrics(task.config, task.examples, answers)
    else:
        requests = [request for one in prepared.requests for request in one]
        flat = iter(score(model, requests, device, prepared.max_tokens, batch_tokens))
        scores = [tuple(next(flat) for _ in one) for one in prepared.requests]
        metrics = METRICS[task.scoring](task.examples, scores)
    return TaskResult(
        task.config.name, task.scoring, task.config.shots, len(task.examples), metrics,
        guess(task.scoring, task.examples), tuple(scores), tuple(answers),
    )  # fmt: skip


def _answers(
    model: Transformer, tokenizer: TextTokenizer, prepared: Prepared, device: torch.device | str, batch_tokens: int
) -> list[str]:
    stop = prepared.task.config.stop

    def is_done(ids: Sequence[int]) -> bool:
        return ids[-1] == tokenizer.eos_id or any(end in tokenizer.decode(ids) for end in stop)

    found = answer(model, prepared.prompts, prepared.task.config.max_new_tokens, is_done, device, batch_tokens)
    return [_before_stop(tokenizer.decode(ids), stop) for ids in found]


def _before_stop(text: str, stop: Sequence[str]) -> str:
    for end in stop:
        text = text.split(end)[0]
    return text


def evaluate_tasks(
    model: Transformer, tokenizer: TextTokenizer, tasks: Sequence[Task], device: torch.device | str, max_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
) -> list[TaskResult]:  # fmt: skip
    """One result per task. max_tokens is what the model reads at most: its context in training, or that of its folder.

    UserError for a model that does not predict the next token, and before anything is scored as `prepare` says.
    """
    if not model.config.causal:
        raise UserError("a model with model.causal=false fills masks: its likelihood of a continuation has no meaning")
    prepared = [prepare(task, tokenizer, max_tokens) for task in tasks]
    return [run(model, tokenizer, one, device, batch_tokens) for one in prepared]
