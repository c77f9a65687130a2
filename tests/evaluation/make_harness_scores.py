"""Write what lm-evaluation-harness says of the tasks in cases.py, on the exported model: harness/scores.json.

    python -m tests.evaluation.make_harness_scores

It needs `lm_eval[hf]` (the extra `bench`). Of data sets that the harness knows, its own task files are used.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from pretrainer.config import TaskConfig
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.model.hf import to_hf
from tests.evaluation.cases import CONFIG, MAX_TOKENS, SCORES, TASKS, digest, model, tokenizer

COMMAND = "python -m tests.evaluation.make_harness_scores"


def harness_config(task: TaskConfig) -> dict[str, Any]:
    """The task as lm-evaluation-harness is told it; data sets that it knows by its own files."""
    files = {"test": task.uri} | ({"train": task.shots_uri} if task.shots_uri else {})
    return OURS[task.kind](task) | {
        "task": task.name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files},
        "training_split": None, "validation_split": None, "test_split": "test",
        "fewshot_split": "train" if task.shots_uri else "test", "num_fewshot": task.shots,
        "fewshot_config": {"sampler": {"seeded": "default", "first": "first_n"}[task.sampler]},
        "description": task.description,
    }  # fmt: skip


def _published(path: str, *metrics: str) -> Any:
    def config(task: TaskConfig) -> dict[str, Any]:
        import lm_eval.tasks
        from lm_eval.tasks._yaml_loader import load_yaml

        found = dict(load_yaml(Path(lm_eval.tasks.__file__).parent / path))
        return found | {"metric_list": _metrics(*metrics)} if metrics else found

    return config


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _multiple_choice(task: TaskConfig) -> dict[str, Any]:
    shape = {
        "letters": {
            "doc_to_text": "{{question}}\nA. {{options[0]}}\nB. {{options[1]}}\nC. {{options[2]}}\nD. {{options[3]}}\n"
            "Answer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
        },
        "piqa": {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_choice": "{{[sol1, sol2]}}",
                 "doc_to_target": "label"},
    }[task.name.partition("-")[0]]  # fmt: skip
    return shape | {
        "output_type": "multiple_choice", "metric_list": _metrics(*CHOICE), "target_delimiter": task.delimiter,
        "fewshot_delimiter": task.shot_delimiter,
    }  # fmt: skip


def _cloze(task: TaskConfig) -> dict[str, Any]:
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    return {
        "output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + answer}}",
        "target_delimiter": "", "metric_list": [*_metrics("acc"), perplexity],
    }  # fmt: skip


def _generate(task: TaskConfig) -> dict[str, Any]:
    match = _metrics("exact_match")[0] | {f"ignore_{name}": True for name in task.ignore if name != "whitespace"}
    stripped = [{"function": "remove_whitespace"}] if "whitespace" in task.ignore else []
    return {
        "output_type": "generate_until", "doc_to_text": "{{context}}", "doc_to_target": "answer",
        "metric_list": [match],
        "generation_kwargs": {"until": list(task.stop), "do_sample": False, "max_gen_toks": task.max_new_tokens},
        "filter_list": [{"name": "none", "filter": [*stripped, {"function": "take_first"}]}],
    }  # fmt: skip


def _text(task: TaskConfig) -> dict[str, Any]:
    aggregations = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity",
                    "bits_per_byte": "bits_per_byte"}  # fmt: skip
    metrics = [{"metric": k, "aggregation": v, "higher_is_better": False} for k, v in aggregations.items()]
    return {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": metrics}  # fmt: skip


CHOICE = ("acc", "acc_norm", "acc_bytes")
OURS = {
    "multiple_choice": _multiple_choice, "cloze": _cloze, "generate": _generate, "text": _text,
    "hellaswag": _published("hellaswag/hellaswag.yaml", *CHOICE), "arc": _published("arc/arc_easy.yaml", *CHOICE),
    "lambada": _published("lambada/lambada_openai.yaml"), "winogrande": _published("winogrande/default.yaml"),
}  # fmt: skip


def harness_scores(folder: Path, tasks: list[TaskConfig]) -> dict[str, Any]:
    """Task -> metrics and every request with its answer, by lm-evaluation-harness on an exported folder."""
    from lm_eval.models.huggingface import HFLM

    found = {}
    for task in tasks:
        # A text that is scored whole would else begin with two bos; see encoding.py.
        bos = {"add_bos_token": False} if task.kind == "text" else {}
        lm = HFLM(str(folder), device="cpu", dtype="float32", batch_size=4, **bos)
        assert lm.max_length == MAX_TOKENS
        found[task.name] = _scores_of(lm, task)
    return found


def _scores_of(lm: Any, task: TaskConfig) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask

    results = simple_evaluate(
        lm, tasks=[ConfigurableTask(config=harness_config(task))], fewshot_random_seed=task.seed,
        limit=task.max_documents, bootstrap_iters=1000, log_samples=True,
    )  # fmt: skip
    metrics = {k.removesuffix(",none"): v for k, v in results["results"][task.name].items() if k.endswith(",none")}
    samples = sorted(results["samples"][task.name], key=lambda sample: sample["doc_id"])
    return {"metrics": metrics, "examples": [list(_requests(sample)) for sample in samples]}


def _requests(sample: dict[str, Any]) -> Iterator[list[Any]]:
    """[context, continuation, log-likelihood, is greedy], [text, "", log-likelihood] or [context, "", answer]."""
    for arguments, (response,) in zip(sample["arguments"], sample["resps"], strict=True):
        values = list(arguments.values()) if isinstance(arguments, dict) else list(arguments)
        texts = [value for value in values if isinstance(value, str)]
        answer = list(response) if isinstance(response, tuple | list) else [response]
        yield [texts[0], texts[1] if len(texts) > 1 else "", *answer]


def export(folder: Path) -> None:
    ids = {f"{role}_token_id": getattr(tokenizer(), f"{role}_id") for role in ("bos", "eos", "pad")}
    to_hf(model().state_dict(), CONFIG, tokenizer().vocab_size, folder, MAX_TOKENS, ids)
    export_hf(tokenizer(), folder)


def main() -> None:
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
        found = harness_scores(Path(folder), TASKS)
    names = ("lm_eval", "transformers", "torch", "tokenizers", "datasets")
    origin = {name: version(name) for name in names} | {"python": platform.python_version(), "command": COMMAND}
    record = {"origin": origin, "weights_sha256": digest(model()), "tasks": found}
    SCORES.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
