"""Files that the config names for curation (block lists, models, benchmarks), frozen in the run's data folder.

    resources/index.json      URI -> digest
    resources/<digest>        the bytes

Workers read the copies alone, so a list that changes on its server changes no running run, and the digests are part of
the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import lru_cache

from pretrainer.errors import StreamError, UserError
from pretrainer.storage import Store, redact

INDEX = "resources/index.json"
Read = Callable[[str], bytes]
"""URI of the config -> bytes of its frozen copy."""


def freeze_resources(uris: Iterable[str], data: Store) -> None:
    """Copy what is new among the URIs. UserError where one does not exist."""
    known = frozen_resources(data)
    for uri in dict.fromkeys(uris):
        if uri not in known:
            known[uri] = freeze_bytes(_read(uri), data)
    data.write(INDEX, json.dumps(known, indent=1, sort_keys=True).encode())


def freeze_bytes(content: bytes, data: Store) -> str:
    """Put bytes among the resources; returns their digest."""
    digest = hashlib.sha256(content).hexdigest()[:32]
    data.create(f"resources/{digest}", content)
    return digest


def read_resource(data_uri: str, uri: str) -> bytes:
    """The frozen copy of a URI of the config."""
    data = Store(data_uri)
    return data.read(f"resources/{_cached_index(data_uri)[uri]}")


@lru_cache(maxsize=8)
def _cached_index(data_uri: str) -> dict[str, str]:
    return frozen_resources(Store(data_uri))


def frozen_resources(data: Store) -> dict[str, str]:
    """URI -> digest."""
    try:
        found = json.loads(data.read(INDEX))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise StreamError(f"{data.uri}/{INDEX} is damaged: restore it, or begin a new run")
    return found


def _read(uri: str) -> bytes:
    try:
        return Store(uri).read()
    except FileNotFoundError:
        raise UserError(f"{redact(uri)} does not exist: mend the path in the data section of the config") from None
