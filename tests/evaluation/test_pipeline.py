"""`python -m pipelines.evaluate` on a run folder and on a Hugging Face folder: the same scores as the package gives.

    python -m pytest -q tests/evaluation/test_pipeline.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines import evaluate
from pretrainer.config import Config, DataConfig, EvaluationConfig, RunConfig, SourceConfig, TrainConfig
from pretrainer.config_load import to_yaml
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.errors import UserError
from pretrainer.evaluation.evaluate import evaluate_tasks
from pretrainer.evaluation.tasks import read_task
from pretrainer.model.hf import to_hf
from pretrainer.model.transformer import Transformer
from pretrainer.schema import DOCUMENTS, to_ipc
from pretrainer.storage import Store
from pretrainer.train.checkpoints.checkpoint import save_sharded
from pretrainer.train.checkpoints.committed import SNAPSHOT, folder_name
from pretrainer.train.checkpoints.copies import BEST, MILESTONES, Place
from pretrainer.train.optim.optimizer import build_optimizer
from tests.evaluation.cases import CONFIG, MAX_TOKENS, TASKS, model, tokenizer
from tests.model.fill import fill

PICKED = tuple(task for task in TASKS if task.name in ("letters", "cloze", "generate"))
TRAIN = TrainConfig(steps=30, global_batch_tokens=2 * MAX_TOKENS)
HELD_OUT = ["The first held-out text.", "Another one, ein zweiter: größer.", "not used by the run's validation"]


def run_config(folder: Path) -> Config:
    source = SourceConfig(name="web", uris=("nowhere/*.jsonl",))
    data = DataConfig(sources=(source,), seq_len=MAX_TOKENS, slot_sequences=2)
    run = RunConfig(name="one", storage=str(folder))
    return Config(run=run, data=data, model=CONFIG, train=TRAIN, evaluation=EvaluationConfig(tasks=PICKED))


def weights_of(step: int) -> Transformer:
    """Step 30 has the weights of cases.py, others have their own."""
    if step == 30:
        return model()
    named = fill(Transformer(CONFIG, tokenizer().vocab_size))
    for parameter in named.parameters():
        parameter.data *= 1 + step / 100
    return named.eval()


def save(run: Store, step: int) -> str:
    folder = f"checkpoints/{folder_name(step, 0)}"
    whole = weights_of(step)
    save_sharded(whole, build_optimizer(whole, TRAIN), {}, Path(run.location.path) / folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Committed: steps 20 and 30; a milestone of 10; the best is 20."""
    folder = tmp_path_factory.mktemp("runs")
    run = Store(str(folder / "one"))
    run.write("config.yaml", to_yaml(run_config(folder)).encode())
    run.write("data/tokenizer.model", tokenizer().data)
    ids = [f"d{number}" for number in range(len(HELD_OUT))]
    rows = [{"id": i, "shard": 0, "row": 0, "text": text, "url": "", "language": "", "licence": "", "scores": []}
            for i, text in zip(ids, HELD_OUT, strict=True)]  # fmt: skip
    run.write("data/held_out/web.documents.arrow", to_ipc(pa.Table.from_pylist(rows, DOCUMENTS)))
    run.write("data/held_out/summary.json", json.dumps({"web": {"documents": 2}}).encode())
    folders = {step: save(run, step) for step in (10, 20, 30)}
    Place(MILESTONES, run.child(MILESTONES)).add(run, 10, folders[10], {})
    Place(BEST, run.child(BEST)).add(run, 20, folders[20], {"val_loss": 1.0})
    results = [{"checkpoint_dir_name": folder_name(s, 0), "metrics": {"step": s}} for s in (20, 30)]
    run.write(SNAPSHOT, json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[-1]}).encode())
    return run


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    ids = {f"{role}_token_id": getattr(tokenizer(), f"{role}_id") for role in ("bos", "eos", "pad")}
    to_hf(model().state_dict(), CONFIG, tokenizer().vocab_size, tmp_path / "hf", MAX_TOKENS, ids)
    export_hf(tokenizer(), tmp_path / "hf")
    return tmp_path / "hf"


def report(folder: Path) -> list[dict[str, Any]]:
    assert (folder / "evaluation.html").read_bytes().startswith(b"<!doctype html>")
    return list(json.loads((folder / "evaluation.json").read_text())["checkpoints"])


def expected(step: int) -> dict[str, float]:
    results = evaluate_tasks(weights_of(step), tokenizer(), [read_task(one) for one in PICKED], "cpu", MAX_TOKENS)
    return {f"{one.name} {name}": metric.value for one in results for name, metric in one.metrics.items()}


def values(checkpoint: dict[str, Any]) -> dict[str, float]:
    tasks = {name: task for name, task in checkpoint["tasks"].items() if not name.startswith("held-out")}
    return {f"{name} {key}": one["value"] for name, task in tasks.items() for key, one in task["metrics"].items()}


def test_the_newest_checkpoint_of_a_run_and_its_held_out_documents(
    run: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([run.uri, "--device", "cpu"]) == 0
    (newest,) = report(Path(run.location.path) / "evaluation")
    assert newest["step"] == 30 and values(newest) == expected(30)
    held_out = newest["tasks"]["held-out web"]
    assert held_out["documents"] == 2 and held_out["scoring"] == "text"
    printed = capsys.readouterr().out
    assert "letters: 7 lines, 0 shots, a blind guess 25 %" in printed and "people reach" in printed.lower()
    assert printed.rstrip().endswith("one/evaluation/evaluation.html")


def test_all_checkpoints_make_a_curve(run: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([run.uri, "--checkpoints", "all", "--to", str(tmp_path)]) == 0
    curve = report(tmp_path)
    assert [checkpoint["step"] for checkpoint in curve] == [10, 20, 30]
    for checkpoint in curve:
        assert values(checkpoint) == pytest.approx(expected(checkpoint["step"]), rel=1e-6)
    assert capsys.readouterr().out.startswith("warning: letters, cloze, generate were not kept out")
    perplexities = {checkpoint["tasks"]["cloze"]["metrics"]["perplexity"]["value"] for checkpoint in curve}
    assert len(perplexities) == 3
    assert (tmp_path / "evaluation.html").read_text().count("<circle") >= 3 * len(PICKED)


@pytest.mark.parametrize(
    ("wanted", "steps"), [("newest", [30]), ("best", [20]), ("all", [10, 20, 30]), ("30,10", [10, 30]), ("20", [20])]
)
def test_which_checkpoints(run: Store, wanted: str, steps: list[int]) -> None:
    assert list(evaluate.choose_checkpoints(run, wanted)) == steps


@pytest.mark.parametrize(("wanted", "words"), [("40", "no checkpoint of step 40"), ("last", "'last' is not possible")])
def test_a_checkpoint_that_is_not_there(run: Store, wanted: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate.choose_checkpoints(run, wanted)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    for wanted in ("newest", "all"):
        with pytest.raises(UserError, match="no committed checkpoint yet"):
            evaluate.choose_checkpoints(Store(str(tmp_path)), wanted)
    with pytest.raises(UserError, match="no best checkpoint"):
        evaluate.choose_checkpoints(Store(str(tmp_path)), "best")


def test_a_folder_of_hugging_face_gets_the_scores_of_its_run(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads as many tokens as its config.json says, and needs tasks from somewhere."""
    with pytest.raises(UserError, match="there is no task"):
        evaluate.main([str(exported)])
    (tmp_path / "tasks.yaml").write_text(to_yaml(run_config(tmp_path)))
    assert evaluate.main([str(exported), "--config", str(tmp_path / "tasks.yaml"), "--to", str(tmp_path / "out")]) == 0
    (only,) = report(tmp_path / "out")
    assert only["step"] is None and values(only) == pytest.approx(expected(30))
    before = sorted(path.name for path in exported.iterdir())
    assert evaluate.main([str(exported), "--config", str(tmp_path / "tasks.yaml")]) == 0
    assert sorted(path.name for path in exported.iterdir()) == before and "letters" in capsys.readouterr().out
    with pytest.raises(UserError, match="--checkpoints is for run folders"):
        evaluate.main([str(exported), "--checkpoints", "all"])


def test_tasks_of_the_command_line_take_the_place_of_the_run_s(run: Store, tmp_path: Path) -> None:
    task = f"{{name: mine, uri: {TASKS[0].uri}, kind: hellaswag, max_documents: 3}}"
    assert evaluate.main([run.uri, "--to", str(tmp_path), f"evaluation.tasks=[{task}]"]) == 0
    (newest,) = report(tmp_path)
    assert set(newest["tasks"]) == {"mine", "held-out web"} and newest["tasks"]["mine"]["documents"] == 3


def test_files_that_may_have_been_trained_on_are_named(run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(Path("x"))
    assert evaluate.unprotected(config, PICKED) == ["letters", "cloze", "generate"]
    folder = str(Path(TASKS[0].uri).parent)
    for patterns in ([folder], [f"{folder}/*.jsonl"], [task.uri for task in PICKED]):
        decontamination = replace(config.data.decontamination, benchmarks=tuple(patterns))
        protected = replace(config, data=replace(config.data, decontamination=decontamination))
        assert evaluate.unprotected(protected, PICKED) == []
    evaluate.main([run.uri])
    assert "letters, cloze, generate were not kept out of the training text" in capsys.readouterr().out


def test_a_model_that_fills_masks_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    masked = replace(config, model=replace(CONFIG, causal=False), train=replace(TRAIN, objective="mlm"))
    Store(str(tmp_path / "one")).write("config.yaml", to_yaml(masked).encode())
    with pytest.raises(UserError, match="causal=false"):
        evaluate.main([str(tmp_path / "one")])
