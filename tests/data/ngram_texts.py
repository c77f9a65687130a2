"""Texts for the tests of the n-gram model."""

from __future__ import annotations

import ast
import sysconfig
from functools import cache
from pathlib import Path

import pyarrow as pa

from pretrainer.data.quality import corpus, train_ngrams
from pretrainer.data.quality.perplexity import PerplexityModel
from pretrainer.data.tokenizer.tokenizer import Tokenizer, train_tokenizer
from pretrainer.schema import DOCUMENTS

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def array(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@cache
def prose() -> tuple[str, ...]:
    """Docstrings of some modules of the standard library."""
    found = []
    for path in sorted(LIBRARY.glob("[a-f]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.append(ast.get_docstring(node) or "")
    return tuple(text for text in found if len(text) > 150)


@cache
def model() -> PerplexityModel:
    reference = corpus.each_once(array(*prose()), 0)
    tokenizer = Tokenizer.from_bytes(train_tokenizer(prose()[:200], "bpe", 700))
    return train_ngrams.train(reference, tokenizer, 3, 2, 0.2, None)


def documents(*texts: str) -> pa.Table:
    rows = [{"id": str(i), "shard": 0, "row": i, "text": t, "url": "", "language": "", "scores": []} for i, t in
            enumerate(texts)]  # fmt: skip
    return pa.Table.from_pylist(rows, DOCUMENTS)
