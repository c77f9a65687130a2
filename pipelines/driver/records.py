"""JSON objects of a run folder."""

from __future__ import annotations

import json
from typing import Any

from pretrainer.storage import Store


def read_json(run: Store, name: str) -> Any:
    """The content of an object of the run folder; None if there is none."""
    try:
        return json.loads(run.read(name))
    except FileNotFoundError:
        return None
