"""The model, the tokenizer and the tasks whose scores by lm-evaluation-harness are recorded in harness/scores.json.

Weights are made of whole numbers alone, so they are the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

from pretrainer.config import ModelConfig, TaskConfig
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.data.tokenizer.train import NUM_BYTE_PIECES
from pretrainer.model.transformer import Transformer
from pretrainer.schema import FIRST_TEXT_ID

FOLDER = Path(__file__).parent / "harness"
SCORES = FOLDER / "scores.json"
MAX_TOKENS = 96
CONFIG = ModelConfig(layers=2, hidden=64, heads=4, kv_heads=2, tie_embeddings=False)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes((FOLDER / "tokenizer.model").read_bytes())


@cache
def model() -> Transformer:
    """Far from uniform, and without sense."""
    return exact_weights(Transformer(CONFIG, tokenizer().vocab_size)).eval()


@torch.no_grad()
def exact_weights(model: Transformer) -> Transformer:
    for name, parameter in model.named_parameters():
        random = np.random.RandomState(zlib.crc32(name.encode()))  # its stream is frozen, by numpy's policy
        noise = torch.from_numpy(random.randint(-(2**15), 2**15, size=parameter.shape) / 2.0**15)
        scale = 1.0 if name.startswith("head") else 0.25
        parameter.copy_(noise * scale + (1.0 if "norm" in name else 0.0))
    assert model.head is not None
    model.head.weight[: FIRST_TEXT_ID + NUM_BYTE_PIECES] = 0  # says pieces of text, hardly ever single bytes
    return model


def digest(model: Transformer) -> str:
    """Of all weights, by name."""
    parts = [name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(model.state_dict().items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _task(name: str, file: str, kind: str, **fields: object) -> TaskConfig:
    return TaskConfig(name=name, uri=str(FOLDER / file), kind=kind, **fields)  # type: ignore[arg-type]


_LETTERS = {
    "context": "{question}\nA. {options.0}\nB. {options.1}\nC. {options.2}\nD. {options.3}\nAnswer:",
    "choices": ("A", "B", "C", "D"),
    "answer": "{answer}",
}
_PIQA = {"context": "Question: {goal}\nAnswer:", "choices": ("{sol1}", "{sol2}"), "answer": "{label}"}
_TRAIN = str(FOLDER / "arc_train.jsonl")

TASKS = [
    _task("hellaswag", "hellaswag.jsonl", "hellaswag"),
    _task("hellaswag-2", "hellaswag.jsonl", "hellaswag", shots=2),
    _task("arc", "arc.jsonl", "arc"),
    _task("arc-3-train", "arc.jsonl", "arc", shots=3, shots_uri=_TRAIN),
    _task("arc-2-seed-7", "arc.jsonl", "arc", shots=2, seed=7, max_documents=5),
    _task("arc-2-first", "arc.jsonl", "arc", shots=2, sampler="first"),
    _task("lambada", "lambada.jsonl", "lambada"),
    _task("lambada-1", "lambada.jsonl", "lambada", shots=1),
    _task("winogrande", "winogrande.jsonl", "winogrande"),
    _task("winogrande-2", "winogrande.jsonl", "winogrande", shots=2),
    _task("letters", "letters.jsonl", "multiple_choice", description="Questions about everyday life.\n\n", **_LETTERS),
    _task("letters-1", "letters.jsonl", "multiple_choice", shots=1, **_LETTERS),
    _task("piqa", "piqa.jsonl", "multiple_choice", delimiter="\t", shot_delimiter="\n", shots=1, **_PIQA),
    _task("cloze", "cloze.jsonl", "cloze"),
    _task("cloze-2", "cloze.jsonl", "cloze", shots=2),
    _task("generate", "generate.jsonl", "generate", stop=("\n", "e"), max_new_tokens=12),
    _task("generate-1", "generate.jsonl", "generate", shots=1, max_new_tokens=8, ignore=("case", "punctuation")),
    _task("text", "text.jsonl", "text"),
]  # fmt: skip
