"""The main job as a user runs it, on a real head node: what it leaves, and the same stream whatever the cluster."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pretrainer.journal import read_events
from pretrainer.storage import Store
from tests.e2e.audit import audit, run_folder
from tests.e2e.head import Head, Result, corpus, pipeline, tiny_config


def test_summary_has_what_scripts_rely_on(reference: Result) -> None:
    summary = reference.summary
    assert summary["status"] == "completed" and summary["steps"] == 6 and summary["tokens"] == 6 * 512
    assert summary["val_loss"] < 6.4 and summary["perplexity"] > 1  # ln 600 = 6.397
    assert summary["world_sizes"] == [2] and summary["restarts"] == 0
    assert len(summary["order_digest"]) == 64 and summary["time_to_first_step_s"] > 0
    assert summary["documents"]["kept"] > 0 and {"exact", "near"} < set(summary["dedup"])
    for name in ("tokens_per_s", "data_wait_fraction", "wall_s", "train_loss", "val_bits_per_byte", "parameters"):
        assert summary[name] is not None
    saved = summary["checkpoints"]
    assert saved["saved"] == 2 and 0 < saved["blocking_s"] < saved["total_s"]  # of steps 3 and 6, the last waited for
    assert "2 saved, training waited" in reference.out
    assert Path(summary["checkpoint"]).is_dir() and (Path(summary["export"]) / "model.safetensors").exists()


def test_last_line_is_the_path_of_the_summary(head: Head, reference: Result) -> None:
    assert reference.out.strip().splitlines()[-1].endswith("/runs/reference/summary.json")
    assert "Traceback" not in reference.out + reference.err
    assert Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text() not in reference.out + reference.err


def test_audit_names_every_step_once(reference: Result, config: Path) -> None:
    lines = audit(config, "reference")
    assert [line["step"] for line in lines] == list(range(6))
    assert all(line["applied"] and line["world_size"] == 2 and line["targets"] > 0 for line in lines)
    ranges = [line["provenance"].get("early") for line in lines]
    assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False))


def test_every_document_of_a_prepared_source_is_accounted_for(head: Head, tmp_path: Path) -> None:
    """To its end: exact counts of everything read, kept, dropped and unreadable."""
    source = {"name": "all", "uris": [str(corpus(tmp_path / "corpus", documents=80))], "preset": "code"}
    result = pipeline("prepare", "--config", str(tiny_config(tmp_path, [source])), env=head.env)
    assert result.code == 0, result.out + result.err
    assert not re.search(r"streaming_executor|issue_detector|Deprecat|WARNING", result.out + result.err)
    (table,) = [line for line in result.out.splitlines() if "documents read" in line]
    read, kept, unreadable = (int(found) for found in re.findall(r"(\d+) (?:documents read|kept|unreadable)", table))
    reasons = {name: int(n) for name, n in re.findall(r"^    (\w+) +(\d+) +[\d.]+%$", result.out, re.MULTILINE)}
    assert (read, unreadable) == (81, 1) and kept + sum(reasons.values()) + unreadable == read
    assert reasons["duplicate_exact"] == reasons["duplicate_near"] == 1
    assert f"in {tmp_path}/runs/tiny/data/ledger/all-" in result.out, "where the dead letters are"


@pytest.mark.slow
def test_source_at_its_end_stops_clearly_and_every_document_is_accounted_for(head: Head, tmp_path: Path) -> None:
    """One epoch of one small source, to its end: exact counts of everything read, kept, dropped and unreadable."""
    folder = corpus(tmp_path / "corpus", documents=80)
    source = {"name": "all", "uris": [str(folder)], "preset": "code", "id_column": "id"}
    seldom = dict.fromkeys(("checkpoint_every_steps", "validate_every_steps", "sample_every_steps"), 38)
    train = {"steps": 38, "global_batch_tokens": 4096, **seldom}
    config = tiny_config(tmp_path, [source], data={"slot_sequences": 16}, train=train)
    result = pipeline("pretrain", "--config", str(config), env=head.env)
    assert result.code == 2 and "exhausted" in result.err + result.out and "max_epochs" in result.err + result.out
    summary = result.summary
    documents, dropped = summary["documents"], summary["documents"]["dropped"]
    assert summary["status"] == "stopped" and 0 < summary["steps"] < 38
    assert documents["read"] == 81 and documents["dead_letters"] == 1
    assert {kind: count for kind, count in summary["dedup"].items() if count} == {"exact": 1, "near": 1}
    assert documents["kept"] + sum(dropped.values()) + 1 == 81
    letters = list((tmp_path / "runs/tiny").glob("data/ledger/all-*/dead_letters/*.jsonl"))
    letter = json.loads(letters[0].read_text())
    assert len(letters) == 1 and letter["reason"] == "bad_json" and letter["shard"] == "part-040.jsonl"
    trained = sum(line["targets"] for line in audit(config, "tiny"))
    assert trained <= summary["sources"]["all"]["tokens"] + documents["kept"]


@pytest.mark.slow
def test_too_many_unreadable_records_end_the_run_with_their_count(head: Head, tmp_path: Path) -> None:
    """Met in training, by a stage: not a failure to be tried again, after which it would train on over them."""
    folder = corpus(tmp_path / "corpus")
    (folder / "part-080.jsonl").write_bytes(random.Random(1).randbytes(20_000))
    source = {"name": "all", "uris": [str(folder)], "preset": "code", "id_column": "id", "max_epochs": 4}
    config = tiny_config(tmp_path, [source], data={"look_ahead_chunks": 2}, train={"steps": 400, "log_every_steps": 50})
    result = pipeline("pretrain", "--config", str(config), env=head.env)
    said = result.out + result.err
    assert result.code == 4 and "data.max_dead_letter_share" in said, said
    assert "workers begin at step" in result.out and "Traceback" not in said
    assert len(re.findall("workers begin at step", result.out)) == 1, "it was tried again"


def test_the_report_and_the_card_are_there_and_tell_the_run(reference: Result, config: Path) -> None:
    run, export = run_folder(config, "reference"), Path(reference.summary["export"])
    assert f"report          {run}/report/report.html" in reference.out
    assert "no report was written" not in reference.out and "its card is not" not in reference.out
    page = (run / "report" / "report.html").read_text()
    for words in (
        "6 of 6", "loss over steps", "training loss by source", "Samples over time", "What to look at",
        "Where the workers", "code_auto_generated", reference.summary["order_digest"], "learning rate",
    ):  # fmt: skip
        assert words in page, words
    card = json.loads((export / "card.json").read_text())
    assert card["run"]["status"] == "completed" and card["digests"]["fingerprint"] == reference.summary["fingerprint"]
    assert card["digests"]["order_digest"] == {"steps": 6, "digest": reference.summary["order_digest"]}
    assert list(card["digests"]["order_digests"]) == ["3", "6"] and card["training"]["world_sizes"][0]["workers"] == 2
    weights = hashlib.sha256((export / "model.safetensors").read_bytes()).hexdigest()
    assert card["checkpoint"]["sha256"] == weights and card["hardware"]["devices"] == ["cpu"]
    text = (export / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers") and "## What is weak" in text and weights in text


def test_the_run_folder_has_the_events(reference: Result, config: Path) -> None:
    run = run_folder(config, "reference")
    kinds = Counter(event["kind"] for event in read_events(Store(str(run))))
    assert (kinds["driver"], kinds["start"], kinds["steps"], kinds["checkpoint"], kinds["finish"]) == (1, 1, 6, 2, 1)
    assert kinds["validation"] == 3 and kinds["sample"] == 1 and len(list((run / "events").iterdir())) < 20


@pytest.mark.slow  # the comparison alone is tests/test_reproduce.py
def test_the_card_s_digests_are_derived_again_from_the_inputs(
    head: Head, reference: Result, config: Path, tmp_path: Path
) -> None:
    """In a folder of its own, with nothing of the run but the card, and with the inputs in another place."""
    card = tmp_path / "card.json"
    shutil.copy(Path(reference.summary["export"]) / "card.json", card)
    moved = shutil.copytree(config.parent / "corpus", tmp_path / "moved")
    uris = [f"data.sources.{n}.uris=[{moved}/part-{a}.jsonl, {moved}/part-{b}.jsonl]"
            for n, (a, b) in enumerate([("000", "040"), ("080", "120")])]  # fmt: skip
    done = pipeline("reproduce", str(card), *uris, env=head.env)
    assert done.code == 0, done.out + done.err
    assert f"order digest        same  {reference.summary['order_digest']} after step 6" in done.out
    assert "DIFFERS" not in done.out and "reproduced: the first 6 steps" in done.out
    broken = moved / "part-000.jsonl"
    broken.write_bytes(broken.read_bytes().replace(b"import", b"export"))  # as many bytes as before
    done = pipeline("reproduce", str(card), *uris, env=head.env)
    assert done.code == 8 and "not reproduced" in done.err
    assert re.search(r"manifest +same", done.out) and re.search(r"order digest +DIFFERS", done.out)


def test_mlflow_has_one_finished_run_with_metrics(reference: Result) -> None:
    from mlflow import MlflowClient

    where = reference.summary["mlflow"]
    run = MlflowClient(where["uri"]).get_run(where["run_id"])
    assert run.info.status == "FINISHED" and run.data.params["train.steps"] == "6"
    history = MlflowClient(where["uri"]).get_metric_history(where["run_id"], "train/loss")
    assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]
    waits = MlflowClient(where["uri"]).get_metric_history(where["run_id"], "speed/checkpoint_blocking_s")
    assert [m.step for m in waits] == [3, 6] and all(m.value > 0 for m in waits)


def test_export_loads_in_transformers_and_continues_a_text(reference: Result, config: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = reference.summary["export"]
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export)
    ids = tokenizer("def main():", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape[-1] == reference.summary["vocab_size"]
    out = pipeline("generate", str(run_folder(config, "reference")), "--prompt", "def main", "--max-new-tokens", "8")
    assert out.code == 0 and out.out.startswith("def main")


@pytest.mark.slow  # one worker trains on S3 in the default run
@pytest.mark.parametrize("workers", [1, 3])
def test_other_world_size_trains_the_same_batches(
    head: Head, config: Path, reference: Result, workers: int
) -> None:
    name = f"workers-{workers}"
    arguments = ["--config", str(config), f"run.name={name}", f"train.num_workers={workers}"]
    result = pipeline("pretrain", *arguments, env=head.env)
    assert result.code == 0, result.out + result.err
    assert result.summary["order_digest"] == reference.summary["order_digest"]
    assert [a["digest"] for a in audit(config, name)] == [a["digest"] for a in audit(config, "reference")]
    assert result.summary["val_loss"] == pytest.approx(reference.summary["val_loss"], rel=1e-3)


@pytest.mark.slow
def test_longer_run_continues_at_another_world_size(head: Head, config: Path, reference: Result) -> None:
    """Six steps, then on to nine with one worker, equals nine steps at once: nothing lost, nothing repeated."""
    straight = pipeline("pretrain", "--config", str(config), "run.name=straight", "train.steps=9", env=head.env)
    first = pipeline("pretrain", "--config", str(config), "run.name=halves", env=head.env)
    second = pipeline(
        "pretrain", "--config", str(config), "run.name=halves", "train.steps=9", "train.num_workers=1",
        "data.sources.0.max_epochs=5", env=head.env
    )
    assert [r.code for r in (straight, first, second)] == [0, 0, 0], second.out + second.err
    assert second.summary["order_digest"] == straight.summary["order_digest"]
    assert [a["digest"] for a in audit(config, "halves")] == [a["digest"] for a in audit(config, "straight")]
    assert [a["world_size"] for a in audit(config, "halves")] == [2] * 6 + [1] * 3
    assert second.summary["restarts"] == 1


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over(head: Head, config: Path, reference: Result) -> None:
    first = pipeline("pretrain", "--config", str(config), "run.name=damaged", env=head.env)
    newest = Path(first.summary["checkpoint"])
    shard = next(newest.glob("__1_*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    second = pipeline(
        "pretrain", "--config", str(config), "run.name=damaged", "train.steps=9", "data.sources.0.max_epochs=5",
        env=head.env,
    )
    assert second.code == 0, second.out + second.err
    assert f"{shard.name} differs from its digest" in second.out and "the run goes on from step 3" in second.out
    lines = audit(config, "damaged")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    assert [line["digest"] for line in lines[3:6]] == [line["digest"] for line in lines[6:9]]
    assert second.summary["steps"] == 9 and newest.is_dir()


@pytest.mark.slow
def test_prepared_sources_are_only_read(head: Head, config: Path, reference: Result) -> None:
    """prepare, twice, and then pretrain: every chunk is curated once, and the batches are those of the reference."""
    arguments = ("--config", str(config), "run.name=prepared")
    first = pipeline("prepare", *arguments, env=head.env)
    assert first.code == 0 and "units are committed" in first.out, first.out + first.err
    ledger = run_folder(config, "prepared") / "data" / "ledger"
    shards = {path: path.stat().st_mtime_ns for path in ledger.rglob("*.arrow")}
    again = pipeline("prepare", *arguments, env=head.env)
    assert again.code == 0 and "were committed before" in again.out
    trained = pipeline("pretrain", *arguments, env=head.env)
    assert trained.code == 0 and trained.summary["order_digest"] == reference.summary["order_digest"]
    assert {path: path.stat().st_mtime_ns for path in ledger.rglob("*.arrow")} == shards
    documents = trained.summary["documents"]
    assert documents["read"] == 161 and documents["dead_letters"] == 1


def test_no_leftover_processes_hold_the_head(head: Head, reference: Result) -> None:
    code = "import ray; ray.init(logging_level=40); print(ray.available_resources()['CPU'])"
    command, env = [sys.executable, "-c", code], {**os.environ, **head.env}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert float(done.stdout.strip().splitlines()[-1]) == 4.0
