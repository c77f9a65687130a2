"""Copies of committed checkpoints that stay when Ray deletes the original: milestones, the best, a second storage.

    <run>/milestones/step-…/     steps that are a multiple of train.milestone_every_steps, for good
    <run>/best/step-…/           the best so far by evaluation.best_by (train.keep_best), one folder
    <run.copy_to>/<name>/checkpoints/step-…/    every checkpoint, the newest train.keep_checkpoints

A copy is complete when its record `step-….json` lies beside it; every byte of it has matched the digests that the ranks
wrote. It is made by a thread of the driver while training goes on, and a copy that fails fails nothing: it is told, and
made up for at the next start if the original is still there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pretrainer.config import Config
from pretrainer.errors import DamagedError, PretrainerError, StorageError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import CHECKPOINTS, committed_checkpoints
from pretrainer.train.scoring.selection import is_better, value_of

log = logging.getLogger(__name__)

COMMIT_PATIENCE_S = 60.0  # on a local disk the list cannot be read while Ray's controller writes the next one
POLL_S = 0.5
MILESTONES, BEST = "milestones", "best"


@dataclass(frozen=True)
class Place:
    """A folder of copies, and how many of the newest stay; all without a number."""

    name: str
    store: Store
    keep: int | None = None

    def copies(self) -> dict[int, str]:
        """Step -> folder of every complete copy."""
        records = [json.loads(self.store.read(path)) for path, _s, _v in self.store.list() if path.endswith(".json")
                   and "/" not in path]  # fmt: skip
        return {record["step"]: record["folder"] for record in sorted(records, key=lambda record: record["step"])}

    def add(self, run: Store, step: int, folder: str, about: Mapping[str, Any]) -> int:
        """Copy a folder of the run's checkpoints, then forget the older ones; bytes copied."""
        size = copy_folder(run.child(folder), self.store.child(folder.rsplit("/", 1)[-1]))
        record = {"step": step, "folder": folder.rsplit("/", 1)[-1], "bytes": size, **about}
        self.store.write(f"{record['folder']}.json", json.dumps(record).encode())
        if self.keep is not None:
            for old in list(self.copies().items())[: -self.keep]:
                self._remove(old[1])
        return size

    def _remove(self, folder: str) -> None:
        self.store.delete(f"{folder}.json")  # first: a folder without a record is no copy
        for path, _size, _version in self.store.list(folder):
            self.store.delete(path)


def copy_folder(source: Store, target: Store) -> int:
    """Copy a checkpoint, file by file in blocks; returns its bytes.

    Raises DamagedError where a file is not what the ranks' digests say.
    """
    paths = [path for path, _size, _version in source.list()]
    records = [json.loads(source.read(path)) for path in paths if path.startswith("digests.rank")]
    expected = {name: digest["sha256"] for record in records for name, digest in record["files"].items()}
    missing = set(expected) - set(paths)
    if missing or not records:
        raise DamagedError(f"checkpoint {source.uri} lacks {min(missing, default='its digests')}")
    total = 0
    for path in paths:
        sha256, size = copy_file(source, path, target)
        total += size
        if path in expected and sha256 != expected[path]:
            raise DamagedError(f"checkpoint file {source.uri}/{path} differs from its digest")
    return total


def copy_file(source: Store, path: str, target: Store) -> tuple[str, int]:
    """(SHA-256, bytes) of an object that is streamed from one store to another."""
    folder, system = target.train_storage()
    system = system or pafs.LocalFileSystem()
    full = f"{folder}/{path}"
    if target.is_local:
        system.create_dir(full.rsplit("/", 1)[0], recursive=True)
    digest, size = hashlib.sha256(), 0
    with source.file(path) as file, system.open_output_stream(full) as out:
        for block in file.blocks():
            digest.update(block)
            out.write(block)
            size += len(block)
    return digest.hexdigest(), size


def places(config: Config, run: Store) -> dict[str, Place]:
    """The folders of copies that the config asks for, by name."""
    found = []
    if config.train.milestone_every_steps is not None:
        found.append(Place(MILESTONES, run.child(MILESTONES)))
    if config.train.keep_best:
        found.append(Place(BEST, run.child(BEST), keep=1))
    if config.run.copy_to is not None:
        there = Store(config.run.copy_to).child(config.run.name).child(CHECKPOINTS)
        found.append(Place("copy", there, keep=config.train.keep_checkpoints))
    return {place.name: place for place in found}


def find_copies(run: Store) -> dict[int, str]:
    """Step -> folder under the run, of its milestones and its best checkpoint."""
    found = {}
    for name in (BEST, MILESTONES):
        for step, folder in Place(name, run.child(name)).copies().items():
            found[step] = f"{name}/{folder}"
    return found


class Copies:
    """Sees the recorder's events; copies in a thread and tells `tell` of each copy, made or failed."""

    def __init__(self, config: Config, run: Store, tell: Callable[[dict[str, Any]], None]) -> None:
        self.config, self.run, self.tell = config, run, tell
        self.places = places(config, run)
        self.judged: dict[int, float] = {}  # step -> what evaluation.best_by names
        self.committed: set[int] = set()  # steps that are, since this driver began
        self.best: float | None = None
        self.jobs: queue.Queue[tuple[Place, int, dict[str, Any]]] = queue.Queue()
        if self.places:
            threading.Thread(target=self._work, name="copies", daemon=True).start()
            self._catch_up()

    def notice(self, event: Mapping[str, Any]) -> None:
        value = value_of(event, self.config.evaluation.best_by)
        if value is not None:
            self.judged[event["step"]] = value
            if event["step"] in self.committed:  # it was measured beside the training, from the checkpoint
                self._ask_best(event["step"])
        elif event["kind"] == "checkpoint" and event["step"] > 0:
            self.committed.add(event["step"])
            self._ask(event["step"])
        elif event["kind"] == "start":  # rank 0 may have died between this commit and its event
            self._make_up(event["step"])

    def drain(self, timeout_s: float) -> bool:
        """Wait for the copies that were asked for; whether all are done."""
        deadline = time.monotonic() + timeout_s
        while self.jobs.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.jobs.unfinished_tasks

    def _ask(self, step: int) -> None:
        every = self.config.train.milestone_every_steps
        if every is not None and step % every == 0:
            self.jobs.put((self.places[MILESTONES], step, {}))
        self._ask_best(step)
        if "copy" in self.places:
            self.jobs.put((self.places["copy"], step, {}))

    def _ask_best(self, step: int) -> None:
        value, by = self.judged.get(step), self.config.evaluation.best_by
        if BEST in self.places and value is not None and (
            self.best is None or is_better(value, self.best, by)
        ):
            self.best = value
            self.jobs.put((self.places[BEST], step, {"by": by, "value": value}))

    def _catch_up(self) -> None:
        """What a driver before this one did not come to copy, and the loss of its best."""
        if BEST in self.places:
            store = self.places[BEST].store
            known = [json.loads(store.read(f"{folder}.json")) for folder in self.places[BEST].copies().values()]
            by = self.config.evaluation.best_by
            self.best = next((record["value"] for record in known if record.get("by") == by), None)
        for step in committed_checkpoints(self.run):
            self._make_up(step)

    def _make_up(self, step: int) -> None:
        """Ask for a committed milestone that has no copy."""
        every = self.config.train.milestone_every_steps
        if every is not None and step > 0 and step % every == 0 and step not in self.places[MILESTONES].copies():
            self.jobs.put((self.places[MILESTONES], step, {}))

    def _work(self) -> None:
        while True:
            place, step, about = self.jobs.get()
            started_s = time.monotonic()
            try:
                size = place.add(self.run, step, self._committed(step), about)
                seconds = time.monotonic() - started_s
                self.tell({"kind": "copy", "step": step, "to": place.store.uri, "bytes": size, "seconds": seconds})
            except (PretrainerError, OSError) as error:
                self.tell({"kind": "copy_failed", "step": step, "to": place.store.uri, "message": str(error)})
            finally:
                self.jobs.task_done()

    def _committed(self, step: int) -> str:
        """The folder of a step, once it is committed."""
        deadline = time.monotonic() + COMMIT_PATIENCE_S
        while True:
            try:
                folder = committed_checkpoints(self.run).get(step)
            except StorageError:
                folder = None
            if folder is not None:
                return folder
            if time.monotonic() > deadline:
                raise DamagedError(f"the checkpoint of step {step} is not on the list any more")
            time.sleep(POLL_S)
