"""Content that kills its reader is left out, at the place that a probe found, and nothing else is.

The probe is a process of its own, so what is poison here is planted in it by a sitecustomize.py on its path.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrainer.data import quarantine as quarantine_module
from pretrainer.data import stages
from pretrainer.data.ledger.ledger import Ledger
from pretrainer.data.plan import SourcePlan
from pretrainer.data.quarantine import Quarantine, probe_unit
from pretrainer.data.readers import jsonl
from pretrainer.data.readers.reading import Stop
from pretrainer.data.replay import fresh_plans, source_blocks
from pretrainer.schema import Batch
from pretrainer.storage import Store
from tests.data.harness import document, make_plan, no_held_out, stream
from tests.e2e.head import REPOSITORY

TEXTS = [document(n) for n in range(40)]
TEXTS[15] = "POISON " + TEXTS[15]
PLANTED = """
import os, signal, time
import pretrainer.data.readers.jsonl as jsonl, pretrainer.data.stages as stages
from pretrainer.errors import StorageError
read, curate = jsonl._from_json, stages.run_before_dedup

def poisoned_read(reading, raw, start):
    if "POISON" in raw.text:
        {read}
    return read(reading, raw, start)

def poisoned_curate(plan, docs):
    if any("POISON" in text for text in docs.column("text").to_pylist()):
        {curate}
    return curate(plan, docs)

jsonl._from_json, stages.run_before_dedup = poisoned_read, poisoned_curate
"""
SEGFAULT = "os.kill(os.getpid(), signal.SIGSEGV)"
Plant = Callable[..., None]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Makes probes do something when they read, or curate, the poisoned document."""

    def plant(read: str = "pass", curate: str = "pass") -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(PLANTED.format(read=read, curate=curate))
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPOSITORY}")

    return plant


@pytest.fixture
def plan(tmp_path: Path) -> SourcePlan:
    """Two gzip shards of two chunks each, a unit each; the second half of the first holds the poison."""
    return make_plan(tmp_path, TEXTS, lines_per_file=20, compressed=True, chunk_bytes=3000)


def poisoned_unit(plan: SourcePlan) -> int:
    return 0  # of the manifest


def curated_at(plan: SourcePlan) -> int:
    return next(at for at in range(plan.units) if plan.place(at).unit == poisoned_unit(plan))


def raise_here(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """The same content raises in this process, where it could not crash without the test."""
    call = getattr(module, name)

    def poisoned(*arguments: object) -> object:
        if "POISON" in str(arguments):
            raise RuntimeError("what the extension says")
        return call(*arguments)

    monkeypatch.setattr(module, name, poisoned)


def letters(plan: SourcePlan) -> list[tuple[str, int, str, str]]:
    return [(letter.shard, letter.row, letter.reason, letter.detail) for letter in plan.ledger.dead_letters()]


def trained(plan: SourcePlan) -> Counter[str]:
    keys = [record.key for record in plan.ledger.records()]
    return Counter(name for key in keys for name in plan.ledger.read_tokens(key)[0].column("id").to_pylist())


def test_the_rest_of_a_shard_whose_reading_kills_is_left_out(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(read=SEGFAULT)
    raise_here(monkeypatch, jsonl, "_from_json")
    blocks = stream(plan)
    cause = "its reader was killed by SIGSEGV"
    assert letters(plan) == [("00000.jsonl.gz", 15, "quarantined", f"the rest of the shard: {cause}")]
    names = {f"00000.jsonl.gz#{row}" for row in range(15)} | {f"00020.jsonl.gz#{row}" for row in range(20)}
    assert trained(plan) == Counter(names)
    assert [record.dead_letters for record in plan.ledger.records()].count(1) == 1
    (stop,) = Quarantine(plan.ledger, curated_at(plan)).stops
    assert stop == Stop(0, 14, True, "its reader was killed by SIGSEGV")
    assert not [path for path, *_ in plan.ledger.root.list("quarantine") if "try-" in path]
    Store(plan.data_uri).create("held_out/synthetic.sketches.arrow", no_held_out(plan))
    again = fresh_plans([plan], Store(str(tmp_path / "again")))[0]
    monkeypatch.setattr(stages, "probe_unit", None)  # the verdict is input now
    replayed = list(source_blocks(again, 0))
    assert [batch.tokens.tolist() for batch in replayed] == [Batch.from_row(b, 16).tokens.tolist() for b in blocks]


def test_a_document_whose_curation_kills_is_left_out_alone(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(curate=SEGFAULT)
    call = stages.run_before_dedup

    def poisoned(plan: SourcePlan, docs: object) -> object:
        if "POISON" in str(docs.column("text").to_pylist()):  # type: ignore[attr-defined]
            raise RuntimeError("what the extension says")
        return call(plan, docs)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "run_before_dedup", poisoned)
    stream(plan)
    assert letters(plan) == [("00000.jsonl.gz", 15, "quarantined", "its reader was killed by SIGSEGV")]
    assert len(trained(plan)) == 39 and max(trained(plan).values()) == 1


def test_a_unit_begun_too_often_is_probed_before_it_is_touched(plan: SourcePlan, plant: Plant) -> None:
    """What killed this process, three times, has no chance to do so again."""
    plant(read=SEGFAULT)
    for _ in range(plan.config.max_shard_failures):
        Quarantine(plan.ledger, curated_at(plan)).begin()
    stream(plan)  # in this process nothing is planted, and yet
    assert [letter[1:3] for letter in letters(plan)] == [(15, "quarantined")]


def test_a_unit_whose_readers_died_of_something_else_is_read(plan: SourcePlan, plant: Plant) -> None:
    plant()
    for _ in range(plan.config.max_shard_failures):
        Quarantine(plan.ledger, curated_at(plan)).begin()
    stream(plan)
    assert letters(plan) == [] and len(trained(plan)) == 40
    assert Quarantine(plan.ledger, curated_at(plan)).stops == ()


def test_fewer_tries_are_no_suspicion(plan: SourcePlan) -> None:
    ledger, limit = Ledger(plan.ledger.root), 3
    for _ in range(limit - 1):
        Quarantine(ledger, 5).begin()
    assert not Quarantine(ledger, 5).is_suspect(limit)
    Quarantine(ledger, 5).begin()
    assert Quarantine(ledger, 5).is_suspect(limit) and not Quarantine(ledger, 6).is_suspect(limit)
    Quarantine(ledger, 5).add_if(Stop(0, 3, True, "x"))
    assert not Quarantine(ledger, 5).is_suspect(limit), "each verdict needs as many tries of its own"


@pytest.mark.parametrize(
    ("read", "cause"),
    [
        ("raise StorageError('503 for a while')", None),
        ("raise ValueError('not  a\\nnumber')", "ValueError: not a number"),
        ("time.sleep(60)", "no further record was read in 2 s"),
    ],
)
def test_what_a_probe_finds(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch, read: str, cause: str | None
) -> None:
    plant(read=read)
    monkeypatch.setattr(quarantine_module, "PROBE_SILENCE_S", 2.0)
    found = probe_unit(plan, poisoned_unit(plan), ())
    assert found == (Stop(0, 14, True, cause) if cause else None)


def test_a_probe_that_dies_only_once_is_no_verdict(plan: SourcePlan, plant: Plant, tmp_path: Path) -> None:
    flag = tmp_path / "died"
    plant(read=f"if not os.path.exists({str(flag)!r}): open({str(flag)!r}, 'w').close(); {SEGFAULT}")
    assert probe_unit(plan, poisoned_unit(plan), ()) is None
    assert flag.exists()


def test_a_failure_that_no_probe_confirms_is_raised(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant()
    raise_here(monkeypatch, jsonl, "_from_json")
    with pytest.raises(RuntimeError, match="what the extension says"):
        stream(plan)
