"""Fingerprint: what decides the tokens, as named parts, so that a change can be *named*.

The version of code is the hash of the syntax trees of the modules that a stage runs (comments and layout do not
count), with the versions of the libraries it uses, the Python minor version and the Unicode data version.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path


def digest(value: object) -> str:
    """SHA-256 of a JSON value, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_version(modules: Iterable[str], without: Iterable[str] = ()) -> str:
    """Hash of the syntax trees of these modules and of what they import of this package; docstrings do not count.

    `without` names modules that cannot change a token (storage, config, errors, bookkeeping).
    """
    trees: dict[str, str] = {}
    waiting, skipped = list(modules), set(without)
    while waiting:
        name = waiting.pop()
        if name in trees or name in skipped:
            continue
        tree = _parse(name)
        waiting += _imports_of_package(tree, name.partition(".")[0])
        trees[name] = ast.dump(_without_docstrings(tree))
    return digest(trees)


def _parse(name: str) -> ast.Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, name
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _imports_of_package(tree: ast.Module, package: str) -> list[str]:
    """Modules of the same package that a module imports, `from package.x import name` as x or as x.name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [
                name
                for name in submodules
                if importlib.util.find_spec(node.module).submodule_search_locations  # type: ignore[union-attr]
                and importlib.util.find_spec(name)
            ]
            found += modules or [node.module]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == package]
    return found


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            node.body = body[1:]  # type: ignore[attr-defined]
    return tree


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions that may change a result, Python's and Unicode's included."""
    return {
        **{name: importlib.metadata.version(name) for name in names},
        "python": ".".join(platform.python_version_tuple()[:2]),
        "unicode": unicodedata.unidata_version,
    }


def changed(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Names of the parts that differ, for a message."""
    return sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
