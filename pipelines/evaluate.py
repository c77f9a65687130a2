"""Score a model on task files, and a run on its held-out documents: one checkpoint, or the curve over all of them.

    python -m pipelines.evaluate RUN [--checkpoints all] 'evaluation.tasks=[{name: arc, uri: arc.jsonl, kind: arc}]'
    python -m pipelines.evaluate HF_FOLDER --config tasks.yaml --to evaluation

RUN is a run folder (path or URI) or the name of a run under run.storage; HF_FOLDER holds config.json, safetensors and
tokenizer files. Tasks are those of the run's config, of the section `evaluation` in --config FILE, or of arguments.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipelines.driver.checkpoints import choose_checkpoints, download, run_config
from pipelines.driver.cli import run_main
from pipelines.driver.evaluating import open_warning, unprotected
from pipelines.driver.suite import context_of, held_out_tasks
from pipelines.generate import load_model
from pretrainer.config import EvaluationConfig, RunConfig
from pretrainer.config_load import parse_evaluation
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import data_folder
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import UserError
from pretrainer.evaluation.evaluate import evaluate_tasks
from pretrainer.evaluation.report import Point, as_plain, render, table
from pretrainer.evaluation.tasks import Task, read_task
from pretrainer.model.hf import from_hf
from pretrainer.model.transformer import Transformer
from pretrainer.storage import Store, resolve_run

DEFAULT_CONTEXT = 2048
"""Tokens that a folder's model is taken to read where its config.json does not say, as in the harness."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: weights of one model, by step, loaded one after the other."""

    uri: str
    tokenizer: Tokenizer
    max_tokens: int
    tasks: list[Task]
    models: dict[int | None, Callable[[], Transformer]]
    batch_tokens: int
    report: Store | None  # where it is written unless --to says so
    warning: str | None = None


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    place = resolve_run(options.model, options.storage)
    is_folder = place.exists("config.json") and not place.exists("config.yaml")
    subject = open_folder(place, options) if is_folder else open_run(place, options)
    if not subject.tasks:
        raise UserError("there is no task: give --config FILE with evaluation.tasks, or evaluation.tasks=… itself")
    if subject.warning:
        print(subject.warning)
    points = []
    for step, load in subject.models.items():
        results = evaluate_tasks(
            load().to(options.device), subject.tokenizer, subject.tasks, options.device, subject.max_tokens,
            subject.batch_tokens,
        )  # fmt: skip
        points.append(Point(step, results))
        if len(subject.models) > 1:
            print(f"step {step:,} is scored, {len(points)} of {len(subject.models)}", flush=True)
    print("\n".join(table(points)))
    write_report(subject, points, Store(options.to) if options.to else subject.report)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluate", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("model", metavar="RUN|HF_FOLDER", help="run folder (path or URI), name of a run under --storage, or HF folder")
    add("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    add("--checkpoints", default="newest", help="newest, best, all, or steps such as 200,400 (default: %(default)s)")
    add("--config", metavar="FILE", help="YAML file (path or URI) whose section evaluation is used")
    add("--to", help="folder or URI for evaluation.json and .html; RUN/evaluation by default, none for HF_FOLDER")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device (default: %(default)s)")
    add("overrides", nargs="*", metavar="evaluation.field=value", help="fields of the section evaluation")
    return parser.parse_intermixed_args(arguments)


def read_config(options: argparse.Namespace, run: Store | None) -> EvaluationConfig:
    """The section `evaluation` of --config, else of the run."""
    if options.config is None:
        text, where = ("", "") if run is None else (run.read_text("config.yaml"), f"{run.uri}/config.yaml")
        return parse_evaluation(text, options.overrides, where)
    try:
        return parse_evaluation(Store(options.config).read_text(), options.overrides, options.config)
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(f"--config {options.config} cannot be read ({error}): give a YAML file") from None


# ----------------------------------------------------------------------------------------------------------- a run


def open_run(run: Store, options: argparse.Namespace) -> Subject:
    config = run_config(run)
    if not config.model.causal:
        raise UserError(f"{run.uri} was trained with model.causal=false: it fills masks and gives no text a likelihood")
    wanted, tokenizer = read_config(options, run), load_tokenizer(data_folder(config, run).uri)
    folders, rows = choose_checkpoints(run, options.checkpoints), config.model.rows(tokenizer.vocab_size)
    models: dict[int | None, Callable[[], Transformer]] = {
        step: partial(load_model, config, run, folder, rows) for step, folder in folders.items()
    }
    tasks = [read_task(task) for task in wanted.tasks] + held_out_tasks(data_folder(config, run))
    open_files = ", ".join(unprotected(config, wanted.tasks))
    return Subject(
        run.uri, tokenizer, context_of(config), tasks, models, wanted.batch_tokens,
        run.child("evaluation"), open_warning(open_files) if open_files else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ a Hugging Face folder


def open_folder(folder: Store, options: argparse.Namespace) -> Subject:
    if options.checkpoints != "newest":
        raise UserError(f"{folder.uri} is one model: --checkpoints is for run folders")
    wanted = read_config(options, None)
    with tempfile.TemporaryDirectory() as local:
        download(folder, Path(local))
        state, config, vocab_size = from_hf(local)
        tokenizer = _folder_tokenizer(folder, Path(local))
    model = Transformer(config, vocab_size)
    model.load_state_dict(state)
    tasks = [read_task(task) for task in wanted.tasks]
    context = config.context or DEFAULT_CONTEXT
    return Subject(folder.uri, tokenizer, context, tasks, {None: model.eval}, wanted.batch_tokens, None)


def _folder_tokenizer(folder: Store, local: Path) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (local / name).exists():
            return Tokenizer.from_bytes((local / name).read_bytes())
    raise UserError(f"{folder.uri} has no tokenizer.json and no tokenizer.model: copy the model's tokenizer there")


# ---------------------------------------------------------------------------------------------------------- report


def write_report(subject: Subject, points: Sequence[Point], place: Store | None) -> None:
    if place is None:
        return
    place.write("evaluation.json", json.dumps(as_plain(subject.uri, points), indent=1).encode())
    place.write("evaluation.html", render(subject.uri, points))
    print(f"\n{place.child('evaluation.html').uri}")


if __name__ == "__main__":
    run_main(main)
