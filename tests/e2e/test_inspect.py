"""The look at curation as a user takes it: no cluster, one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.head import pipeline, tiny_config, two_sources


def test_a_sample_is_curated_without_a_cluster(tmp_path: Path) -> None:
    config, page = tiny_config(tmp_path, two_sources(tmp_path / "corpus")), tmp_path / "page.html"
    result = pipeline(
        "inspect_data",
        "--config",
        str(config),
        "--documents",
        "60",
        "--to",
        str(page),
        env={"RAY_ADDRESS": "127.0.0.1:1"},
    )
    assert result.code == 0, result.out + result.err
    assert "all sources" in result.out and str(page) in result.out
    assert page.read_bytes().startswith(b"<!doctype html>") and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.url.blocked_domains=[/nowhere/list]", "/nowhere/list"),
        ("data.language.keep=[xx>=0.5]", "data.language.keep"),
        ("data.decontamination.benchmarks=[/nowhere/arc.jsonl]", "/nowhere/arc.jsonl"),
    ],
)
def test_mistakes_in_curation_end_in_one_clear_message(tmp_path: Path, override: str, words: str) -> None:
    config = tiny_config(tmp_path, two_sources(tmp_path / "corpus"))
    result = pipeline("inspect_data", "--config", str(config), "--documents", "20", override)
    assert result.code == 2 and result.err.count("error: ") == 1 and words in result.err, result.out + result.err
    assert "Traceback" not in result.err


def test_what_train_quality_writes_filters_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    good = [
        f"The committee met on day {n} and agreed that the proposal was sound, because costs fell." for n in range(200)
    ]
    bad = [f"buy cheap pills {n} click here now win {n} free {n * 7} $$$ !!!" for n in range(200)]
    for name, texts in (("good", good), ("bad", bad)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = tmp_path / "quality.safetensors"
    sets = ["--positive", str(folder / "good.jsonl"), "--negative", str(folder / "bad.jsonl")]
    trained = pipeline("train_quality", *sets, "--to", str(model))
    assert trained.code == 0 and "AUC" in trained.out, trained.out + trained.err
    config = tiny_config(tmp_path, [{"name": "both", "uris": [str(folder)], "preset": "none"}])
    wanted = [f"data.quality.model={model}", "data.quality.min_score=0.5", "data.dedup.near=false"]
    result = pipeline(
        "inspect_data", "--config", str(config), "--documents", "400", "--to", str(tmp_path / "page.html"), *wanted
    )
    assert result.code == 0, result.out + result.err
    line = next(line for line in result.out.splitlines() if line.strip().startswith("quality"))
    assert "200" in line, result.out
