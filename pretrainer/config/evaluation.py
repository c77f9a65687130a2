"""What a model is evaluated on: task files of JSON lines, scored the way EleutherAI's lm-evaluation-harness does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.errors import require

Kind = Literal["multiple_choice", "cloze", "generate", "text", "hellaswag", "arc", "lambada", "winogrande"]
Cadence = Literal["medium", "full"]
LOWER_IS_BETTER = ("val_loss", "perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity")
"""Of these the best checkpoint has the least; of every other metric, such as acc_norm, the most."""
TEMPLATED = ("multiple_choice", "cloze", "generate", "text")
"""Kinds whose lines are described by context, choices and answer."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    name: str
    """Short name of the task, unique in the list; it heads its rows in tables and curves."""
    uri: str
    """File (path or URI) with a JSON object per line; .gz, .bz2, .zst and .lz4 are opened."""
    kind: Kind
    """How a line is read: as the data set of that name is published, or the first four by context, choices, answer."""
    shots: int = 0
    """Solved examples before each question."""
    shots_uri: str | None = None
    """File that the examples are taken from; by default the task's own, without the question itself."""
    sampler: Literal["seeded", "first"] = "seeded"
    """Examples drawn for each line by Python's random generator, or the first ones of the file for all."""
    seed: int = 1234
    """Seed of the drawn examples; the harness uses this one."""
    description: str = ""
    """Text before everything else, taken as it stands: give it its own line ends."""
    max_documents: int | None = None
    """Only the first so many lines are scored; examples still come from the whole file."""
    context: str | None = None
    """The question, where {key} stands for a value of the line and {key.key} or {key.0} for one inside it; by default
    {context}, and {text} for kind text."""
    choices: tuple[str, ...] = ()
    """Answers to choose from, written like context, {choices} by default; {key} alone may name a list and then stands
    for all its elements."""
    answer: str | None = None
    """Right answer, written like context, {answer} by default: its text or its number from 0 among choices; generate
    also takes a list of texts."""
    delimiter: str = " "
    """What stands between a question and an answer; it is scored as part of the answer."""
    shot_delimiter: str = "\n\n"
    """What stands behind each example."""
    max_new_tokens: int = 64
    """generate: tokens that the model may write."""
    stop: tuple[str, ...] = ("\n\n",)
    """generate: the answer ends before the first of these texts."""
    ignore: tuple[Literal["whitespace", "case", "punctuation"], ...] = ("whitespace",)
    """generate: what does not count when texts are compared; whitespace is that around the model's answer."""

    def __post_init__(self) -> None:
        where = f"evaluation.tasks[{self.name}]"
        require(bool(self.name.strip()), "evaluation.tasks[].name", self.name, "give the task a name")
        require(bool(self.uri), f"{where}.uri", self.uri, "name a file of JSON lines")
        require(self.shots >= 0, f"{where}.shots", self.shots, "use 0 or more")
        require(
            self.kind != "text" or self.shots == 0,
            f"{where}.shots",
            self.shots,
            "a text has no question that examples could stand before: use 0",
        )
        require(
            self.max_documents is None or self.max_documents >= 1,
            f"{where}.max_documents",
            self.max_documents,
            "use 1 or more",
        )
        require(self.max_new_tokens >= 1, f"{where}.max_new_tokens", self.max_new_tokens, "use 1 or more")
        require(all(self.stop), f"{where}.stop", list(self.stop), "an empty text would end every answer: leave it out")
        for name in ("context", "choices", "answer") if self.kind not in TEMPLATED else ():
            given = getattr(self, name)
            require(not given, f"{where}.{name}", given, f"kind {self.kind} knows its lines: leave it out")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    tasks: tuple[TaskConfig, ...] = ()
    """Task files that `pipelines.evaluate` scores a model on."""
    batch_tokens: int = 16_384
    """Tokens of one forward pass, padding included; a single longer text is a batch of its own."""
    medium_every_steps: int | None = None
    """While training, choices and cloze tasks are scored at checkpoints of these steps; none by default."""
    full_every_steps: int | None = None
    """While training, all tasks and the held-out documents are scored at checkpoints of these steps, and at the end."""
    where: Literal["auto", "beside", "workers"] = "auto"
    """beside: by a task of its own while training goes on; workers: by the trainers, which wait; auto: beside where
    the cluster has cpus and gpus to spare at the start."""
    cpus: float = 1.0
    """CPUs of the task beside the training."""
    gpus: float | None = None
    """GPUs of the task beside the training; one where the trainers have GPUs, if none is given."""
    timeout_s: float = 3600.0
    """Seconds after which the task beside the training is given up for a checkpoint."""
    best_by: str = "val_loss"
    """What train.keep_best compares: val_loss, or TASK/METRIC such as arc/acc_norm."""
    stop_after_validations: int | None = None
    """The run ends at the checkpoint behind so many held-out validations in a row that were no better; none by
    default."""
    min_improvement: float = 0.0
    """Nats per token by which a held-out loss must be less than the best before it to be better."""

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        require(len(set(names)) == len(names), "evaluation.tasks[].name", names, "give every task its own name")
        for name in ("batch_tokens", "medium_every_steps", "full_every_steps", "stop_after_validations"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"evaluation.{name}", value, "use 1 or more")
        for name in ("cpus", "gpus", "min_improvement"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"evaluation.{name}", value, "use 0 or more")
        require(self.timeout_s > 0, "evaluation.timeout_s", self.timeout_s, "use a positive number")
        task, _slash, metric = self.best_by.rpartition("/")
        require(
            self.best_by == "val_loss" or (bool(metric) and task in names),
            "evaluation.best_by",
            self.best_by,
            f"use val_loss, or TASK/METRIC of one of the tasks {', '.join(names) or '(there is none)'}",
        )

    @property
    def is_periodic(self) -> bool:
        """Whether checkpoints are evaluated while training."""
        return self.medium_every_steps is not None or self.full_every_steps is not None

    def due(self, step: int, is_last: bool) -> Cadence | None:
        """How the checkpoint of a step is evaluated; the last one of a run always as fully as any."""
        medium, full = self.medium_every_steps, self.full_every_steps
        if full is not None and (is_last or step % full == 0):
            return "full"
        return "medium" if medium is not None and (is_last or step % medium == 0) else None
