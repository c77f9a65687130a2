"""A checkpoint whose upload hangs: training goes on beside it, and a kill in the middle of it commits nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoints, folder_name
from tests import faulty_s3
from tests.e2e.head import Head, pipeline, tiny_config, two_sources
from tests.faults.chaos import Run
from tests.faults.test_kill import train_workers

STEPS, SAVED = 60, 20


@pytest.mark.slow
def test_training_goes_on_beside_a_save_and_a_kill_in_it_commits_nothing(
    head: Head, s3_endpoint: str, s3_uri: str, tmp_path: Path
) -> None:
    every = {"checkpoint": SAVED, "validate": STEPS, "sample": STEPS, "log": 1}
    train = {"steps": STEPS, **{f"{what}_every_steps": steps for what, steps in every.items()}}
    config = tiny_config(tmp_path, two_sources(tmp_path / "corpus"), train=train)
    undisturbed = pipeline("pretrain", "--config", str(config), "run.name=undisturbed", env=head.env)
    assert undisturbed.code == 0, undisturbed.out + undisturbed.err
    held = folder_name(SAVED, 0)
    with faulty_s3.holding(s3_endpoint, f"{held}/__1_0.distcp") as (endpoint, met):
        base, _question, query = s3_uri.replace(s3_endpoint, endpoint).partition("?")
        env = {**head.env, "HOME": str(tmp_path)}  # for runs on S3 the default tracker is in the home folder
        run = Run(config, "held", env, f"run.storage={base}/runs?{query}")
        store = Store(f"{base}/runs/held?{query}")
        try:
            run.wait(met.is_set, "the upload of rank 1")
            run.wait(lambda: run.steps_seen()[-1] > SAVED + 2, "steps beside the save")
            assert list(committed_checkpoints(store)) == [0]
            assert store.exists(f"checkpoints/{held}/digests.rank0.json"), "rank 0 has uploaded its part"
            train_workers(head)[0].kill()
            assert run.process.wait(900) == 0, run.text()[-5000:]
        finally:
            run.stop()
        summary = json.loads(store.read("summary.json"))
        assert summary["status"] == "completed" and summary["restarts"] == 1
        assert summary["order_digest"] == undisturbed.summary["order_digest"]
        assert [start["step"] for start in json.loads(store.read("starts.json"))] == [0, 0]
        folders = {path.split("/")[1] for path, _size, _version in store.list("checkpoints")}
        assert held not in folders and folder_name(STEPS, 1) in folders
