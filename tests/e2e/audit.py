"""What a run of a test left in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def run_folder(config: Path, name: str) -> Path:
    return config.parent / "runs" / name


def audit(config: Path, name: str) -> list[dict[str, Any]]:
    objects = sorted(run_folder(config, name).glob("audit/*.jsonl"))
    return [json.loads(line) for path in objects for line in path.read_text().splitlines()]
