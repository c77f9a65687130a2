"""Training starts on the first chunks: what is curated before the first step does not grow with the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from tests.data.harness import document
from tests.e2e.head import Head, pipeline, tiny_config


def names(number: int) -> str:
    """Words of random letters, so that a vocabulary finds enough pieces."""
    rng = Random(number)
    return " ".join("".join(rng.choices("aeioubcdfglmnprst", k=6)) for _ in range(30))


def write_corpus(folder: Path, documents: int) -> str:
    folder.mkdir(parents=True)
    for start in range(0, documents, 100):
        numbers = range(start, min(start + 100, documents))
        lines = [json.dumps({"text": document(n, 200) + names(n)}) for n in numbers]
        (folder / f"part-{start:06d}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.slow
def test_work_before_the_first_step_is_the_same_at_ten_times_the_corpus(head: Head, tmp_path: Path) -> None:
    seen = {}
    for size in (1, 10):
        uri = write_corpus(tmp_path / f"corpus-{size}", 300 * size)
        source = {"name": "synthetic", "uris": [uri], "preset": "none"}
        config = tiny_config(tmp_path / str(size), [source], train={"steps": 1})
        result = pipeline("pretrain", "--config", str(config), "tokenizer.vocab_size=512", env=head.env)
        assert result.code == 0, result.out + result.err
        seen[size] = result.summary
    print({size: (s["time_to_first_step_s"], s["sources"]["synthetic"]["chunks"]) for size, s in seen.items()})
    look_ahead = 4
    small, large = (seen[size]["sources"]["synthetic"] for size in (1, 10))
    assert large["chunks"] <= 6 * look_ahead  # of about 230 chunks; a few more while the run winds down
    assert large["read"] < 0.2 * 3000 and small["read"] > 0
