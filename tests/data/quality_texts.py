"""Texts for the tests of the quality classifier."""

from __future__ import annotations

import ast
import sysconfig
from functools import cache
from pathlib import Path

import pyarrow as pa
from hypothesis import strategies as st

from pretrainer.data.dedup import minhash
from pretrainer.data.quality.features import FeatureScheme

SMALL = FeatureScheme(bucket_bits=12)
LETTERS = st.characters(codec="utf-8") | st.sampled_from("aB19 .-\t\n\u4e2d\u3042\u3002\u044f\u00e9\u00a0")
TEXTS = st.text(LETTERS, max_size=60)
LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def array(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@cache
def prose_and_code() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(docstrings, functions without one) of some modules of the standard library."""
    prose, code = [], []
    for path in sorted(LIBRARY.glob("[a-d]*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 150:
                prose.append(docstring)
            elif isinstance(node, ast.FunctionDef) and not docstring and node.end_lineno:
                code.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return tuple(prose), tuple(text for text in code if len(text) > 150)


def kind_of(character: str) -> int:
    point = ord(character)
    if any(a <= point <= b for a, b in minhash._SINGLES) or 0x20000 <= point < 0x40000:
        return minhash._SINGLE
    if any(a <= point <= b for a, b in minhash._SEPARATORS) or (point < 128 and not character.isalnum()):
        return minhash._SEPARATOR
    return minhash._LETTER


def is_blank(character: str) -> bool:
    return ord(character) <= 0x20 or ord(character) == 0x7F


def fold(text: str) -> str:
    return "".join("0" if c in "0123456789" else c.lower() if ord(c) < 128 else c for c in text)


def reference_tokens(text: str) -> list[str]:
    """Tokens as the module docstring defines them."""
    tokens, run = [], ""
    for character in text:
        if kind_of(character) == minhash._LETTER:
            run += character
            continue
        tokens += [run] * bool(run) + [character] * (not is_blank(character))
        run = ""
    return [fold(token) for token in tokens + [run] * bool(run)]
