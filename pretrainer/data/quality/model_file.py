"""The form of a model file: safetensors (no pickle) with one JSON header that says what it is, and a digest of it all.

    data = pack("quality classifier", 1, {"documents": 10}, {"weights": weights})
    header, arrays = unpack(data, "quality classifier", 1, "data.quality.model")

The same contents give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from pretrainer.errors import UserError, require
from pretrainer.storage import Store

_KEY = "pretrainer"  # a single key, because safetensors writes several in any order
Header = dict[str, Any]
Arrays = dict[str, np.ndarray]


def pack(kind: str, version: int, header: Header, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Bytes of a model file. `header` holds plain JSON values."""
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    whole = {**header, "kind": kind, "version": version}
    whole["digest"] = _digest(whole, stored)
    return safetensors_numpy.save(stored, {_KEY: json.dumps(whole, sort_keys=True)})


def unpack(data: bytes, kind: str, version: int, field: str) -> tuple[Header, Arrays]:
    """(header, arrays) of a model file; UserError that begins with the config field if it is another one or damaged."""
    header = _header(data)
    if header is None or header.get("kind") != kind:
        found = "no model file of this package" if header is None else f"a {header.get('kind')}"
        raise UserError(f"{field}: the file is {found}, not a {kind}: {_remedy(kind)}")
    if header.get("version") != version:
        raise UserError(
            f"{field}: the {kind} has version {header.get('version')}, this code reads version {version}: "
            f"{_remedy(kind)} again"
        )
    try:
        arrays = safetensors_numpy.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damaged(field, kind) from error
    if header.pop("digest", None) != _digest(header, arrays):
        raise _damaged(field, kind)
    return header, arrays


def check_target(uri: str) -> None:
    """UserError unless a file can be written at a URI: asked before the work and not behind it."""
    where = Store(uri).location
    folder, _, name = where.path.rpartition("/")
    require(bool(name), "--to", uri, "name a file")
    Store(type(where)(where.scheme, folder or "/", where.query).uri).check_writable()


def _damaged(field: str, kind: str) -> UserError:
    return UserError(f"{field}: the {kind} is damaged (its digest is another): copy it again, or {_remedy(kind)} again")


def _remedy(kind: str) -> str:
    pipeline = {"quality classifier": "train_quality", "perplexity model": "train_perplexity"}[kind]
    return f"train it with python -m pipelines.{pipeline}"


def _header(data: bytes) -> Header | None:
    """The JSON of pack; None if there is none."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
    except (ValueError, KeyError, TypeError):
        return None
    return header if isinstance(header, dict) else None


def _digest(header: Header, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) of all but the digest itself."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode() + array.tobytes())
    return digest.hexdigest()
